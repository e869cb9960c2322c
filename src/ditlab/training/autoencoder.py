"""Training a small autoencoder on one's own pictures.

Loss: L1, L1 of the differences between neighbours at three scales (edges stay sharp without a downloaded network),
and the KL divergence to a unit Gaussian. At the end the latents are measured, so that x0 has mean 0 and variance 1 in
each channel.
"""

import json
import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import Tensor

from ditlab.autoencoders import Latent, Patch, create_autoencoder
from ditlab.checkpoints import save_autoencoder
from ditlab.config.sections import AutoencoderTraining, Optim
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError
from ditlab.core.io import held, is_vacant, replace_text, replacing
from ditlab.data import Dataset, ahead, training_order
from ditlab.evaluation.reconstruction import psnr, ssim
from ditlab.report.sheets import contact_sheet, to_pil
from ditlab.training.log import RunLog
from ditlab.training.optim import learning_rate
from ditlab.training.signals import end, interruption

SETTINGS, STATE, RESULT = "settings.json", "training.pt", "result.json"
FREE = {"device", "log_every"}  # a run may be resumed with other values of these
START = 1024  # pictures of whose patches the principal components are taken
MEASURED = 4096  # pictures from which mean and spread of the latents are taken
JUDGED = 512  # held-out pictures that are reconstructed for the score


@dataclass(frozen=True)
class Trained:
    """How an autoencoder turned out, on pictures that it was not trained on."""

    psnr: float  # dB, mean over pictures
    ssim: float
    held_out: int  # pictures judged
    parameters: int
    seconds: float
    folder: Path


@dataclass
class State:
    """All that changes during training; what it holds is what is saved."""

    autoencoder: Patch
    optimizer: torch.optim.AdamW
    seen: int = 0
    seconds: float = 0.0


def train_autoencoder(dataset: Dataset, settings: AutoencoderTraining, out: Path, console: Console) -> Trained:
    """Train, measure the latents, judge and save; the same call again resumes.

    Args:
        dataset: uint8 pictures; the share `settings.held_out` of them is kept for the score.
        settings: of network and training.
        out: becomes a folder that `load_autoencoder` reads, with metrics and `reconstructions.png`.
        console: where progress is shown.

    Raises:
        InputError: a folder that holds something else or is in use, or pictures that the network does not fit.
    """
    with held(out):
        return train_here(dataset, settings, out, console)


def train_here(dataset: Dataset, settings: AutoencoderTraining, out: Path, console: Console) -> Trained:
    """`train_autoencoder`, in a folder that nobody else works in."""
    state = begin(dataset, settings, pick_device(settings.device))
    training, judged = split(len(dataset), settings)
    claim(out, settings)
    if not restore(state, out):
        state.autoencoder.start_from(dataset.fetch(training[:START]).x)
    loop(state, dataset, training, judged, settings, out, console)
    normalised = normalise(state.autoencoder.eval().requires_grad_(False), dataset, training)
    save_autoencoder(normalised, out)
    sharpness, likeness = judge(normalised, dataset, judged)
    parameters = sum(p.numel() for p in normalised.parameters())
    result = Trained(sharpness, likeness, len(judged), parameters, round(state.seconds, 1), out)
    replace_text(out / RESULT, json.dumps(asdict(result), default=str) + "\n")
    return result


