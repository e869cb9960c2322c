"""What a model and a prepared model have in common: they generate."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ditlab.autoencoders import Absent, Autoencoder
from ditlab.backbones import Backbone
from ditlab.conditioning import ClassLabels, Conditioner
from ditlab.config.sampling import Sample
from ditlab.core.device import out_of_memory
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Denoise, Label, Seed, Step
from ditlab.diffusion.guidance import autoguidance, cfg
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.samplers import image_noise
from ditlab.inference.inpaint import Original, originals
from ditlab.inference.interpolate import arguments
from ditlab.inference.memory import RowLimit, Splitting, halved
from ditlab.inference.optimize.compilation import is_compiled
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.output import TYPES, Output, make_output
from ditlab.inference.plan import Plan, resolve

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline

Listener = Callable[[Step], None]


class BasePipeline:
    """Generates images or videos with a network, an objective, an autoencoder and a conditioner."""

    net: Backbone
    objective: Objective
    autoencoder: Autoencoder
    conditioner: Conditioner
    config: dict[str, Any]
    """Where the model comes from: `recipe`, `images_seen`; `sample` holds the defaults of sampling."""
    model: "Pipeline"
    """The model itself: what is saved, exported, uploaded and described."""

    @property
    def defaults(self) -> Sample:
        """The sampling settings that the model was saved with."""
        return Sample.read(self.model.config.get("sample", {}))

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none for another kind of condition."""
        return self.conditioner.names if isinstance(self.conditioner, ClassLabels) else []

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.net.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.net.dtype

    @property
    def conditional(self) -> bool:
        """Whether the network takes a condition, which classifier-free guidance needs."""
        return not (isinstance(self.conditioner, ClassLabels) and self.conditioner.classes == 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what the network generates: (C, H, W) or (C, T, H, W)."""
        return (self.net.channels, *self.net.size)

    @property
    def picture_shape(self) -> tuple[int, tuple[int, int]]:
        """Channels and (height, width) of the images, or of the frames of videos."""
        channels, *_, height, width = self.shape
        stride = self.autoencoder.stride
        return self.autoencoder.picture_channels or channels, (height * stride, width * stride)

    def resolve(self, *, original: Original | None = None, guide: "BasePipeline | None" = None, **options: Any) -> Plan:
        """What these settings of sampling mean for this model: times, sampler, guidance, number of evaluations.

        Args:
            original: images to start from.
            guide: a weaker model, for autoguidance.
            options: as in `steps`.

        Raises:
            InputError: a setting that is unknown, out of range, or does not fit the model.
        """
        conditional = self.conditional or guide is not None
        plan = resolve(options, self.objective, defaults=self.defaults, conditional=conditional, original=original)
        if guide is not None and task(guide) != task(self):
            raise InputError("the guide has another size, class count or process; give a weaker model of the same task")
        if plan.cache is not None:
            plan.cache.on(self.net)  # refuses a family without an inner part
        return plan

    def step_count(self, options: dict[str, Any]) -> int:
        """Number of `Step`s that these options of `steps` give."""
        return self.resolve(**options).steps

    def original(
        self,
        image: Image.Image | Sequence[Image.Image],
        *,
        mask: Image.Image | Sequence[Image.Image] | None = None,
        strength: float | None = None,
        resample: int | None = None,
    ) -> Original:
        """Images to start from (image-to-image), or to regenerate a part of (in-painting).

        Args:
            image: one, or one for each generated image; resized and cropped to the model's size as for training.
            mask: white is regenerated, black is kept; None regenerates everything.
            strength: how much of the trajectory runs, above 0 and up to 1; 1 starts from noise alone, and only what
                the mask keeps is left of the image. The default is 1 with a mask and 0.6 without.
            resample: with a mask, how often each part of the schedule runs, so that old and new parts agree (2).

        Raises:
            InputError: an image, mask or number that cannot be used.
        """
        images, masks = ([each] if isinstance(each, Image.Image) else list(each or ()) for each in (image, mask))
        channels, size = self.picture_shape
        return originals(images, masks, self.autoencoder, channels, size, self.net.device, strength, resample)

    def null(self, count: int) -> Condition:
        """Rows of "no condition" on the network's device."""
        return self.conditioner.null(count).to(self.net.device)

    def decode(self, x0: Tensor) -> Tensor:
        """Latents (B, c, ...) -> uint8 images (B, C, H, W) or videos (B, C, T, H, W) on the CPU."""
        with torch.no_grad():
            if x0.ndim == 5:  # autoencoders of images take the frames one by one
                frames = self.autoencoder.decode(x0.transpose(1, 2).flatten(0, 1))
                return frames.reshape(len(x0), x0.shape[2], *frames.shape[1:]).transpose(1, 2).cpu()
            return self.autoencoder.decode(x0).cpu()

    def steps(
        self,
        labels: Label | Sequence[Label] = None,
        *,
        seeds: Seed | Sequence[Seed] | None = None,
        guide: "BasePipeline | None" = None,
        original: Original | None = None,
        size: tuple[int, int] | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """Generate one batch and yield every `Step`: step.i, step.t, step.x (B, C, ...) and step.x0.

        Args:
            labels: class indices or names, or None for "no condition"; one, or one for each image. For `Between` two
                labels the predictions for both are mixed.
            seeds: one, or one for each image (0): image i depends on labels[i] and seeds[i] alone. A single label or
                seed is repeated. `Between` two seeds, the noise is interpolated on the sphere.
            guide: a weaker model of the same task, for autoguidance.
            original: images to start from, see `original`.
            size: height and width of the images, where the model can generate several sizes.
            options: settings of `ditlab.config.sampling.SamplingOptions` (steps, sampler, guidance, guidance_interval,
                guidance_channels, schedule, eta, preset, reuse). `sampler` may also be a sampler function and
                `schedule` the times themselves. diffusers' words are accepted too: num_inference_steps, guidance_scale,
                class_labels, generator, num_images_per_prompt.

        Settings that are left out are those that the model was saved with.

        Raises:
            InputError: a label, name or number that cannot be used; before the first step.
        """
        names, numbers, options = arguments(labels, seeds, options)
        plan = self.resolve(original=original, guide=guide, **options)
        return self._steps(plan, names, numbers, guide, self._shape(size), RowLimit())

    def __call__(
        self,
        labels: Label | Sequence[Label] = None,
        *,
        seeds: Seed | Sequence[Seed] | None = None,
        image: Image.Image | Sequence[Image.Image] | None = None,
        mask: Image.Image | Sequence[Image.Image] | None = None,
        strength: float | None = None,
        resample: int | None = None,
        size: tuple[int, int] | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        callback_on_step_end: Listener | None = None,
        **options: Any,
    ) -> Output:
        """Generate images or videos.

        Args:
            labels, seeds, size: as in `steps`; image i has labels[i] and seeds[i].
            image, mask, strength, resample: start from an image, as in `original`.
            batch_size: images generated at a time; it does not change them.
            output_type: "pil", "np" (B, H, W, C), "pt" (B, C, H, W), both float in 0..1, or "latent".
            callback_on_step_end: called with every `Step` of every batch.
            options: the other arguments of `steps`.

        Returns:
            `Output` with `images`, and `videos` of a video model.
        """
        if output_type not in TYPES:
            raise InputError(f'unknown output_type "{output_type}"; choose from: {", ".join(TYPES)}')
        if (other := options.pop("mask_image", None)) is not None:
            if mask is not None:
                raise InputError("mask and mask_image are the same setting; give one of them")
            mask = other
        if image is not None:
            options["original"] = self.original(image, mask=mask, strength=strength, resample=resample)
        elif mask is not None or strength is not None or resample is not None:
            raise InputError("mask, strength and resample need an image to start from; give image=")
        latents = list(self.batches(labels, seeds, batch_size, callback_on_step_end, size=size, **options))
        if output_type == "latent":
            return Output(torch.cat(latents))
        pixels = torch.cat([self.decode(part) for part in latents])
        original = options.get("original")
        return make_output(pixels if original is None else original.finish(pixels), output_type)

    def batches(
        self,
        labels: Label | Sequence[Label],
        seeds: Seed | Sequence[Seed] | None,
        batch_size: int,
        callback_on_step_end: Listener | None = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """Yield the x0 (B, c, ...) of each batch; network calls that do not fit in memory are split, with a warning.

        The arguments are those of a call; they are checked when the first batch is asked for.

        Raises:
            InputError: a batch size below 1, or memory that is too small for a single image.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}; give 1 or more")
        names, numbers, options = arguments(labels, seeds, options)
        guide, original, size = (options.pop(key, None) for key in ("guide", "original", "size"))
        ready = self.model.fused() if self is self.model else self  # merged once for all batches
        guide = guide if guide is None or guide is not guide.model else guide.fused()
        shape, limit, start = self._shape(size), RowLimit(), 0
        check_originals(original, len(numbers))
        while start < len(numbers):
            rows, reported = slice(start, start + batch_size), False
            part = None if original is None else original.part(rows)
            plan = self.resolve(original=part, guide=guide, **options)
            try:
                for step in ready._steps(plan, names[rows], numbers[rows], guide, shape, limit):
                    if callback_on_step_end is not None:
                        callback_on_step_end(step)
                    reported = True
            except RuntimeError as error:
                if plan.cache is None or not out_of_memory(error):
                    raise
                if reported:  # a cache cannot be split, and a batch whose steps were reported cannot start again
                    raise InputError(f"not enough memory for {batch_size} images with reuse; give fewer") from error
                batch_size = halved(min(batch_size, len(numbers) - start))
                continue
            yield step.x
            start += len(step.x)

    def _shape(self, size: tuple[int, int] | None) -> tuple[int, ...]:
        """The shape that the network generates for images of this size."""
        if size is None:
            return self.shape
        stride = self.autoencoder.stride
        sides = tuple(size)
        if sides != self.picture_shape[1]:
            raise InputError("size {}x{}; this model generates images of {}x{}".format(*sides, *self.picture_shape[1]))
        return (*self.shape[:-2], sides[0] // stride, sides[1] // stride)

    def _steps(
        self,
        plan: Plan,
        names: Sequence[Label],
        seeds: Sequence[Seed],
        guide: "BasePipeline | None",
        shape: tuple[int, ...],
        limit: RowLimit,
    ) -> Iterator[Step]:
        """The steps of one batch by a plan."""
        check_originals(plan.original, len(seeds))
        condition = self.conditioner.encode(names).to(self.net.device)
        net = self._inference_net(plan, condition)
        if plan.cache is not None:
            net = plan.cache.on(net)
        denoiser = self.objective.denoiser(Splitting(net, limit) if plan.cache is None else net)
        scale, interval, channels = plan.guidance, plan.interval, plan.options.guidance_channels
        denoise: Denoise
        if guide is None:
            denoise = cfg(denoiser, condition, self.null(len(condition)), scale, interval, channels)
        else:
            weak = guide.objective.denoiser(Splitting(guide._inference_net(plan, condition), limit))
            denoise = autoguidance(denoiser, weak, condition, scale, interval, channels)
        if plan.cache is not None:
            denoise = plan.cache.timed(denoise)
        if plan.original is not None:
            denoise = plan.original.holding(denoise, plan.process)
        noise = image_noise(seeds)
        x = plan.start(noise(torch.empty(len(seeds), *shape, device=self.net.device)))
        return evaluated(net, plan.run(denoise, x, noise), x, plan.options.sampler)

    def _inference_net(self, plan: Plan, condition: Condition) -> Backbone:
        """The network with its layers merged, and with adaLN modulation precomputed for these times and labels."""
        net = self.net.fused()
        needed = [each.label for each in (condition, condition.other, self.null(1)) if each and each.label is not None]
        if is_compiled(net) or not needed:  # compiled blocks have their modulation inside
            return net
        return tabulated(net, self.objective.process.clock(plan.times).float(), torch.cat(needed))


def evaluated(net: Backbone, steps: Iterator[Step], x: Tensor, sampler: str | None) -> Iterator[Step]:
    """The steps, each computed in evaluation mode and without gradients; the network's mode is restored at the end.

    Raises:
        InputError: a sampler that yields no steps, or none of the shape of x.
    """
    was_training, count = net.training, 0
    net.eval()
    try:
        while True:
            with torch.no_grad():  # around each step only: it must not leak into the caller's code
                step = next(steps, None) if isinstance(steps, Iterator) else steps
            if step is None and count:
                return
            if not isinstance(step, Step) or step.x.shape != x.shape:
                raise InputError(f'the sampler "{sampler}" must yield at least one Step, with x of {tuple(x.shape)}')
            count += 1
            yield step
    finally:
        net.train(was_training)


def check_originals(original: Original | None, count: int) -> None:
    """Refuse a number of original images that does not fit the number of generated images."""
    if original is not None and len(original.pixels) not in (1, count):
        raise InputError(f"{len(original.pixels)} images to start from for {count} generated images")


def task(pipe: BasePipeline) -> tuple[object, ...]:
    """What two models must have in common for autoguidance."""
    return pipe.shape, pipe.conditioner.config, pipe.objective.process


def check_autoencoder(pipe: BasePipeline) -> None:
    """Refuse a model that cannot decode its latents.

    Raises:
        InputError: a model that came without its autoencoder.
    """
    if isinstance(pipe.autoencoder, Absent):
        raise InputError(
            'this model came without its autoencoder; give it as autoencoder=, or use output_type="latent"'
        )
