"""Commands about a data set and its latents."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from ditlab.cli.terminal import Json, app, claim_folder, command, print_json, say, screen
from ditlab.config.sections import AutoencoderTraining, Preparation, Whole
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError


@app.command(group="Pictures")
def data(
    source: str,
    /,
    *,
    sheet: Path | None = None,
    labels: str = "",
    export: Path | None = None,
    count: Whole = 1000,
    json: Json = False,
) -> None:
    """Look at pictures before training: classes, sizes, broken files, duplicates, a contact sheet.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], or, with --export, a built-in data set.
    sheet
        Write a contact sheet, as PNG.
    labels
        CSV or JSONL file with the labels of a flat folder.
    export
        Write the first pictures of a built-in data set into this folder, by class, instead.
    count
        How many pictures to export.
    json
        Print one JSON object.
    """
    from ditlab.data import open_dataset, open_source
    from ditlab.data.images import write_folder
    from ditlab.data.survey import sample_sheet, survey

    if export is not None:
        claim_folder(export, overwrite=False)
        write_folder(open_dataset(source), export, count)
        say(f"{count:,} pictures are in {export}")
        return
    pictures = open_source(source, labels)
    found = survey(pictures, screen)
    if sheet is not None:
        sample_sheet(pictures, sheet)
    if json:
        print_json(dataclasses.asdict(found))
        return
    Console().print(*found.tables(), sep="\n")
    if sheet is not None:
        say(f"contact sheet: {sheet}")


@app.command(group="Pictures")
def train_autoencoder(
    source: str,
    /,
    *,
    out: Path,
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    settings: Annotated[AutoencoderTraining | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Train a small autoencoder on pictures; the same command again resumes.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], or a built-in data set.
    out
        The folder that the autoencoder becomes.
    pictures
        How they are read and made equally large.
    settings
        Network and training.
    json
        Print one JSON object.
    """
    from ditlab.data import open_dataset
    from ditlab.training.autoencoder import train_autoencoder

    dataset = open_dataset(source, pictures, out / "skipped.csv")
    done = train_autoencoder(dataset, settings or AutoencoderTraining(), out, screen)
    if json:
        print_json(dataclasses.asdict(done))
        return
    say(
        f"{done.parameters / 1e6:.2f} M parameters in {done.seconds:.0f} s; on {done.held_out} pictures that it has "
        f"not seen: PSNR {done.psnr:.2f} dB, SSIM {done.ssim:.3f}; look at {out / 'reconstructions.png'}; "
        f"try: {command()} encode {source} --autoencoder {out} --out cache"
    )


@app.command(group="Pictures")
def encode(
    source: str,
    /,
    *,
    autoencoder: str,
    out: Path,
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    batch_size: Whole = 64,
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16",
    shard: Whole = 4096,
    scale: float | None = None,
    tile: Whole | None = None,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Encode pictures into a latent cache, to train on; the same command again goes on where it stopped.

    Under torchrun the processes share the work.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], or a built-in data set.
    autoencoder
        Folder, file or hub id.
    out
        The cache.
    pictures
        How they are read and made equally large.
    batch_size
        Pictures encoded at a time.
    dtype
        Precision in which the latents are stored.
    shard
        Pictures in a file of the cache.
    scale
        Scale of the latents, for an autoencoder in a single file that does not say it.
    tile
        Encode in tiles of so many pixels, for pictures that do not fit into memory.
    device
        auto, cpu, cuda, mps.
    json
        Print one JSON object.
    """
    from ditlab.autoencoders import Latent
    from ditlab.checkpoints import load_autoencoder
    from ditlab.data import open_dataset
    from ditlab.data.latents.encode import encode

    own = load_autoencoder(autoencoder, scale=scale, device=pick_device(device))
    if not isinstance(own, Latent):
        raise InputError(f"{autoencoder} has no latents of its own to cache; give one with latents")
    if tile is not None:
        own.tile(tile)
    rank, world = process_place()
    dataset = open_dataset(source, pictures, out / (f"skipped-{rank}.csv" if rank else "skipped.csv"))
    done = encode(
        dataset,
        source,
        own,
        out,
        screen,
        batch_size=batch_size,
        dtype=dtype,
        shard=shard,
        rank=rank,
        world=world,
    )
    if json:
        print_json(dataclasses.asdict(done))
        return
    rate = done.images / done.seconds if done.seconds else 0.0
    whole = "other processes still write" if done.entries is None else f"{done.entries:,} entries in {out}"
    if dataset.skipped:
        whole += f"; {len(dataset.skipped)} pictures could not be read: {out / 'skipped.csv'}"
    say(f"encoded {done.images:,} pictures at {rate:,.1f}/s, {done.waited:.1%} of it waiting for them; {whole}")
