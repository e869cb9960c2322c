"""ICC profiles made by hand, and the exact conversion to sRGB, to hold the reading of color profiles against."""

import struct

import numpy as np

SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
P3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
PROPHOTO = np.array([[0.79767, 0.13519, 0.03134], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]])
"""Columns: XYZ (D50) of red, green and blue."""
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
D50 = (0.9642, 1.0, 0.8249)


def profile(space, tags, kind=b"mntr", connection=b"XYZ "):
    """An ICC profile of version 4 for a color space ("RGB ", "GRAY", "CMYK") with tags: name -> data."""
    tags = {b"desc": text("made by a test"), b"cprt": text("public domain"), b"wtpt": xyz(D50)} | tags
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    size = start + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x04200000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += b"".join(fixed(value) for value in D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def fixed(value):
    return struct.pack(">i", round(value * 65536))


def xyz(values):
    return b"XYZ " + bytes(4) + b"".join(fixed(value) for value in values)


def text(words):
    encoded = words.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded


def curve(parameters):
    kind = 0 if len(parameters) == 1 else 3
    return b"para" + bytes(4) + struct.pack(">HH", kind, 0) + b"".join(fixed(value) for value in parameters)


def rgb_profile(primaries, parameters):
    """A profile with primaries (columns) and a tone curve: a gamma, or the five parameters of sRGB's kind."""
    tags = {}
    for letter, column in zip(b"rgb", primaries.T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = xyz(column)
        tags[bytes([letter]) + b"TRC"] = curve(parameters)
    return profile(b"RGB ", tags)


def gray_profile(gamma):
    return profile(b"GRAY", {b"kTRC": curve((gamma,))})


def cmyk_profile(lab_of):
    """A profile whose table has the corners of CMYK: `lab_of` maps (c, m, y, k), each 0 or 1, to Lab."""
    corners = b""
    for number in range(16):
        lightness, a, b = lab_of(*(number >> shift & 1 for shift in (3, 2, 1, 0)))
        corners += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    identity = b"".join(fixed(value) for value in np.eye(3).flatten())
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    return profile(b"CMYK", {b"A2B0": table}, kind=b"prtr", connection=b"Lab ")


def linear(values, parameters):
    """Apply a tone curve to values 0..1."""
    if len(parameters) == 1:
        return values ** parameters[0]
    gamma, a, b, c, d = parameters
    return np.where(values >= d, (a * values + b) ** gamma, c * values)


def encoded(values):
    """sRGB's values 0..255 of linear ones."""
    values = values.clip(0, 1)
    return 255 * np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def exact_srgb(pixels, primaries, parameters):
    """The pixels (H, W, 3) uint8 of a profile in sRGB, as floats 0..255."""
    light = linear(pixels / 255, parameters) @ (np.linalg.inv(SRGB) @ primaries).T
    return encoded(light)
