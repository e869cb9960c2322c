"""Files that ask for much more memory than they have bytes, each read by a command with limited memory.

    python benchmarks/bombs.py [FOLDER] [--limit-gib 12] [--only TEXT] [--out FILE]

Prints the bytes on the disk, the peak of resident memory, the CPU time, the exit code, and the last line.
The exit code is 1 if a command shows a traceback, is killed, takes longer than `LONGEST`, or needs more memory than a
good model plus `PER_BYTE` times the input and `SPARE` (and, for images, `PER_PIXEL` times the largest one).
"""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import ditlab
from ditlab.autoencoders import Patch
from ditlab.checkpoints.published import to_official
from ditlab.data.base import InMemory
from ditlab.data.latents.encode import encode
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.inference.pipeline import Pipeline

PER_BYTE, SPARE, PER_PIXEL = 32, 512 * 2**20, 24  # bytes of memory
LONGEST = 120  # seconds of CPU time; most are those of importing and decoding
LARGEST_IMAGE = 178_956_970  # pixels, the default of --max-pixels
SIDE = 13_377  # of a square image of almost so many pixels
QUIET = Console(quiet=True)
NET = {"size": 8, "channels": 1, "classes": 3, "width": 32, "depth": 2, "heads": 2, "patch": 2}

LIMITED = """
import atexit, json, re, resource, runpy, sys, time
from pathlib import Path
limit, peak, sys.argv[1:] = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def write():
    kib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    peak.write_text(json.dumps([1024 * kib, time.process_time()]))
atexit.register(write)
runpy.run_module("ditlab", run_name="__main__", alter_sys=True)
"""
"""Runs ditlab with limited memory, and writes its peak (which `wait4` mixes with that of this program) and CPU time."""


@dataclass
class Case:
    """An input, and the command that reads it."""

    name: str
    make: Callable[[Path], Any]
    """Writes the input into an empty folder."""
    command: str
    """The arguments of ditlab; {} is the folder, which is the current folder too."""
    pixels: int = 0
    """Of the largest image."""


def model(folder: Path, family: str = "DiT", **options: Any) -> Path:
    """A small model folder."""
    torch.manual_seed(0)
    net = ditlab.create(family, **{"learn_variance": False, **NET, **options})
    return Pipeline(net.eval(), Objective()).save(folder)


def configured(section: str = "backbone", **values: Any) -> Callable[[Path], None]:
    """A model whose configuration was changed."""

    def make(folder: Path) -> None:
        file = model(folder / "m") / "config.json"
        config = json.loads(file.read_text())
        config[section] = config.get(section, {}) | values
        file.write_text(json.dumps(config))

    return make


def convolutional(folder: Path) -> None:
    """A network whose weights fit any size."""
    options = {"multiples": [1, 2], "attention_at": [2], "head_width": 32}
    net = ditlab.create("ADM", size=8, channels=1, classes=3, learn_variance=False, width=32, depth=1, **options)
    file = Pipeline(net.eval(), Objective()).save(folder / "m") / "config.json"
    file.write_text(file.read_text().replace('"size": [\n      8,\n      8', '"size": [\n      100000,\n      100000'))


def adapters(count: int, circular: bool) -> Callable[[Path], None]:
    """Models that are low-rank updates of each other."""

    def make(folder: Path) -> None:
        for i in range(count):
            here = model(folder / f"m{i or ''}")
            (here / "manifest.json").unlink()
            (here / "model.safetensors").rename(here / "adapter.safetensors")
            config = json.loads((here / "config.json").read_text())
            following = (i + 1) % count if circular else i + 1
            config["lora"] = {"source": str(folder / f"m{following or ''}")}
            (here / "config.json").write_text(json.dumps(config))

    return make


def published() -> dict[str, Any]:
    """The state dict of a small DiT."""
    net = ditlab.create("DiT", **NET | {"channels": 4, "learn_variance": True})
    return dict(to_official(Pipeline(net, Objective(DDPM(), "eps", learn_variance=True))))


def repeated(folder: Path) -> None:
    """A tensor of stride 0."""
    label = torch.zeros(1, 1, dtype=torch.float16).expand(2_000_000_000, 32)
    torch.save(published() | {"y_embedder.embedding_table.weight": label}, folder / "m.pt")


