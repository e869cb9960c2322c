"""Commands for images, autoencoders and latent caches."""

import dataclasses
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.cli.terminal import Json, app, command, print_json, say, screen
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.fields import Finite, Positive, Share, check_settings
from ditlab.config.sections import ImageSettings, Preparation
from ditlab.config.values import File, Folder, Location
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError
from ditlab.core.io import is_vacant
from ditlab.core.terminal import make_console
from ditlab.core.units import counted

if TYPE_CHECKING:
    from rich.table import Table

    from ditlab.data.latents.features import ImageFeatures
    from ditlab.training.autoencoder import Trained

PreparationOptions = Annotated[Preparation | None, Parameter(name="*")]
TrainingOptions = Annotated[AutoencoderTraining | None, Parameter(name="*")]


@dataclass(frozen=True)
class Encoding:
    """How images are encoded into a latent cache."""

    batch_size: Positive = 64
    """Images encoded at a time."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Precision of the stored latents."""
    shard: Positive = 4096
    """Images per file of the cache."""
    scale: Finite | None = None
    """Scale of the latents, for an autoencoder in a single file that does not contain it."""
    tile: Positive | None = None
    """Encode in tiles with this side in pixels, for images that do not fit into memory."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    part: str = ""
    """Encode one part, such as 3/8; other machines encode the others into the same folder, or to the same --upload."""
    upload: Location = ""
    """Address in a store, such as s3://bucket/latents, to which the finished files are copied."""
    repa: Location = ""
    """Folder or hub id of a DINOv2 whose features are stored beside the latents, for train.repa = cache."""

    def place(self) -> tuple[int, int]:
        """Index of this process among all that share the work, and their number: those of this machine and all parts.

        Raises:
            InputError: the part is not of the form 3/8.
        """
        rank, world = process_place()
        if not self.part:
            return rank, world
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise InputError(f'--part is "{self.part}"; give NUMBER/COUNT, such as 3/8')
        return (number - 1) * world + rank, count * world


@dataclass(frozen=True)
class CaptionEncoding:
    """How captions are encoded into a text cache."""

    captions: Annotated[bool, Parameter(negative="")] = False
    """Encode the captions instead of the images."""
    encoder: str = "minilm"
    """With --captions: the text encoder: minilm, transformers, sd3 or flux."""
    encoder_options: dict[str, float | str] = dataclasses.field(default_factory=dict)
    """With --captions: options of the encoder, such as --encoder-options.length 32."""
    caption_template: str = ""
    """With --captions: caption of images without one, such as "a photo of {class}"."""


EncodingOptions = Annotated[Encoding | None, Parameter(name="*")]


@app.command(group="Data")
def data(
    source: Location,
    /,
    *,
    sheet: File | None = None,
    export: Folder | None = None,
    count: Positive = 1000,
    images: PreparationOptions = None,
    json: Json = False,
) -> None:
    """Inspect images or clips before training: what is read and left out, classes, sizes, unreadable files, duplicates.

    Parameters
    ----------
    source
        A folder of images, a pattern, tar shards, hf:NAME[:SPLIT], an .npz file, or a built-in data set (digits,
        glyphs-32). With --frames, videos and animations.
    sheet
        Write a contact sheet (PNG); of clips, one with film strips.
    export
        Write the first images into this folder, with a sub-folder for each class, instead of inspecting them.
    count
        Number of images to export.
    images
        How images are read and resized, as in training.
    json
        Print one JSON object.
    """
    if export is not None:
        export_images(source, images or Preparation(), export, count)
    else:
        inspect_images(source, images or Preparation(), sheet, json)


def export_images(source: str, settings: Preparation, folder: Path, count: int) -> None:
    """Write the first images of a data source as PNG files."""
    from ditlab.data import is_cache, open_dataset
    from ditlab.data.images import write_folder
    from ditlab.data.summary import Summary, skipped_counts

    if is_cache(Path(source)):
        raise InputError(f"{source} is a latent cache and holds no images; give the source of its images")
    check_outside(source, folder, "the exported images")
    if not is_vacant(folder):
        raise InputError(f"{folder} is not empty; give another --export")
    if folder.resolve() == Path.cwd():
        raise InputError(f"{folder} is the current folder; give a folder in it")
    dataset = open_dataset(source, settings)
    Summary.of(dataset, source).show(screen)
    written = write_folder(dataset, folder, count)
    left_out = f"; {skipped_counts(dataset)}" if dataset.skipped else ""
    say(f"wrote {counted(written, dataset.noun)} to {folder}{left_out}")


