"""A model as people use it: network + objective + autoencoder + class names, in one folder.

    pipe = ditlab.load("runs/digits")
    pipe([3, "7"], seeds=[0, 1]).images

A saved model is a folder with `model.safetensors` (the weights) and `config.json` (everything else).
"""

import copy
import inspect
import json
import operator
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ditlab.autoencoders import Autoencoder, Pixel
from ditlab.backbones import Backbone
from ditlab.conditioning import ClassLabels, Conditioner
from ditlab.conditioning.base import settle
from ditlab.config.sections import Sample
from ditlab.core.device import out_of_memory
from ditlab.core.errors import InputError, lookup
from ditlab.core.hub import hub_library
from ditlab.core.types import Between, Condition, Denoise, Label, Seed, Step
from ditlab.core.version import __version__
from ditlab.core.weights import (
    AUTOENCODER,
    CONFIG,
    WEIGHTS,
    state_hash,
)
from ditlab.diffusion.guidance import autoguidance, cfg
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, process_name
from ditlab.diffusion.samplers import SAMPLERS, image_noise, time_grid
from ditlab.inference.card import model_card
from ditlab.inference.inpaint import Original, originals
from ditlab.inference.optimize.compilation import is_compiled
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.optimize.packing import packed
from ditlab.inference.optimize.precision import PRECISIONS, quick_precision
from ditlab.inference.optimize.reuse import Reuse
from ditlab.report.sheets import to_pil