def old_format(folder: Path) -> None:
    """A pickle without a zip archive, whose storage claims terabytes."""
    torch.save({"w": torch.zeros(8)}, folder / "m.pt", _use_new_zipfile_serialization=False)
    content = (folder / "m.pt").read_bytes()
    (folder / "m.pt").write_bytes(content.replace(b"K\x08N", b"\x8a\x06" + (10**13).to_bytes(6, "little") + b"N"))


def compressed(name: str, start: bytes, gib: float) -> Callable[[Path], None]:
    """A zip archive with zeros."""

    def make(folder: Path) -> None:
        file, _, member = name.partition(":")
        with (
            zipfile.ZipFile(folder / file, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(member, "w", force_zip64=True) as opened,
        ):
            opened.write(start)
            for _ in range(int(gib * 256)):
                opened.write(bytes(2**22))

    return make


def header(shape: tuple[int, ...]) -> bytes:
    """The start of a `.npy` file."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def uncompressed(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """A sample file with a header that says too much."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "a.npz", "w") as archive:
            archive.writestr("arr_0.npy", header(shape) + bytes(64))

    return make


def png(width: int, height: int, channels: int = 3) -> bytes:
    """A PNG file of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + channels * width)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    size = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def images(width: int, height: int, count: int, channels: int = 3) -> Callable[[Path], None]:
    """A folder of equal PNG files."""

    def make(folder: Path) -> None:
        content = png(width, height, channels)
        (folder / "d").mkdir()
        for i in range(count):
            (folder / "d" / f"{i}.png").write_bytes(content)

    return make


def written(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    """A file beside a good image."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content())
        if name.startswith("d/"):
            Image.new("L", (32, 32)).save(folder / "d" / "good.png")

    return make


def gif() -> bytes:
    """An animation of 100,000 frames."""
    content = io.BytesIO()
    frames = [Image.new("L", (8, 8), i) for i in range(2)]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    text = content.getvalue()
    return text[:-1] + text[text.rindex(b"\x21\xf9") : -1] * 100_000 + b";"


def tiff_pages() -> bytes:
    """A million pages: directories of one tag each."""
    entry = struct.pack("<HHHII", 1, 256, 4, 1, 8)
    places = (8 + (len(entry) + 4) * (i + 1) for i in range(1_000_000))
    return b"II*\0" + struct.pack("<I", 8) + b"".join(entry + struct.pack("<I", place) for place in places)


def tiff(width: int, height: int, channels: int) -> bytes:
    """A TIFF file with a header and hardly any pixels."""
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, channels), (278, height)]
    tags += [(279, 16), (284, 1)]
    start = b"II*\0" + struct.pack("<I", 24) + zlib.compress(bytes(64))[:16].ljust(16)
    return (
        start
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
        + bytes(4)
    )


def member(kind: bytes) -> bytes:
    """A tar shard with a member of a quadrillion bytes."""
    info = tarfile.TarInfo("a.png")
    info.size, info.type = 10**15, kind
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)


def diffusers(folder: Path) -> None:
    """A folder of diffusers with a size that no weight depends on."""
    net = ditlab.create("DiT", **NET | {"channels": 4, "learn_variance": True})
    pipe = Pipeline(net.eval(), Objective(DDPM(), "eps", learn_variance=True))
    ditlab.checkpoints.convert(pipe, folder / "m", "diffusers")
    file = folder / "m" / "transformer" / "config.json"
    file.write_text(file.read_text().replace('"sample_size": 8', '"sample_size": 100000'))


def distant_block(folder: Path) -> None:
    """A weight of block 999,999,999."""
    tensors = published()
    save_file(tensors | {"blocks.999999999.x": torch.zeros(1)}, folder / "m.safetensors")


def cache(folder: Path) -> None:
    """A latent cache whose index claims more than its shards hold."""
    small = Patch(1, 2, 2, width=8, depth=1).eval().requires_grad_(False)
    data = InMemory(torch.zeros(5, 1, 8, 8).byte(), torch.zeros(5).long(), ["a"])
    encode(data, "images", small, folder / "c", QUIET, batch_size=4, shard=4, dtype="fp32")
    (folder / "r.toml").write_text('[model]\nname = "DiT"\nwidth = 32\ndepth = 1\nheads = 2\npatch = 2\n')
    file = folder / "c" / "index.json"
    file.write_text(file.read_text().replace('"entries": 4', '"entries": 1000000000000'))