def inspect_images(source: str, settings: Preparation, sheet: Path | None, json: bool) -> None:
    """Print statistics of a data source, and write a contact sheet if `sheet` is given."""
    from ditlab.data import parse_source, preprocessing
    from ditlab.data.clips.survey import survey_clips
    from ditlab.data.clips.timing import timing_of
    from ditlab.data.survey import sample_sheet, survey
    from ditlab.report.sheets import check_sheet

    if sheet is not None:
        check_outside(source, sheet, "the contact sheet")
        check_sheet(sheet)
    check_settings(settings)
    preprocess, timing = preprocessing(settings), timing_of(settings)
    images = parse_source(source, settings).images(settings)
    if timing is not None:
        clips = survey_clips(images, timing, screen, preprocess, sheet)
        print_survey(dataclasses.asdict(clips), clips.tables(), sheet, json)
        return
    result = survey(images, screen, preprocess.size, preprocess.native)
    if sheet is not None:
        sample_sheet(images, sheet, preprocess, settings)
    values = dataclasses.asdict(result) | {"pictures": result.images}  # the key of earlier versions
    print_survey(values, result.tables(), sheet, json)


def print_survey(values: dict[str, Any], tables: "list[Table]", sheet: Path | None, json: bool) -> None:
    """Print a survey as one JSON object, or as tables."""
    if json:
        print_json(values)
        return
    make_console().print(*tables, sep="\n")
    if sheet is not None:
        say(f"contact sheet: {sheet}")


def check_outside(source: str, out: Path, what: str) -> None:
    """Check that an output is not written where it would be an image of the source: into its folder, or as a match.

    Raises:
        InputError: it is.
    """
    from ditlab.data.sources import source_and_part
    from ditlab.data.sources.patterns import expand_braces, is_pattern

    source, _ = source_and_part(source)
    folder, probe = Path(source).resolve(), out if out.suffix else out / "000000.png"
    if is_pattern(source) and any(
        fnmatch(os.path.abspath(probe), os.path.abspath(pattern)) for pattern in expand_braces(source)
    ):
        raise InputError(f"{out} matches {source}, so {what} would become part of it; give another path")
    if Path(source).is_dir() and (folder in out.resolve().parents or folder == out.resolve()):
        raise InputError(f"{out} lies in {source}, so {what} would become part of it; give a path outside")


@app.command(group="Data")
def train_autoencoder(
    source: Location,
    /,
    *,
    out: Folder,
    held_out_share: Share = 0.0,
    images: Annotated[ImageSettings | None, Parameter(name="*")] = None,
    settings: TrainingOptions = None,
    json: Json = False,
) -> None:
    """Train a small autoencoder on images. Run the same command again to resume.

    Parameters
    ----------
    source
        A folder of images, tar shards, hf:NAME[:SPLIT], or a built-in data set.
    out
        Folder of the autoencoder.
    held_out_share
        Share of the images that the autoencoder does not see because the diffusion model will not (held_out there).
    images
        How images are brought to one size.
    settings
        Network and training.
    json
        Print one JSON object.
    """
    from ditlab.data import open_dataset
    from ditlab.training.autoencoder import train_autoencoder

    preparation = (images or ImageSettings()).divided(held_out_share)
    dataset = open_dataset(source, preparation, out / "skipped.csv")
    done = train_autoencoder(dataset, settings or AutoencoderTraining(), out, screen, source)
    if json:
        print_json(dataclasses.asdict(done))
    else:
        report_autoencoder(done, source, out, preparation)


def report_autoencoder(done: "Trained", source: str, out: Path, preparation: Preparation) -> None:
    """Print the scores of an autoencoder, and the command that encodes images with it."""
    distance = f", FD {fd.reconstructed:.2f} (real-vs-real {fd.real:.2f}, {fd.features})" if (fd := done.fd) else ""
    say(
        f"{done.parameters / 1e6:.2f} M parameters in {done.seconds:.0f} s; on "
        f"{counted(done.held_out, 'held-out image')}: "
        f"PSNR {done.psnr:.2f} dB, SSIM {done.ssim:.3f}{distance}; reconstructions: {out / 'reconstructions.png'}; "
        f"next: {command()} encode {quote(source)}{as_options(preparation)} "
        f"--autoencoder {quote(str(out))} --out cache"
    )


def as_options(settings: Preparation) -> str:
    """The options of a command that reads images in the same way; empty for the defaults."""
    words = ""
    for field in dataclasses.fields(settings):
        value, option = getattr(settings, field.name), field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, tuple):
            words += f" --{option} {' '.join(map(str, value))}"
        else:
            words += f" --{option}" if value is True else f" --{option}={quote(str(value))}"
    return words


