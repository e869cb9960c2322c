"""Tar shards in an object store against the same shards on a local disk, with a store on this machine.

python benchmarks/remote.py [SHARDS] [IMAGES]     200 shards of 20 images; needs s3fs and moto[server]

Prints images per second of wall-clock and of CPU time: local disk, first pass from the store with listing, and once
copied (medians of five passes in turns). Then it checks that a resumed order is exact, and that four processes read
each image of an epoch once.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import boto3
import torch
from moto.server import ThreadedMotoServer
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.data import Dataset, ahead, kept, open_dataset, training_order
from ditlab.data.base import announced

SHARDS, IMAGES = 200, 20
BATCH, MIXED, ROUNDS, RANKS = 100, 8, 5, 4
SETTINGS = Preparation(size="64")


def jpeg(generator: torch.Generator) -> bytes:
    """A JPEG file of 96x96 pixels."""
    small = torch.randint(0, 256, (12, 12, 3), dtype=torch.uint8, generator=generator).numpy()
    content = io.BytesIO()
    Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def write(folder: Path, shards: int, images: int) -> int:
    """Write the shards; returns their bytes."""
    generator = torch.Generator().manual_seed(0)
    for number in range(shards):
        with tarfile.open(folder / f"train-{number:04d}.tar", "w") as tar:
            for i in range(images):
                content, name = jpeg(generator), f"{number * images + i:06d}"
                for member, data in ((f"{name}.jpg", content), (f"{name}.cls", str(i % 10).encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return sum(file.stat().st_size for file in folder.iterdir())


def order_of(dataset: Dataset, files: torch.Tensor, seen: int = 0) -> list[torch.Tensor]:
    """The batches of an epoch from a position."""
    order = training_order(len(dataset), BATCH, 1, seen, files, MIXED)
    return list(islice(order, (len(dataset) - seen) // BATCH))


def rates(dataset: Dataset, batches: list[torch.Tensor]) -> tuple[float, float]:
    """Images per second, and per second of CPU time, of reading the batches of an epoch as training does."""
    started, used = time.perf_counter(), time.process_time()
    for _ in ahead(announced(iter(batches), dataset.expect, 16), dataset.fetch):
        pass
    count = BATCH * len(batches)
    return count / (time.perf_counter() - started), count / (time.process_time() - used)


def read_part(source: str, rank: int) -> None:
    """Print the indices that one of several processes reads in an epoch."""
    dataset = open_dataset(source, SETTINGS)
    share, read = BATCH // RANKS, []
    for indices in order_of(dataset, dataset.fetched_files(MIXED)):
        own = indices[rank * share : (rank + 1) * share]
        dataset.expect(own)
        assert dataset.fetch(own).index.tolist() == own.tolist()
        read += own.tolist()
    print(*read)


def measure(source: str, folder: Path, size: int) -> None:
    """Measure the passes over a source and over the same shards in a folder."""
    local = open_dataset(str(folder), SETTINGS)
    started = time.perf_counter()
    stored = open_dataset(source, SETTINGS)
    files = stored.fetched_files(MIXED)
    batches = order_of(stored, files)
    rates(stored, batches)
    first = len(stored) / (time.perf_counter() - started)
    passes = []
    for i in range(ROUNDS):  # in turns
        sources = {"local": local, "stored": stored}
        measured = {name: rates(sources[name], batches) for name in sorted(sources, reverse=i % 2 == 1)}
        passes.append((measured["local"], measured["stored"]))
    print(f"{len(stored):,} images in {size / 2**20:,.0f} MiB; first pass with listing: {first:,.0f} images/s")
    for number, clock in enumerate(("wall-clock", "CPU")):
        disk, copied = (sorted(pair[i][number] for pair in passes)[ROUNDS // 2] for i in (0, 1))
        shares = sorted(pair[1][number] / pair[0][number] for pair in passes)
        print(
            f"{clock}: local disk {disk:,.0f} images/s, once copied {copied:,.0f}; share of the local disk in each of "
            f"{ROUNDS} rounds: {', '.join(f'{share:.0%}' for share in shares)}"
        )
    position = BATCH * (len(batches) // 3)
    resumed = order_of(open_dataset(source, SETTINGS), files, position)
    exact = torch.equal(torch.cat(resumed), torch.cat(batches[len(batches) // 3 :]))
    print(f"resumed at {position:,} images: {'the same' if exact else 'ANOTHER'} order")


def check_ranks(source: str, count: int) -> None:
    """Read an epoch with several processes that share the copies, whose folder is empty at first."""
    command = [sys.executable, __file__, "--rank", source]
    environment = os.environ | {"DITLAB_CACHE": tempfile.mkdtemp()}
    workers = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(RANKS)
    ]
    times = Counter(index for worker in workers for index in worker.communicate()[0].split())
    print(f"{RANKS} processes read {len(times):,} of {count:,} images, at most {max(times.values())} time(s) each")


def main(shards: int, images: int) -> None:
    """Start a store, fill it, and measure."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "shards"
        folder.mkdir()
        size = write(folder, shards, images)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        address = "http://{}:{}".format(*server.get_host_and_port())
        os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": address}
        os.environ |= {
            "AWS_DEFAULT_REGION": "us-east-1",
            "XDG_CACHE_HOME": f"{place}/home",
            "DITLAB_CACHE": f"{place}/copies",
        }
        client = boto3.client("s3")
        client.create_bucket(Bucket="bench")
        for file in folder.iterdir():
            client.upload_file(str(file), "bench", file.name)
        source = f"s3://bench/train-{{0000..{shards - 1:04d}}}.tar"
        measure(source, folder, size)
        check_ranks(source, shards * images)
        server.stop()


if __name__ == "__main__":
    kept.SHARE = 0.0  # every pass decodes the images
    if sys.argv[1:2] == ["--rank"]:
        read_part(sys.argv[2], int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:3] or (SHARDS, IMAGES)))
