"""The images that a model generates for an evaluation, and everything that determines them."""

from typing import Any

import torch
from rich.console import Console

from ditlab.checkpoints import load
from ditlab.config.evaluation import CheckpointOptions, SampleSource
from ditlab.config.reader import parse_sides, parse_size
from ditlab.core.errors import InputError
from ditlab.core.units import sides_of
from ditlab.evaluation.references import short_hash
from ditlab.inference.base import BasePipeline
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.plan import Plan
from ditlab.inference.samples import Samples
from ditlab.inference.sizes import trained_sizes


def load_for(source: str, settings: CheckpointOptions, device: torch.device) -> Pipeline:
    """Load the model of an evaluation."""
    options: dict[str, Any] = {"heads": settings.heads} if settings.heads else {}
    options |= {name: value for name in ("classes", "sit") if (value := getattr(settings, name)) is not None}
    if settings.latent_size:
        options["size"] = parse_size(settings.latent_size)
    options |= {"autoencoder": settings.autoencoder or None, "base": settings.base or None}
    return load(source, weights=settings.weights, device=device, **options)


def samples_of(
    pipe: BasePipeline, settings: SampleSource, console: Console | None = None, size: str = ""
) -> tuple[Samples, dict[str, Any]]:
    """The samples of a model, which are generated when they are read, and everything that determines them."""
    options = settings.sampling().given()
    if size:
        options["size"] = parse_sides(size)
    elif len(sizes := trained_sizes(pipe)) > 1:
        raise InputError(
            f"this model is trained on {len(sizes)} sizes of images, and an evaluation compares images of one size; "
            f"give size, such as {sides_of(sizes[0])}"
        )
    samples = Samples(
        pipe, settings.count, labels=settings.label_sampling, seed=settings.seed, batch_size=settings.batch_size,
        options=options, prompts=settings.prompts_from, precision=settings.precision, console=console,
    )  # fmt: skip
    # The keys of version 0.1 are kept, because folder names of results contain a hash of them.
    protocol = protocol_settings(samples.plan) | {
        "labels": settings.label_sampling,
        "seed": settings.seed,
        "count": settings.count,
        "weights": settings.weights,
        "precision": settings.precision,
        "model": pipe.model.identity(),
        "size": list(samples.size),
    }
    protocol |= {"prompts": short_hash({"prompts": samples.prompts})} if samples.prompts else {}
    return samples, protocol


def protocol_settings(plan: Plan) -> dict[str, Any]:
    """The sampling settings in a protocol, with the keys of version 0.1."""
    options = plan.options
    settings: dict[str, Any] = {
        "num_inference_steps": options.steps,
        "sampler": options.sampler,
        "grid": plan.schedule,
        "guidance_scale": plan.guidance,
        "guidance_interval": list(plan.interval),
        "guidance_channels": options.guidance_channels,
        "eta": options.eta,
    }
    later = ("reuse", "reuse_error", "shift", "guidance_rescale", "skip_layers", "skip_guidance", "skip_interval")
    return settings | {key: value for key, value in plan.settings().items() if key in later}
