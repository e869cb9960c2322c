"""Train a small autoencoder on your images.

The loss is the sum of L1, L1 of the differences between neighboring pixels at three scales (which keeps edges sharp
without a pretrained network), and the KL divergence to a unit Gaussian. At the end, shift and scale are computed with
which the latents have mean 0 and variance 1 in each channel.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.autoencoders import Latent, Patch, create_autoencoder
from ditlab.checkpoints import save_autoencoder
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.fields import check_settings
from ditlab.config.sections import Data, Optim
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting, read_object
from ditlab.core.io import AGAIN, held, is_vacant, replace_text, replacing, writing
from ditlab.core.terminal import say
from ditlab.core.types import Batch
from ditlab.core.units import counted, describe_difference
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.core.weights import read_state, write_pickle
from ditlab.data import Dataset, ahead, training_order
from ditlab.data.summary import report_data, report_unreadable
from ditlab.evaluation.features import Features, open_features
from ditlab.evaluation.gather import check_fit
from ditlab.evaluation.reconstruction import ReconstructionFD, psnr, reconstruction_fd, ssim
from ditlab.report.sheets import contact_sheet, to_pil
from ditlab.training.autoencoder_step import State, choose_precision, make_optimizer, step
from ditlab.training.data_index import DataIndex
from ditlab.training.files import refuse_other_run
from ditlab.training.log import RunLog
from ditlab.training.optim import learning_rate
from ditlab.training.preview import Guard
from ditlab.training.signals import end, interruption

SETTINGS, STATE, RESULT = "settings.json", "training.pt", "result.json"
START = 1024  # images from whose patches the initial weights, principal components, are computed
MEASURED = 4096  # images from which mean and standard deviation of the latents are computed
OWN_FEATURES = "digits", "glyphs"  # features of built-in data, which need no weights
EVALUATED = 512  # held-out images on which the scores are computed


@dataclass(frozen=True)
class Trained:
    """The scores of a trained autoencoder on held-out images."""

    psnr: float  # dB, mean over images
    ssim: float
    held_out: int  # images evaluated
    parameters: int
    seconds: float
    folder: Path
    images: int  # trained on, including repeats
    fd: ReconstructionFD | None = None  # Frechet distances in the features of the data, where there are some


def train_autoencoder(
    dataset: Dataset,
    settings: AutoencoderTraining,
    out: Path,
    console: Console,
    source: str = "images",
    features: Features | None = None,
) -> Trained:
    """Train an autoencoder, normalize its latents, evaluate and save it; the same call resumes an interrupted run.

    Args:
        dataset: images, of which the share `settings.held_out` is held out for the scores.
        settings: settings of the network and of training.
        out: folder for the autoencoder, which `load_autoencoder` reads, with metrics and `reconstructions.png`.
        console: where progress is shown.
        source: name of the data set, for the summary of the data in the folder (`data.json`).
        features: features in which the Frechet distance of reconstructions is computed (default: those of the built-in
            digits and letters; other data have none).

    Raises:
        InputError: the folder holds something else or is in use, or the network or the features do not fit the images.
    """
    with held(out):
        return train_here(dataset, settings, out, console, source, features)


def train_here(
    dataset: Dataset,
    settings: AutoencoderTraining,
    out: Path,
    console: Console,
    source: str,
    features: Features | None,
) -> Trained:
    """Run `train_autoencoder` in a folder that this process has locked."""
    state = begin(dataset, settings, pick_device(settings.device))
    training, held_out = split(len(dataset), settings)
    features = features or (open_features(dataset.features) if dataset.features in OWN_FEATURES else None)
    if features:
        check_features(dataset, held_out, features)
    claim(out, settings, dataset)
    report_data(dataset, source, out, console)
    resumed = restore(state, out)
    dataset.check(console, resumed=resumed)
    report_unreadable(dataset, source, out, console)
    if not resumed:
        images = dataset.fetch(training[:START]).x
        state.autoencoder.start_from(images)
        choose_precision(state, images[: settings.batch], settings)
    loop(state, dataset, training, held_out, settings, out, console)
    normalized = normalize(state.autoencoder.eval().requires_grad_(False), dataset, training)
    save_autoencoder(normalized, out)
    pairs = reconstructions(normalized, dataset, held_out)
    mean_psnr, mean_ssim = evaluate(pairs, dataset.values)
    parameters = sum(p.numel() for p in normalized.parameters())
    fd = distances(pairs, dataset, training, features) if features else None
    result = Trained(mean_psnr, mean_ssim, len(held_out), parameters, round(state.seconds, 1), out, state.seen, fd)
    replace_text(out / RESULT, json.dumps(asdict(result), default=str) + "\n")
    return result


def loop(
    state: State,
    dataset: Dataset,
    training: Tensor,
    held_out: Tensor,
    settings: AutoencoderTraining,
    out: Path,
    console: Console,
) -> None:
    """Train from `state.seen` images to the end, by images or by time, or until Ctrl-C."""
    schedule = Optim(lr=settings.lr, warmup=settings.images // 20, schedule="cosine")
    limit = 60 * settings.minutes or math.inf
    started, guard = time.monotonic() - state.seconds, Guard(partial(say, console))
    files, mixed = dataset.fetched_files(Data().shuffle_shards), Data().shuffle_shards
    files = None if files is None else files[training]
    order = training_order(len(training), settings.batch, settings.seed, state.seen, files, mixed)
    with (
        RunLog(
            out / "metrics.jsonl", state.seen, settings.images, console, seconds=max(0.0, limit - state.seconds)
        ) as log,
        interruption() as signals,
    ):
        reader = ahead(order, lambda indices: dataset.fetch(training[indices]))
        for batch in readable(reader, state, out):
            if state.seen >= settings.images or state.seconds >= limit:
                return
            position = max(state.seen, int(settings.images * state.seconds / limit))
            rate = learning_rate(schedule, position, settings.images)
            loss, norm = step(state, batch.x, settings, rate)
            before, state.seen, state.seconds = state.seen, state.seen + settings.batch, time.monotonic() - started
            finished = state.seen >= settings.images or state.seconds >= limit

            def means(loss: Tensor = loss, norm: Tensor = norm) -> dict[str, Any]:
                return {"loss": loss.item(), "grad_norm": norm.item()}

            log.show(state.seen, means)
            due = before // settings.log_every != state.seen // settings.log_every or finished
            if due:
                log.write(state.seen, means() | {"lr": rate})
            if due or signals:
                save(state, out)
                with (
                    guard(f"preview at {counted(state.seen, 'image')}"),
                    replacing(out / "reconstructions.png") as draft,
                ):
                    preview(state.autoencoder, dataset, held_out).save(draft, format="PNG")
            if signals:
                say(console, f"saved {out} at {counted(state.seen, 'image')}; the same command resumes")
                end(signals[0])


def readable(batches: Iterator[Batch], state: State, out: Path) -> Iterator[Batch]:
    """Pass on batches; if one cannot be read, save the state before the error is raised.

    Raises:
        InputError: the images of a batch cannot be read.
    """
    try:
        yield from batches
    except InputError as error:
        save(state, out)
        raise InputError(
            f"{error}; {out} is saved at {counted(state.seen, 'image')}, and the same command resumes"
        ) from error


def begin(dataset: Dataset, settings: AutoencoderTraining, device: torch.device) -> State:
    """A new autoencoder for these images, with its optimizer."""
    check_settings(settings)
    if not 0 < settings.held_out < 1:
        raise InputError(f"held_out is {settings.held_out}; give a share between 0 and 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        autoencoder = Patch(
            dataset.channels, settings.latent_channels, settings.stride, settings.width, settings.depth
        ).to(device)
    if dataset.buckets is not None:
        raise InputError("an autoencoder is trained on images of one size, and size is native; give HEIGHTxWIDTH")
    autoencoder.latent_shape(dataset.channels, dataset.size)  # raises an error if the stride does not divide the sides
    autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return State(autoencoder, make_optimizer(autoencoder, settings.lr))


def split(count: int, settings: AutoencoderTraining) -> tuple[Tensor, Tensor]:
    """Split a data set: indices for training, and up to `EVALUATED` held-out indices.

    Raises:
        InputError: there are too few images to hold any out.
    """
    held_out = round(count * settings.held_out)
    if held_out < 1 or held_out == count:
        raise InputError(
            f"{counted(count, 'image')}, of which a share of {settings.held_out} is held out; give more images"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    return order[held_out:], order[:held_out][:EVALUATED]


def claim(out: Path, settings: AutoencoderTraining, dataset: Dataset) -> None:
    """Create the folder, or check that it holds this run on these images.

    Raises:
        InputError: the folder holds another run or something else; nothing is changed.
    """
    file, now, index = out / SETTINGS, asdict(settings), DataIndex.of(out, dataset)
    if file.exists():
        with interpreting(file, "remove the folder to train from the start"):
            before = read_object(file)
        fixed = [field.name for field in fields(settings) if field.metadata.get("resume") != "free"]
        differing = [key for key in fixed if before.get(key) != now[key]]
        images = [f"other images: {index.changes}"] if index.changes else []
        refuse_other_run(out, [describe_difference(key, before.get(key), now[key]) for key in differing] + images)
    elif not is_vacant(out):
        raise InputError(f"{out} exists and holds no autoencoder run; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(now, indent=1) + "\n")
    index.save(out)


def save(state: State, out: Path) -> None:
    """Write the training state completely or not at all.

    Raises:
        InputError: weights are not finite, or the disk is full; the previous state is kept.
    """
    if not all(bool(p.isfinite().all()) for p in state.autoencoder.parameters()):
        raise InputError(f"the weights are no longer finite after {counted(state.seen, 'image')}; give a lower lr")
    content = {"net": state.autoencoder.state_dict(), "optimizer": state.optimizer.state_dict()}
    with writing(out / STATE, AGAIN):
        write_pickle(
            content | {"seen": state.seen, "seconds": state.seconds, "precision": state.precision}, out / STATE
        )


def restore(state: State, out: Path) -> bool:
    """Load the saved state; returns whether there is one.

    Raises:
        InputError: the saved state is damaged.
    """
    file = out / STATE
    if not file.exists():
        return False
    with interpreting(file, "remove it to train from the start"):
        saved: dict[str, Any] = read_state(file)
        state.autoencoder.load_state_dict(saved["net"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.seen, state.seconds = int(saved["seen"]), float(saved["seconds"])
        state.precision = str(saved["precision"])
    return True


def batches(dataset: Dataset, indices: Tensor) -> Iterator[Tensor]:
    """The images with these indices, 64 at a time."""
    for part in torch.split(indices, 64):
        yield dataset.fetch(part).x


@torch.no_grad()
def normalize(autoencoder: Latent, dataset: Dataset, training: Tensor) -> Latent:
    """A copy of the autoencoder whose shift and scale give latents mean 0 and variance 1 in each channel."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for images in batches(dataset, training[:MEASURED]):
        moments = autoencoder.encode(images.to(next(autoencoder.parameters()).device)).cpu()
        mean, log_variance = moments.double().chunk(2, 1)  # on the CPU, because some devices have no float64
        total = total + mean.sum((0, 2, 3))
        squares = squares + (mean.square() + log_variance.exp()).sum((0, 2, 3))
        count += mean.numel() // mean.shape[1]
    shift = total / count
    scale = (squares / count - shift**2).rsqrt()
    normalized = create_autoencoder(**autoencoder.config | {"shift": shift.tolist(), "scale": scale.tolist()})
    assert isinstance(normalized, Latent)
    normalized.load_state_dict(autoencoder.state_dict())
    return normalized.to(next(autoencoder.parameters()).device).eval().requires_grad_(False)