def pipe(folder: Path) -> None:
    """A table that never ends."""
    images(32, 32, 1)(folder)
    os.mkfifo(folder / "labels.csv")


def schedules(folder: Path) -> None:
    """A file of a million schedules."""
    model(folder / "m")
    content = {"process": {"name": "linear"}, "sampler": "heun", "grids": {str(i): [1, 0] for i in range(10**6)}}
    (folder / "s.json").write_text(json.dumps(content))


SAMPLE = "sample {}/m --labels 1 --seeds 0 --steps 2 --sampler euler --out {}/out"
CONVERT = "convert {}/m.pt {}/out --to ditlab --heads 2"
DATA = "data {}/d --size 32"
CASES = [
    Case("a good model", lambda folder: model(folder / "m"), SAMPLE),
    Case("a good folder", images(64, 64, 8), DATA),
    Case(".pt: a tensor of stride 0, 128 GB", repeated, CONVERT),
    Case(".pt: 2 GiB of zeros, compressed", compressed("m.pt:m/data.pkl", b"\x80\x02", 2), CONVERT),
    Case(".pt: old format, 40 TB", old_format, CONVERT),
    Case("config.json: depth 10^9", configured(depth=10**9), SAMPLE),
    Case("config.json: size 100,000", configured(size=[100_000, 100_000]), SAMPLE),
    Case("config.json: size 8,000", configured(size=[8000, 8000]), SAMPLE),
    Case("config.json: 10^15 classes", configured(classes=10**15), SAMPLE),
    Case("config.json: width 10^9", configured(width=10**9), SAMPLE),
    Case("config.json: size of a U-Net", convolutional, SAMPLE),
    Case("config.json: 10^8 bytes", written("m/config.json", lambda: b"[" + b"[]," * 33_333_333 + b"[]]"), SAMPLE),
    Case("autoencoder: depth 10^9", configured("autoencoder", kind="patch", picture_channels=1, latent_channels=1,
         stride=1, width=8, depth=10**9), SAMPLE),
    Case("low-rank updates of itself", adapters(1, circular=True), SAMPLE),
    Case("low-rank updates in a circle", adapters(3, circular=True), SAMPLE),
    Case("low-rank updates, 200 deep", adapters(200, circular=False), SAMPLE),
    Case("safetensors: block 999,999,999", distant_block, "convert {}/m.safetensors {}/out --to ditlab --heads 2"),
    Case("safetensors: header of 10^15 bytes", written("m.pt", lambda: (10**15).to_bytes(8, "little") + b"{}" * 9),
         CONVERT),
    Case("diffusers: sample_size 100,000", diffusers, SAMPLE),
    Case("schedules.json: a million", schedules, "sample {}/m --labels 1 --seeds 0 --steps 7000000 "
         "--schedule {}/s.json --out {}/out"),
    Case("8 PNG files of 179 million pixels", images(SIDE, SIDE, 8), DATA, LARGEST_IMAGE),
    Case("3 with transparency", images(SIDE, SIDE, 3, 4), DATA, LARGEST_IMAGE),
    Case("8 exported", images(SIDE, SIDE, 8), DATA + " --export {}/out", LARGEST_IMAGE),
    Case("8 with --max-pixels 1000000", images(SIDE, SIDE, 8), DATA + " --max-pixels 1000000"),
    Case("PNG of 16,000,000x1", images(16_000_000, 1, 1), DATA + " --min-side 1 --export {}/out", 16_000_000),
    Case("sample from 16,000,000x1", lambda folder: (model(folder / "m"), images(16_000_000, 1, 1)(folder)),
         SAMPLE + " --image {}/d/0.png", 16_000_000),
    Case("GIF of 100,000 frames", written("d/a.gif", gif), DATA),
    Case("TIFF of a million pages", written("d/a.tif", tiff_pages), DATA),
    Case("TIFF of 10^9 x 10^9", written("d/a.tif", lambda: tiff(10**9, 10**9, 1)), DATA),
    Case("TIFF of 60,000 channels", written("d/a.tif", lambda: tiff(2000, 2000, 60_000)), DATA),
    Case(".npy of 10^12 x 10^12", written("d/a.npy", lambda: header((10**12, 10**12)) + bytes(64)), DATA),
    Case(".npz: 3.6 GiB of zeros", compressed("a.npz:arr_0.npy", header((59, 4096, 4096, 4)), 3.7), "data {}/a.npz"),
    Case(".npz: shape of 4 TB", uncompressed((10**6, 1000, 1000, 4)), "data {}/a.npz"),
    Case(".npz: negative shape", uncompressed((-4, 4, 4, 1)), "data {}/a.npz"),
    Case("tar: member of 10^15 bytes", written("a.tar", lambda: member(tarfile.REGTYPE)), "data {}/a.tar"),
    Case("tar: name of 10^15 bytes", written("a.tar", lambda: member(tarfile.GNUTYPE_LONGNAME)), "data {}/a.tar"),
    Case("tar: header of 10^15 bytes", written("a.tar", lambda: member(tarfile.XHDTYPE)), "data {}/a.tar"),
    Case("cache: 10^12 entries", cache, "train {}/r.toml --data.source={}/c --out {}/run"),
    Case("table: a pipe", pipe, DATA + " --labels {}/labels.csv"),
    Case("table: /dev/zero", images(32, 32, 1), DATA + " --labels /dev/zero"),
]  # fmt: skip