# Settings by name, for models on a path (flow matching and the like) and on a chain of discrete steps (DDPM). Guidance
# and its interval are the model's own. What each costs and loses: docs/benchmarks.md.
QUALITIES: dict[str, dict[str, dict[str, Any]]] = {
    "draft": {
        "path": {"sampler": "ab4", "num_inference_steps": 5, "grid": "uniform"},
        "chain": {"sampler": "dpmpp", "num_inference_steps": 8, "grid": "uniform"},
    },
    "normal": {
        "path": {"sampler": "ab4", "num_inference_steps": 10, "grid": "uniform"},
        "chain": {"sampler": "dpmpp", "num_inference_steps": 16, "grid": "uniform"},
    },
    "best": {
        "path": {"sampler": "ab4", "num_inference_steps": 24, "grid": "uniform"},
        "chain": {"sampler": "dpmpp", "num_inference_steps": 50, "grid": "uniform"},
    },
    "reference": {
        "path": {"sampler": "heun", "num_inference_steps": 125, "grid": "uniform"},
        "chain": {"sampler": "ddpm", "num_inference_steps": 250, "grid": "uniform"},
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    # The protocol behind DiT-XL/2's published FID of 2.27 (Peebles & Xie 2023): 250 respaced ancestral steps with the
    # learned variance, no clipping, guidance on three of four channels.
    "dit-published": {
        "sampler": "ddpm",
        "num_inference_steps": 250,
        "grid": "uniform",
        "guidance_scale": 1.5,
        "guidance_channels": 3,
        "guidance_interval": (0.0, 1.0),
    },
}


@dataclass(frozen=True)
class Output:
    """What a pipeline returns."""

    images: Any
    """PIL images, float arrays (B, H, W, C) in 0..1 ("np"), float tensors (B, C, H, W) in 0..1 ("pt"), or latents."""


@dataclass(init=False)
class Pipeline:
    """A trained network with all that is needed to generate with it."""

    net: Backbone
    objective: Objective
    autoencoder: Autoencoder
    conditioner: Conditioner
    config: dict[str, Any]
    """Where the model comes from: `recipe`, `images_seen`; `sample` holds the defaults of sampling."""
    source: "Pipeline | None" = field(default=None, repr=False)
    """What it was prepared from: the model that is saved, exported and named."""

    def __init__(
        self,
        net: Backbone,
        objective: Objective,
        autoencoder: Autoencoder | None = None,
        classes: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        *,
        conditioner: Conditioner | None = None,
        source: "Pipeline | None" = None,
    ) -> None:
        """A model from its parts.

        Args:
            net, objective: the network, and how it was trained.
            autoencoder: of its latents; pixels if left out.
            classes: names of the classes of a class-conditional network.
            config: where the model comes from.
            conditioner: what turns labels or prompts into conditions; class labels with these names if left out.
            source: the model that this one was prepared from.

        Raises:
            InputError: parts that do not fit together.
        """
        self.net, self.objective, self.source = net, objective, source
        self.autoencoder = Pixel() if autoencoder is None else autoencoder
        self.conditioner = ClassLabels(net.classes, classes) if conditioner is None else conditioner
        self.config = {} if config is None else config
        if self.net.learn_variance != self.objective.learn_variance:
            raise InputError(
                f"learn_variance is {self.net.learn_variance} in the network and {self.objective.learn_variance} "
                "in the objective; make them equal"
            )
        channels = self.autoencoder.latent_channels
        if channels not in (None, self.net.channels):
            raise InputError(
                f"this autoencoder has latents of {channels} channels and the network takes {self.net.channels}; "
                "give the autoencoder that the model was trained with"
            )

    @property
    def defaults(self) -> Sample:
        """The sampling settings that the model was saved with."""
        settings = Sample(**self.config.get("sample", {}))
        low, high = settings.interval  # a list, fresh from JSON
        return replace(settings, interval=(low, high))

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none for another kind of condition."""
        return self.conditioner.names if isinstance(self.conditioner, ClassLabels) else []

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        self.conditioner = ClassLabels(self.net.classes, names)

    def steps(
        self,
        labels: Label | Sequence[Label] = None,
        *,
        seeds: Seed | Sequence[Seed] = 0,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        guide: "Pipeline | None" = None,
        grid: str | Tensor | None = None,
        eta: float | None = None,
        preset: str | None = None,
        reuse: int | Reuse | None = None,
        original: Original | None = None,
    ) -> Iterator[Step]:
        """Sample one batch and yield every `Step`: step.i, step.t, step.x (B, C, H, W) and step.x0.

        Args:
            labels: class indices or names, or None for "no condition"; one, or one for each image. `Between` two
                labels, the predictions for both are mixed.
            seeds: one, or one for each image: image i depends on labels[i] and seeds[i] alone. Where one of the two
                is single it is repeated. `Between` two seeds, the noise turns from the one to the other.
            num_inference_steps: steps of the sampler.
            sampler: a name in `ditlab.diffusion.samplers.SAMPLERS`.
            guidance_scale: classifier-free guidance, or autoguidance if a `guide` is given; 1 is none.
            guidance_interval: times t (0 data, 1 noise) between which guidance acts.
            guidance_channels: guide the first so many channels only; None is all.
            guide: a weaker model of the same task, for autoguidance.
            grid: a name in `GRIDS`, a file that `ditlab tune` wrote, or the falling times themselves
                (steps + 1,), down to 0.
            eta: noise of DDIM, from 0 (none) to 1.
            preset: "draft", "normal", "best" or "reference", or a name in `PRESETS`: its settings apply
                where none is given here.
            reuse: compute the network's inner part at every so many calls only, see `ditlab.inference.optimize.reuse`.
            original: pictures to start from, and what of them stays, see `Pipeline.original`.

        Omitted settings are those that the model was saved with.

        Raises:
            InputError: a label, name or number that cannot be used.
        """
        if preset is not None:
            given = {
                "num_inference_steps": num_inference_steps,
                "sampler": sampler,
                "guidance_scale": guidance_scale,
                "guidance_interval": guidance_interval,
                "guidance_channels": guidance_channels,
                "grid": grid,
            }
            settings = self.preset(preset) | {k: v for k, v in given.items() if v is not None}
            return self.steps(labels, seeds=seeds, guide=guide, eta=eta, reuse=reuse, original=original, **settings)
        default = self.defaults
        names, seeds = pair_up(labels, seeds)
        condition = self.conditioner.encode(names).to(self.net.device)
        scale = default.guidance if guidance_scale is None else guidance_scale
        interval = guidance_interval or default.interval
        count = default.steps if num_inference_steps is None else num_inference_steps
        process = self.objective.process
        if isinstance(grid, Tensor):
            times = grid.double().cpu()
        else:
            times = time_grid(grid or default.grid, process, count, self.objective.last_time())
        if original is not None:
            if len(original.pixels) not in (1, len(seeds)):
                raise InputError(f"{len(original.pixels)} pictures to start from for {len(seeds)} that are drawn")
            times = original.times(times)
        run = lookup(SAMPLERS, sampler or default.sampler, "sampler")
        if eta is not None:
            if "eta" not in inspect.signature(run).parameters:
                raise InputError(f"sampler {sampler or default.sampler} has no eta; leave it out or take ddim")
            run = partial(run, **{"eta": eta})
        if self.net.classes == 0 and guide is None:
            if guidance_scale not in (None, 1.0):
                raise InputError(f"guidance {scale} on an unconditional model; leave it out or give a guide model")
            scale = 1.0
        drawing = self._at(times, condition)
        again = Reuse(reuse) if isinstance(reuse, int) else reuse
        if again is not None and original is not None and original.resample > 1:
            raise InputError("reuse carries on along the time, which resample walks back; leave one of them out")
        if again is not None:
            drawing = replace(drawing, net=again.on(drawing.net))
        denoise = drawing._guided(condition, scale, interval, guidance_channels, guide and guide._at(times, condition))
        if again is not None:
            denoise = again.timed(denoise)
        noise = image_noise(seeds)
        x = noise(torch.empty(len(seeds), self.net.channels, *self.net.size, device=self.net.device))
        if original is not None:
            x = process.add_noise(original.x0.to(x), x, times[0])
            denoise = original.holding(denoise, process)
            return drawing._inference(original.walk(run, denoise, process, x, times, noise))
        # The spread that x_t has for data of unit variance; exactly 1 on variance-preserving processes, as in DiT.
        spread = float(torch.hypot(process.alpha(times[0]), process.sigma(times[0])))
        return drawing._inference(run(denoise, process, x * spread, times, noise))

    def prepared(self, precision: str = "auto") -> "Pipeline":
        """This pipeline for drawing on this machine: its network merged, cast once, and packed for its CPU.

        Args:
            precision: "float32", "bfloat16", or "auto" for the one in which matrix products of this network's width
                are quicker here, which is timed once for each machine. Pictures are float32 outside the network.

        Raises:
            InputError: another precision.
        """
        if self.source is not None:
            return self.source.prepared(precision)
        if precision == "auto":
            precision = quick_precision(self.net.matrix_width, self.net.device)
        elif precision not in PRECISIONS:
            raise InputError(f'unknown precision "{precision}"; choose from: auto, {", ".join(PRECISIONS)}')
        dtype = getattr(torch, precision)
        net = self.net.fused()
        if dtype is not net.dtype:
            net = copy.deepcopy(net).to(dtype)
        return replace(self, net=packed(net), source=self)

    def preset(self, name: str) -> dict[str, Any]:
        """The settings behind a name, for this model.

        Raises:
            InputError: an unknown name.
        """
        kind = "chain" if isinstance(self.objective.process, DDPM) else "path"
        return lookup({key: value[kind] for key, value in QUALITIES.items()} | PRESETS, name, "preset")

    def step_count(self, options: dict[str, Any]) -> int:
        """Steps of the sampler under these options of `steps`."""
        preset = self.preset(options["preset"]) if options.get("preset") else {}
        count = int(options.get("num_inference_steps") or preset.get("num_inference_steps") or self.defaults.steps)
        original = options.get("original")
        return count if original is None else original.calls(count)

    @property
    def picture_shape(self) -> tuple[int, tuple[int, int]]:
        """Channels and (height, width) of the pictures."""
        height, width = self.net.size
        stride = self.autoencoder.stride
        return self.autoencoder.picture_channels or self.net.channels, (height * stride, width * stride)

    def original(
        self,
        image: Image.Image | Sequence[Image.Image],
        *,
        mask: Image.Image | Sequence[Image.Image] | None = None,
        strength: float | None = None,
        resample: int | None = None,
    ) -> Original:
        """A picture to start from (image to image), or to draw a part of anew (in-painting).

        Args:
            image: any picture, or one for each that is drawn; made as large as the model's, as for training.
            mask: white is drawn anew, black stays; None is everywhere.
            strength: part of the way that is walked, up to 1, which begins with noise alone and leaves of the picture
                only what the mask keeps. The default is 1 with a mask and 0.6 without.
            resample: with a mask, each piece of the way is walked so often (2), so that the new agrees with the old.

        Raises:
            InputError: a picture, mask or number that cannot be used.
        """
        images, masks = ([each] if isinstance(each, Image.Image) else list(each or ()) for each in (image, mask))
        channels, size = self.picture_shape
        return originals(images, masks, self.autoencoder, channels, size, self.net.device, strength, resample)

    def _at(self, times: Tensor, condition: Condition) -> "Pipeline":
        """This pipeline made ready for these times and class labels alone."""
        drawing = self.fused()
        needed = [each.label for each in (condition, condition.other, self.null(1)) if each and each.label is not None]
        if is_compiled(drawing.net) or not needed:  # compiled blocks have their modulations inside
            return drawing
        labels = torch.cat(needed)
        clock = self.objective.process.clock(times).float()
        return replace(drawing, net=tabulated(drawing.net, clock, labels))

    def null(self, count: int) -> Condition:
        """Rows of "no condition" on the network's device."""
        return self.conditioner.null(count).to(self.net.device)

    def _guided(
        self,
        condition: Condition,
        scale: float,
        interval: tuple[float, float],
        channels: int | None,
        guide: "Pipeline | None",
    ) -> Denoise:
        denoiser = self.objective.denoiser(self.net)
        if guide is None:
            return cfg(denoiser, condition, self.null(len(condition)), scale, interval, channels)

        def task(pipe: Pipeline) -> tuple[object, ...]:
            return pipe.net.size, pipe.net.channels, pipe.net.classes, pipe.objective.process

        if task(guide) != task(self):
            raise InputError("the guide has another size, class count or process; give a weaker model of the same task")
        weak = guide.objective.denoiser(guide.net)
        return autoguidance(denoiser, weak, condition, scale, interval, channels)

    def _inference(self, steps: Iterator[Step]) -> Iterator[Step]:
        was_training = self.net.training
        self.net.eval()
        try:
            while True:
                with torch.no_grad():  # around each step only: it must not leak into the caller's code
                    step = next(steps, None)
                if step is None:
                    return
                yield step
        finally:
            self.net.train(was_training)

    def __call__(
        self,
        labels: Label | Sequence[Label] = None,
        *,
        seeds: Seed | Sequence[Seed] = 0,
        image: Image.Image | Sequence[Image.Image] | None = None,
        mask_image: Image.Image | Sequence[Image.Image] | None = None,
        strength: float | None = None,
        resample: int | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        callback_on_step_end: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Output:
        """Draw pictures; the words are those of diffusers' pipelines.

        Args:
            labels, seeds: as in `steps`; image i has labels[i] and seeds[i].
            image, mask_image, strength, resample: start from a picture, as in `original`.
            batch_size: images drawn at a time; the pictures do not depend on it.
            output_type: "pil", "np" (B, H, W, C), "pt" (B, C, H, W), both float in 0..1, or "latent".
            callback_on_step_end: called with every `Step` of every batch.
            options: the other arguments of `steps`.

        Returns:
            `Output` with `images`.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise InputError(f'unknown output_type "{output_type}"; choose from: pil, np, pt, latent')
        if image is not None:
            options["original"] = self.original(image, mask=mask_image, strength=strength, resample=resample)
        elif mask_image is not None or strength is not None or resample is not None:
            raise InputError("a mask, strength or resample without an image; give image=, the picture to start from")
        latents = list(self.batches(labels, seeds, batch_size, callback_on_step_end, **options))
        if output_type == "latent":
            return Output(torch.cat(latents))
        pixels = torch.cat([self.decode(part) for part in latents])
        if (original := options.get("original")) is not None:
            pixels = original.finish(pixels)
        if output_type == "pil":
            return Output(to_pil(pixels))
        floats = pixels.float() / 255
        return Output(floats if output_type == "pt" else floats.permute(0, 2, 3, 1).numpy())

    def batches(
        self,
        labels: Label | Sequence[Label],
        seeds: Seed | Sequence[Seed],
        batch_size: int,
        callback_on_step_end: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """Yield the x0 (B, c, h, w) of each batch; batches that do not fit in memory are halved, with a warning.

        The arguments are those of a call.

        Raises:
            InputError: a batch size below 1, or memory that is too small for a single picture.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}; give 1 or more")
        names, seeds = pair_up(labels, seeds)
        drawing = self.fused()  # once for all batches; it is its own fused form
        if options.get("guide") is not None:
            options["guide"] = options["guide"].fused()
        start, original = 0, options.pop("original", None)
        while start < len(seeds):
            part = slice(start, start + batch_size)
            if original is not None:
                options["original"] = original.part(part)
            try:
                for step in drawing.steps(names[part], seeds=seeds[part], **options):
                    if callback_on_step_end is not None:
                        callback_on_step_end(step)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                batch_size = min(batch_size, len(seeds) - start) // 2
                if batch_size == 0:
                    line = "there is not enough memory to draw a single picture; take another device"
                    raise InputError(line) from error
                warnings.warn(f"memory is too small for the batch; going on with {batch_size} at a time", stacklevel=2)
                continue
            yield step.x
            start += len(step.x)

    def fused(self) -> "Pipeline":
        """This pipeline with its network merged for inference, see `Backbone.fused`."""
        return replace(self, net=self.net.fused())

    def decode(self, x0: Tensor) -> Tensor:
        """Latents (B, c, h, w) -> uint8 pictures (B, C, H, W) on the CPU."""
        with torch.no_grad():
            return self.autoencoder.decode(x0).cpu()

    def save(self, folder: str | Path, name: str | None = None) -> Path:
        """Write `model.safetensors`, `config.json` and a model card; an existing model in the folder is replaced.
        An autoencoder with weights goes into `autoencoder.safetensors`.

        Args:
            folder: made if it does not exist.
            name: what the card calls the model; the folder's name if None.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict((self.source or self).net.state_dict()), folder / WEIGHTS)
        if tensors := dict(self.autoencoder.state_dict()):
            save_file(tensors, folder / AUTOENCODER)
        (folder / CONFIG).write_text(json.dumps(self.describe(), indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(self.describe(), name or folder.name), encoding="utf-8")
        return folder

    def push_to_hub(self, repository: str, *, private: bool = False, licence: str | None = None) -> str:
        """Upload the model folder to a hub repository such as "me/otters"; returns its address.

        Needs `pip install 'ditlab[hub]'` and a token (`hf auth login`).
        """
        hub = hub_library()
        if licence is not None:
            self.config["licence"] = licence
        with tempfile.TemporaryDirectory() as draft:
            folder = self.save(draft, name=repository.rpartition("/")[2])
            api = hub.HfApi()
            address = str(api.create_repo(repository, private=private, exist_ok=True))
            api.upload_folder(repo_id=repository, folder_path=folder)
        return address

    def identity(self) -> dict[str, Any]:
        """All of the model that decides its pictures: architecture, objective, autoencoder, and hashes of weights."""
        told = self.describe()
        return {
            "backbone": told["backbone"],
            "weights_hash": state_hash((self.source or self).net),
            "objective": told["objective"],
            "autoencoder": told["autoencoder"],
            "autoencoder_hash": state_hash(self.autoencoder),
            "images_seen": self.config.get("images_seen"),
        }

    def describe(self) -> dict[str, Any]:
        """The content of `config.json`."""
        objective = asdict(self.objective)
        process = {"name": process_name(self.objective.process), **asdict(self.objective.process)}  # type: ignore[call-overload]
        return {
            "format": "ditlab",
            "version": __version__,
            "backbone": self.net.config,
            "objective": objective | {"process": process},
            "autoencoder": self.autoencoder.config,
            "classes": self.classes,
            **self.config,
        }


def pair_up(labels: Label | Sequence[Label], seeds: Seed | Sequence[Seed]) -> tuple[list[Label], list[Seed]]:
    """One label and one seed for each image; a single one of either is repeated."""
    single = labels is None or isinstance(labels, str) or not isinstance(labels, Iterable)
    names: list[Label] = [labels] if single else list(labels)  # type: ignore[arg-type, list-item]
    given = [settle(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    numbers = [seed if isinstance(seed, Between) else operator.index(seed) for seed in given]
    for seed in numbers:
        for end in (seed.first, seed.second) if isinstance(seed, Between) else (seed,):
            if not 0 <= end < 2**63:
                raise InputError(f"seed {end} is out of range; give 0 to {2**63 - 1}")
    if len(names) == 1:
        names *= len(numbers)
    if len(numbers) == 1:
        numbers *= len(names)
    if len(names) != len(numbers) or not names:
        raise InputError(
            f"{len(names)} labels and {len(numbers)} seeds; give one of each for each image, or a single one"
        )
    return names, numbers