def loop(
    state: State,
    dataset: Dataset,
    training: Tensor,
    judged: Tensor,
    settings: AutoencoderTraining,
    out: Path,
    console: Console,
) -> None:
    """Train from `state.seen` to the end, or to the next Ctrl-C."""
    schedule = Optim(lr=settings.lr, warmup=settings.images // 20, schedule="cosine")
    started = time.monotonic() - state.seconds
    order = training_order(len(training), settings.batch, settings.seed, state.seen)
    with RunLog(out / "metrics.jsonl", state.seen, settings.images, console) as log, interruption() as signals:
        for batch in ahead(order, lambda places: dataset.fetch(training[places])):
            if state.seen >= settings.images:
                return
            rate = learning_rate(schedule, state.seen, settings.images)
            loss, norm = step(state, batch.x, settings, rate)
            before, state.seen = state.seen, state.seen + settings.batch

            def means(loss: Tensor = loss, norm: Tensor = norm) -> dict[str, Any]:
                return {"loss": loss.item(), "grad_norm": norm.item()}

            log.show(state.seen, means)
            due = before // settings.log_every != state.seen // settings.log_every
            if due or signals or state.seen >= settings.images:
                log.write(state.seen, means() | {"lr": rate})
                state.seconds = time.monotonic() - started
                save(state, out)
                preview(state.autoencoder, dataset, judged).save(out / "reconstructions.png")
            if signals:
                console.print(f"saved {out} at {state.seen:,} images; the same command resumes", markup=False)
                end(signals[0])


def begin(dataset: Dataset, settings: AutoencoderTraining, device: torch.device) -> State:
    """A fresh autoencoder for these pictures."""
    if not 0 < settings.held_out < 1 or min(settings.images, settings.batch) < 1:
        raise InputError("images and batch must be 1 or more, held_out between 0 and 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        autoencoder = Patch(
            dataset.channels, settings.latent_channels, settings.stride, settings.width, settings.depth
        ).to(device)
    autoencoder.latent_shape(dataset.channels, dataset.size)  # refuses sides that the stride does not divide
    autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    return State(autoencoder, optimizer)


def split(count: int, settings: AutoencoderTraining) -> tuple[Tensor, Tensor]:
    """Indices for training, and up to `JUDGED` of those held out.

    Raises:
        InputError: too few pictures to hold any out.
    """
    held_out = round(count * settings.held_out)
    if held_out < 1 or held_out == count:
        raise InputError(f"{count} pictures, of which a share of {settings.held_out} is held out; give more pictures")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    return order[held_out:], order[:held_out][:JUDGED]


def step(state: State, images: Tensor, settings: AutoencoderTraining, rate: float) -> tuple[Tensor, Tensor]:
    """One step on uint8 pictures (B, C, H, W); returns loss and norm of the gradient."""
    autoencoder = state.autoencoder.train()
    chance = torch.Generator().manual_seed((settings.seed * 1_000_000_007 + state.seen) % 2**63)
    x = images.to(next(autoencoder.parameters()).device) / 127.5 - 1
    mean, log_variance = autoencoder.moments(x).chunk(2, dim=1)
    eps = torch.randn(mean.shape, generator=chance).to(x)
    y = autoencoder.pictures(mean + (log_variance / 2).exp() * eps)
    nats = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    loss = (y - x).abs().mean() + settings.edges * edge_error(y, x) + settings.kl * nats / x.numel()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    return loss.detach(), norm


def edge_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean error of the differences between neighbouring pixels, at full, half and quarter size."""
    error = a - b
    total = torch.zeros((), device=a.device)
    for _ in range(3):
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total / 3


def claim(out: Path, settings: AutoencoderTraining) -> None:
    """Begin the folder, or check that it holds this run.

    Raises:
        InputError: another run, or something else; nothing is touched.
    """
    file, now = out / SETTINGS, asdict(settings)
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for key in sorted(now.keys() - FREE):
            if before.get(key) != now[key]:
                raise InputError(
                    f"{out} holds another run ({key} is {before.get(key)} there, {now[key]} here); "
                    "give the same settings to resume it, or another --out"
                )
    elif not is_vacant(out):
        raise InputError(f"{out} exists and holds no autoencoder run; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(now, indent=1) + "\n")


def save(state: State, out: Path) -> None:
    """Write the training state, whole or not at all.

    Raises:
        InputError: weights that are not finite, or a disk that is full; the state before stays as it is.
    """
    if not all(bool(p.isfinite().all()) for p in state.autoencoder.parameters()):
        raise InputError(f"the weights are no longer finite after {state.seen:,} images; lower --lr")
    content = {"net": state.autoencoder.state_dict(), "optimizer": state.optimizer.state_dict()}
    try:
        with replacing(out / STATE) as draft:
            torch.save(content | {"seen": state.seen, "seconds": state.seconds}, draft)
    except (OSError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"cannot write {out / STATE}: {message}; free some space and run the command again") from error


def restore(state: State, out: Path) -> bool:
    """Take up the saved state, if there is one."""
    file = out / STATE
    if not file.exists():
        return False
    try:
        saved: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        state.autoencoder.load_state_dict(saved["net"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.seen, state.seconds = saved["seen"], saved["seconds"]
    except (RuntimeError, KeyError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}); remove it to train from the start") from error
    return True


def batches(dataset: Dataset, indices: Tensor) -> Iterator[Tensor]:
    """The pictures with these indices, 64 at a time."""
    for part in torch.split(indices, 64):
        yield dataset.fetch(part).x


@torch.no_grad()
def normalise(autoencoder: Latent, dataset: Dataset, training: Tensor) -> Latent:
    """The same autoencoder, with the shift and scale that give its latents mean 0 and variance 1 in each channel."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for images in batches(dataset, training[:MEASURED]):
        mean, log_variance = autoencoder.encode(images.to(next(autoencoder.parameters()).device)).double().chunk(2, 1)
        total = total + mean.sum((0, 2, 3)).cpu()
        squares = squares + (mean.square() + log_variance.exp()).sum((0, 2, 3)).cpu()
        count += mean.numel() // mean.shape[1]
    shift = total / count
    scale = (squares / count - shift**2).rsqrt()
    same = create_autoencoder(**autoencoder.config | {"shift": shift.tolist(), "scale": scale.tolist()})
    assert isinstance(same, Latent)
    same.load_state_dict(autoencoder.state_dict())
    return same.to(next(autoencoder.parameters()).device).eval().requires_grad_(False)


@torch.no_grad()
def reconstruct(autoencoder: Latent, images: Tensor) -> Tensor:
    """uint8 pictures through the mean of their posterior and back, on the CPU."""
    mean = autoencoder.encode(images.to(next(autoencoder.parameters()).device)).chunk(2, 1)[0]
    return autoencoder.decode(autoencoder.normalised(mean)).cpu()


def judge(autoencoder: Latent, dataset: Dataset, judged: Tensor) -> tuple[float, float]:
    """Mean PSNR and SSIM of the held-out pictures."""
    pairs = [(images, reconstruct(autoencoder, images)) for images in batches(dataset, judged)]
    scores = [torch.cat([measure(a, b) for a, b in pairs]).mean().item() for measure in (psnr, ssim)]
    return scores[0], scores[1]


def preview(autoencoder: Latent, dataset: Dataset, judged: Tensor) -> Image.Image:
    """Held-out pictures above their reconstructions."""
    images = dataset.fetch(judged[:12]).x
    return contact_sheet([to_pil(images), to_pil(reconstruct(autoencoder.eval(), images))], ["real", "kept"])