@torch.no_grad()
def reconstruct(autoencoder: Latent, images: Tensor, values: PixelValues = EIGHT_BITS) -> Tensor:
    """Encode images with these values to the mean of their posterior and decode it; returns images on the CPU."""
    mean = autoencoder.encode(images.to(next(autoencoder.parameters()).device)).chunk(2, 1)[0]
    return autoencoder.decode_as(autoencoder.normalised(mean), values).cpu()


def reconstructions(autoencoder: Latent, dataset: Dataset, indices: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of images, and of their reconstructions."""
    return [(images, reconstruct(autoencoder, images, dataset.values)) for images in batches(dataset, indices)]


def evaluate(pairs: list[tuple[Tensor, Tensor]], values: PixelValues) -> tuple[float, float]:
    """Mean PSNR (dB) and mean SSIM of reconstructions, in the range of the values of the images."""
    peak = 255.0 if values.eight_bits else 1.0
    if not values.eight_bits:
        pairs = [(values.share(a), values.share(b)) for a, b in pairs]
    scores = [torch.cat([measure(a, b, peak) for a, b in pairs]).mean().item() for measure in (psnr, ssim)]
    return scores[0], scores[1]


def check_features(dataset: Dataset, held_out: Tensor, features: Features) -> None:
    """Check that a Frechet distance of the held-out images can be computed.

    Raises:
        InputError: the features do not support the images, or there is only one held-out image.
    """
    check_fit(dataset, features)
    if len(held_out) < 2:
        raise InputError("1 held-out image has no Frechet distance; give more images, or a larger held_out")


def distances(
    pairs: list[tuple[Tensor, Tensor]], dataset: Dataset, training: Tensor, features: Features
) -> ReconstructionFD:
    """The Frechet distances to up to `MEASURED` training images."""
    shown = dataset.values.displayed
    reference = (shown(images) for images in batches(dataset, training[:MEASURED]))
    return reconstruction_fd([(shown(a), shown(b)) for a, b in pairs], reference, features)


def preview(autoencoder: Latent, dataset: Dataset, held_out: Tensor) -> Image.Image:
    """A contact sheet of held-out images above their reconstructions."""
    images, values = dataset.fetch(held_out[:12]).x, dataset.values
    reconstructed = reconstruct(autoencoder.eval(), images, values)
    return contact_sheet([to_pil(values.displayed(x)) for x in (images, reconstructed)], ["real", "reconstructed"])