@app.command(group="Data")
def encode(
    source: Location,
    /,
    *,
    autoencoder: Location | None = None,
    out: Folder,
    images: PreparationOptions = None,
    options: EncodingOptions = None,
    texts: Annotated[CaptionEncoding | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Encode images into a latent cache, or captions into a text cache, for training. The same command resumes.

    Under torchrun the images are distributed over the processes.

    Parameters
    ----------
    source
        A folder of images, tar shards, hf:NAME[:SPLIT], or a built-in data set.
    autoencoder
        Folder, file or hub id.
    out
        Folder of the cache.
    images
        How images are brought to one size.
    options
        How images are encoded.
    texts
        How captions are encoded.
    json
        Print one JSON object.
    """
    if (captions := texts or CaptionEncoding()).captions:
        if autoencoder is not None:
            raise InputError("--captions encodes captions and no images; leave --autoencoder out")
        encode_captions(source, out, images, captions, options or Encoding(), json)
    elif autoencoder is None:
        raise InputError("nothing to encode with; give --autoencoder, or --captions for the captions of the images")
    else:
        encode_images(source, autoencoder, out, images, options or Encoding(), json)


def encode_images(
    source: str, autoencoder: str, out: Path, preparation: Preparation | None, options: Encoding, json: bool
) -> None:
    """Write or complete a latent cache, and print a summary."""
    from ditlab.autoencoders import Latent
    from ditlab.checkpoints import load_autoencoder
    from ditlab.data import open_dataset
    from ditlab.data.latents.encode import encode
    from ditlab.data.summary import skipped_counts

    if Path(source).resolve() == out.resolve():
        raise InputError(f"{out} is the source and the output; give another --out")
    loaded = load_autoencoder(autoencoder, scale=options.scale, device=pick_device(options.device))
    if not isinstance(loaded, Latent):
        raise InputError(f"{autoencoder} works on pixels and has no latents to cache; give another autoencoder")
    if options.tile is not None:
        loaded.tile(options.tile)
    rank, world = options.place()
    dataset = open_dataset(source, preparation, out / (f"skipped-{rank}.csv" if rank else "skipped.csv"))
    done = encode(
        dataset, source, loaded, out, screen, batch_size=options.batch_size, dtype=options.dtype, shard=options.shard,
        rank=rank, world=world, upload=options.upload, features=image_features(options),
    )  # fmt: skip
    if json:
        print_json(dataclasses.asdict(done) | {"pictures": done.images})  # the key of earlier versions
        return
    state = (
        "other processes or parts are missing"
        if done.entries is None
        else f"{counted(done.entries, 'entry')} in {options.upload or out}"
    )
    what = dataset.noun
    if dataset.skipped:
        state += f"; {skipped_counts(dataset)}: {out / 'skipped.csv'}"
    speed = ""
    if done.images:
        speed = f" at {done.images / done.seconds:,.1f}/s, waiting for {what}s {done.waited:.1%} of the time"
    say(f"encoded {counted(done.images, what)}{speed}; {state}")


def image_features(options: Encoding) -> "ImageFeatures | None":
    """The encoder whose features are stored beside the latents; None without one."""
    if not options.repa:
        return None
    from ditlab.evaluation.features.dinov2 import DinoV2

    return DinoV2.load(options.repa, pick_device(options.device)).image_features(options.repa)


def encode_captions(
    source: str, out: Path, preparation: Preparation | None, texts: CaptionEncoding, options: Encoding, json: bool
) -> None:
    """Encode the different captions of a data source into a text cache, and print a summary."""
    from ditlab.conditioning import Text
    from ditlab.conditioning.cache import TextCache, bytes_of
    from ditlab.core.io import held
    from ditlab.core.progress import progress_bar
    from ditlab.data import open_dataset
    from ditlab.training.captions import Captions

    dataset = open_dataset(source, preparation)
    captions = Captions.of(dataset, texts.caption_template)
    settings = {"encoder": texts.encoder, "options": texts.encoder_options, "captions": captions.texts}
    encoder = Text.for_data(dataset, settings).encoder
    if encoder.shape.vocabulary:
        raise InputError(
            f"--encoder {texts.encoder} has no states to cache; choose a pretrained encoder, such as minilm"
        )
    rank, world = options.place()
    different = [text for text in captions.texts if text]
    with held(out, rank):
        cache = TextCache.prepare(out, encoder)
        new = cache.missing(different[rank::world])
        missing = [*new, *cache.missing([""][rank:])]
        size = len(missing) * bytes_of(encoder) / 2**20
        say(
            f"{counted(len(different), 'different caption')}, {len(new):,} to encode with {texts.encoder}"
            f"{', and the empty text' * (len(missing) > len(new))}: {size:,.1f} MiB ({encoder.shape.summary()})"
        )
        with progress_bar(screen) as bar:
            task = bar.add_task("encoding", total=len(missing))
            for count in cache.add(missing, encoder, f"part-{rank:04d}-" if world > 1 else ""):
                bar.advance(task, count)
        if options.upload:
            cache.publish(options.upload)
    if json:
        print_json({"captions": len(different), "encoded": len(new), "folder": out})
    else:
        say(f"encoded {counted(len(new), 'caption')} into {out}; train with data.text_cache = {out}")