def run(case: Case, folder: Path, limit: int) -> dict[str, Any]:
    """Write the input of a case, and read it with a command whose memory is limited."""
    case.make(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    arguments = [part.replace("{}", str(folder)) for part in case.command.split()]
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, str(limit), str(folder / "peak"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
    )
    timer = threading.Timer(5 * LONGEST, process.kill)
    timer.start()
    assert process.stdout is not None
    output = process.stdout.read().decode("utf-8", "replace")
    process.wait()
    timer.cancel()
    peak, seconds = json.loads((folder / "peak").read_text()) if (folder / "peak").exists() else (limit, 1e9)
    lines = [line.strip(" │") for line in output.splitlines() if any(map(str.isalnum, line))]
    lines = [line for line in lines if line.startswith("ditlab: ")] or lines
    return {
        "input": case.name,
        "bytes": size,
        "peak": peak,
        "seconds": seconds,
        "exit": process.returncode,
        "answer": lines[-1].replace(f"{folder}/", "") if lines else "",
        "pixels": case.pixels,
        "traceback": "Traceback" in output or process.returncode not in (0, 2),
    }


def bound(row: dict[str, Any], base: int) -> int:
    """The memory that a command may take for an input."""
    return int(base + PER_BYTE * row["bytes"] + SPARE + PER_PIXEL * row["pixels"])


def main(folder: Path | None = None, *, limit_gib: float = 12.0, only: str = "", out: Path | None = None) -> None:
    """Run all cases.

    Args:
        folder: where the inputs are written; a temporary folder by default.
        limit_gib: limit of the address space of each command.
        only: run only the cases with this text in their names, and the good ones.
        out: JSON file for the results.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for case in CASES:
            if only not in case.name and not case.name.startswith("a good"):
                continue
            here = Path(place) / "case"
            here.mkdir()
            rows.append(run(case, here, int(limit_gib * 2**30)))
            shutil.rmtree(here)
            print(rows[-1], file=sys.stderr, flush=True)
    base = max(row["peak"] for row in rows if row["input"].startswith("a good"))
    for row in rows:
        row["within"] = row["peak"] <= bound(row, base) and row["seconds"] < LONGEST and not row["traceback"]
    show(rows)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(0 if all(row["within"] for row in rows) else 1)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the results."""
    table = Table("input", "bytes", "peak MiB", "CPU s", "exit", "within", "answer")
    for row in rows:
        numbers = (f"{row['bytes']:,}", f"{row['peak'] / 2**20:,.0f}", f"{row['seconds']:.1f}", str(row["exit"]))
        table.add_row(row["input"], *numbers, "yes" if row["within"] else "NO", row["answer"][:160])
    Console(width=220).print(table)


if __name__ == "__main__":
    cyclopts.run(main)
