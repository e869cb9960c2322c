"""Durations of the frames of GIF, WebP and APNG files, from their headers; Pillow would have to decode the frames.

A JPEG file is an image, which has none.

Writers of these formats merge equal frames, so that their number says nothing about time.
"""

from collections.abc import Callable, Iterator

SHORTEST, INSTEAD = 10, 100
"""Frames of at most so many milliseconds last so long instead, as in browsers."""


def durations(content: bytes) -> list[int]:
    """Milliseconds for which each frame of a GIF, WebP, PNG or JPEG file is shown. A still image has one frame.

    Raises:
        ValueError: the file is damaged.
    """
    read = next(reader for start, reader in READERS.items() if content.startswith(start))
    try:
        found = [*read(content)] or [INSTEAD]
    except IndexError:
        raise ValueError("truncated") from None
    return [each if each > SHORTEST else INSTEAD for each in found]


def of_gif(content: bytes) -> Iterator[int]:
    """Walk over the blocks of a GIF file; the duration of a frame stands in an extension before it."""
    place, delay = 13 + _table(content[10]), 0
    while place < len(content) and content[place] != 0x3B:  # the end
        if content[place] == 0x21:
            if content[place + 1] == 0xF9:
                delay = 10 * int.from_bytes(content[place + 4 : place + 6], "little")
            place += 2
        elif content[place] == 0x2C:
            yield delay
            place, delay = place + 11 + _table(content[place + 9]), 0
        else:
            raise ValueError(f"no block of GIF at byte {place}")
        while content[place]:  # sub-blocks, each after its length
            place += 1 + content[place]
        place += 1


def _table(flags: int) -> int:
    """Bytes of a table of colors."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def of_webp(content: bytes) -> Iterator[int]:
    """Walk over the chunks of a WebP file."""
    place = 12
    while place + 8 <= len(content):
        if content[place : place + 4] == b"ANMF":
            yield int.from_bytes(content[place + 20 : place + 23], "little")
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    if place > len(content) + 1:  # the last byte may be left out
        raise ValueError("truncated")


def of_png(content: bytes) -> Iterator[int]:
    """Walk over the chunks of a PNG file. An image that is not part of the animation has no duration."""
    place = 8
    while place + 8 <= len(content):
        if content[place + 4 : place + 8] == b"fcTL":
            value, unit = (int.from_bytes(content[place + i : place + i + 2], "big") for i in (28, 30))
            yield round(1000 * value / (unit or 100))
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    if place > len(content):
        raise ValueError("truncated")


READERS: dict[bytes, Callable[[bytes], Iterator[int]]] = {
    b"GIF8": of_gif,
    b"RIFF": of_webp,
    b"\x89PNG": of_png,
    b"\xff\xd8\xff": lambda content: iter(()),  # JPEG
}
"""First bytes of a file -> what reads its durations."""
