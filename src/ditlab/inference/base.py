"""The base class of pipelines: generate images or videos with a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ditlab.autoencoders import Autoencoder
from ditlab.backbones import Backbone
from ditlab.backbones.routing import without_blocks
from ditlab.conditioning import ClassLabels, Conditioner
from ditlab.config.sampling import GUIDANCE_ORIGIN, Sample
from ditlab.config.values import whole
from ditlab.core.device import out_of_memory
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Denoise, Label, Seed, Step
from ditlab.core.units import noun_of
from ditlab.core.values import PixelValues
from ditlab.diffusion.guidance import autoguidance, cfg
from ditlab.diffusion.next_state import NextState
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.samplers import image_noise
from ditlab.inference.extras import encoded, encoded_pair, further_guidance, inference_net, other_half
from ditlab.inference.finite import check_latents, finite_steps
from ditlab.inference.given import GivenFrames, check_images, given_frames
from ditlab.inference.guide import check_guide
from ditlab.inference.inpaint import Original, check_originals, check_startable, originals
from ditlab.inference.interpolate import arguments
from ditlab.inference.longer import check_room_for, longer, longer_steps
from ditlab.inference.memory import RowLimit, Splitting, halved
from ditlab.inference.output import TYPES, Output, frame_rate, make_output
from ditlab.inference.plan import Plan, check_channels, resolve
from ditlab.inference.prompts import negative_text
from ditlab.inference.records import describe
from ditlab.inference.sizes import check_room, input_size, named_size, plan_size, size_shift
from ditlab.inference.steps import check_callback, evaluated
from ditlab.report.sheets import to_pil

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline

Listener = Callable[[Step], None]
PROMPTS = "prompts"  # key of the config: some captions of the training data


class BasePipeline:
    """Generates images or videos with a network, an objective, an autoencoder and a conditioner."""

    net: Backbone
    objective: Objective
    autoencoder: Autoencoder
    conditioner: Conditioner
    config: dict[str, Any]
    """Facts about the training: `recipe`, `images_seen`; and `sample`, the default sampling settings."""
    model: "Pipeline"
    """The model that can be saved, exported, uploaded and described."""
    loaded_from: Mapping[str, Any] = MappingProxyType({})
    """The path or hub id that was loaded (`source`), and with which options (`load_options`); empty for new models."""
    second: "BasePipeline | None" = None  # the same model on another device, which evaluates the null condition

    @property
    def defaults(self) -> Sample:
        """The sampling settings that the model was saved with."""
        return Sample.read(self.model.config.get("sample", {}))

    @property
    def classes(self) -> list[str]:
        """Class names; empty for other kinds of conditions."""
        return self.conditioner.names if isinstance(self.conditioner, ClassLabels) else []

    @property
    def examples(self) -> list[Any]:
        """Values to generate if the user gives none: all classes, some captions of the training data, or [None]."""
        return self.model.config.get(PROMPTS) or self.conditioner.all_values()

    @property
    def device(self) -> torch.device:
        """Device of the network."""
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
        """Shape of the latents (or pixels) that the network generates: (C, H, W) or (C, T, H, W)."""
        return (self.net.channels, *self.net.size)

    @property
    def picture_shape(self) -> tuple[int, tuple[int, int]]:
        """Channels and (height, width) of the images, or of the frames of videos."""
        return self.picture_shape_of(self.net.size)

    def picture_shape_of(self, size: Sequence[int]) -> tuple[int, tuple[int, int]]:
        """Channels and (height, width) of the images for a size of the network's input."""
        height, width = (side * self.autoencoder.stride for side in size[-2:])
        return self.autoencoder.picture_channels or self.net.channels, (height, width)

    @property
    def values(self) -> PixelValues:
        """What the numbers of the images are: their type, their range, and the channels that PNG files show."""
        return PixelValues.read(self.model.config.get("values"))

    def resolve(
        self,
        *,
        original: Original | None = None,
        guide: "BasePipeline | None" = None,
        negative_prompt: str | None = None,
        size: Sequence[int] | None = None,
        **options: Any,
    ) -> Plan:
        """Compute the sampling plan of this model: times, sampler, guidance, number of function evaluations.

        Args:
            original: images to start from.
            guide: a weaker model, for autoguidance.
            negative_prompt, size: as in `steps`.
            options: sampling settings, as in `steps`.

        Raises:
            InputError: a setting is unknown, out of range, or does not fit the model.
        """
        conditional, defaults = self.conditional or guide is not None, self.defaults
        if GUIDANCE_ORIGIN in self.model.config and {"guidance", "guidance_scale"} & options.keys():
            defaults = replace(defaults, guidance_channels=None)  # the script's channels belong to the script's scale
        check_channels(options.get("guidance_channels"), self.net.channels)
        sides = plan_size(self, size, original)
        tokens, shift = self.net.tokens_at(sides), size_shift(self, sides)
        plan = resolve(
            options, self.objective, tokens=tokens, size_shift=shift, defaults=defaults,
            conditional=conditional, original=original,
        )  # fmt: skip
        if plan.skip is not None:
            without_blocks(self.net, plan.skip.layers)  # raises an error if the family does not support it
        check_guide(self, guide, negative_prompt)
        if plan.cache is not None:
            plan.cache.on(self.net)  # raises an error if the family does not support feature caching
        negative = negative_text(negative_prompt, self.conditioner, plan.guidance, guided_by_model=guide is not None)
        return replace(plan, negative=negative, size=sides)

    def step_count(self, options: dict[str, Any]) -> int:
        """Return the number of `Step`s that `steps` yields with these options."""
        return self.resolve(**options).steps

    def original(
        self,
        image: Image.Image | Sequence[Image.Image],
        *,
        mask: Image.Image | Sequence[Image.Image] | None = None,
        strength: float | None = None,
        resample: int | None = None,
        size: Sequence[int] | None = None,
    ) -> Original:
        """Prepare images to start from: for image-to-image, or with a mask for in-painting.

        Args:
            image: one image, or one per generated image; resized and cropped to `size` as in training.
            mask: in-painting mask: white is regenerated, black is kept; None regenerates everything.
            strength: share of the sampling trajectory that runs, above 0 and up to 1; 1 starts from noise, so that only
                the part that the mask keeps remains of the image. The default is 1 with a mask and 0.6 without.
            resample: with a mask, number of times that each part of the schedule runs, so that the regenerated part
                fits the kept part (default: 2).

        Raises:
            InputError: an image, mask or number cannot be used.
        """
        check_images(self)
        channels, sides = self.picture_shape_of(input_size(self, size))
        check_startable(channels, self.values)
        return originals(image, mask, self.autoencoder, channels, sides, self.net.device, strength, resample)

    @property
    def noun(self) -> str:
        """What one output is called: image, clip, or state of a field."""
        return "state" if isinstance(self.objective, NextState) else noun_of(self.net.size)

    def null(self, count: int, negative: str | None = None) -> Condition:
        """Return `count` rows of the null condition, or of a negative prompt, on the network's device."""
        rows = self.conditioner.null(count) if negative is None else self.conditioner.encode([negative] * count)
        return rows.to(self.net.device)

    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents (B, c, ...) to images (B, C, H, W) or videos (B, C, T, H, W) on the CPU.

        They are uint8, or float32 in the scale of the network if `values` are not those of 8 bits; `values.restored`
        converts the latter to the numbers of the training data.

        Raises:
            InputError: the latents or the images are not finite.
        """
        check_latents(self, x0)
        with torch.no_grad():
            if x0.ndim == 5:
                return self.autoencoder.decode_clips(x0, self.values, self.net.size[0]).cpu()
            return self.autoencoder.decode_as(x0, self.values).cpu()

    def displayed(self, pixels: Tensor) -> list[Image.Image]:
        """Convert images or videos that `decode` returned to PIL images of the shown channels, with 8 bits."""
        return to_pil(self.values.displayed(pixels))

    def steps(
        self,
        labels: Label | Sequence[Label] = None,
        *,
        seeds: Seed | Sequence[Seed] | None = None,
        guide: "BasePipeline | None" = None,
        original: Original | None = None,
        size: Sequence[int] | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        """Generate one batch and yield a `Step` after each sampler step: step.i, step.t, step.x (B, C, ...), step.x0.

        Settings that are left out have the values that the model was saved with.

        Args:
            labels: class index or name, prompt, None for the null condition, or a sequence with one of these per image.
                Between two labels (`Between`) the predictions for both are interpolated.
            seeds: seed, or a sequence with one per image (default: 0). Image i depends on labels[i] and seeds[i] only;
                a single label or seed is repeated. Between two seeds the noise is interpolated on the sphere.
            guide: a weaker model of the same task, for autoguidance.
            original: images to start from, see `original`.
            size: height and width of the images, for videos also (frames, height, width); see `Backbone.check_size`.
            options: settings of `ditlab.config.sampling.SamplingOptions` (steps, sampler, guidance, guidance_interval,
                guidance_channels, guidance_rescale, skip_layers, skip_guidance, skip_interval, schedule, shift, eta,
                preset, reuse, reuse_error). `sampler` may also be a sampler function, and `schedule` a tensor of times.
                Models that read text take `negative_prompt`, a text that replaces the null condition in guidance. Names
                of diffusers are accepted too: num_inference_steps, guidance_scale, class_labels, prompt, generator,
                num_images_per_prompt.

        Raises:
            InputError: a label or setting cannot be used (raised before the first step), or an image is not finite
                (raised after the last step).
        """
        names, numbers, options = arguments(labels, seeds, options)
        size = named_size(options, size)
        plan = self.resolve(original=original, guide=guide, size=size, **options)
        if isinstance(original, GivenFrames) and original.frames:
            check_room_for(self, original, len(numbers))
            return longer_steps(self, names, numbers, original=original, guide=guide, size=size, **options)
        return self._steps(plan, names, numbers, guide, RowLimit())

    def __call__(
        self,
        labels: Label | Sequence[Label] = None,
        *,
        seeds: Seed | Sequence[Seed] | None = None,
        image: Image.Image | Sequence[Image.Image] | None = None,
        mask: Image.Image | Sequence[Image.Image] | None = None,
        strength: float | None = None,
        resample: int | None = None,
        given: Mapping[int, Any] | None = None,
        frames: int | None = None,
        overlap: int | None = None,
        size: Sequence[int] | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        callback_on_step_end: Listener | None = None,
        **options: Any,
    ) -> Output:
        """Generate images or videos.

        Args:
            labels, seeds, size: as in `steps`; image i has labels[i] and seeds[i].
            image, mask, strength, resample: image to start from, as in `original`.
            given, frames, overlap: given frames of clips, and clips that are longer than those of the model, as in
                `given_frames`: {0: image} is image to video, and {0: a, -1: b} interpolates.
            batch_size: images generated at a time; does not change the images.
            output_type: "pil" (8 bits, the shown channels); "np" (B, H, W, C) or "pt" (B, C, H, W), both float from 0
                (lowest number of the data's range) to 1 (highest); "native" (B, H, W, C), in the numbers and the type
                of the training data; or "latent".
            callback_on_step_end: called with every `Step` of every batch, as its only argument.
            options: the other arguments of `steps`.

        Returns:
            `Output` with `images`, `settings`, and `videos` of a video model.

        Raises:
            InputError: a label or setting cannot be used, or the memory is too small for a single image.
        """
        size = named_size(options, size)
        if output_type not in TYPES:
            raise InputError(f'unknown output_type "{output_type}"; choose from: {", ".join(TYPES)}')
        if (mask_image := options.pop("mask_image", None)) is not None:
            if mask is not None:
                raise InputError("mask and mask_image are the same setting; give one of them")
            mask = mask_image
        if image is not None:
            options["original"] = self.original(image, mask=mask, strength=strength, resample=resample, size=size)
        elif mask is not None or strength is not None or resample is not None:
            raise InputError("mask, strength and resample need an image to start from; give image=")
        if (given, frames, overlap) != (None, None, None):
            options["original"] = given_frames(self, given, frames, overlap, size)
        names, numbers, options = arguments(labels, seeds, options)
        options["size"] = size
        record = describe(self, self.resolve(**options), names, numbers, options.get("guide"))
        latents = list(self.batches(names, numbers, batch_size, callback_on_step_end, **options))
        if output_type == "latent":
            return Output(torch.cat(latents), describe=record)
        pixels = torch.cat([self.decode(part) for part in latents])
        pixels = pixels if (original := options.get("original")) is None else original.finish(pixels)
        return make_output(pixels, output_type, self.values, record, frame_rate(self.model.config))

    def batches(
        self,
        labels: Label | Sequence[Label],
        seeds: Seed | Sequence[Seed] | None,
        batch_size: int,
        callback_on_step_end: Listener | None = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """Yield the latents x0 (B, c, ...) of each batch.

        Network calls that do not fit into memory are split, with a warning. The arguments are those of `__call__`; they
        are checked when the first batch is generated.

        Raises:
            InputError: a batch size below 1, a callback with other arguments, or the memory is too small for an image.
        """
        if (batch_size := whole(batch_size, "batch size")) < 1:
            raise InputError(f"batch size {batch_size}; give 1 or more")
        check_callback(callback_on_step_end)
        names, numbers, options = arguments(labels, seeds, options)
        if isinstance(options.get("original"), GivenFrames) and options["original"].frames:
            check_room_for(self, options["original"], len(numbers))
            yield from longer(self, names, numbers, batch_size, callback_on_step_end, **options)
            return
        guide, original = (options.pop(key, None) for key in ("guide", "original"))
        check_room(self, input_size(self, options.get("size")), min(batch_size, len(numbers)))
        ready = self.model.fused() if self is self.model else self  # merged once for all batches
        guide = guide if guide is None or guide is not guide.model else guide.fused()
        limit, start = RowLimit(), 0
        check_originals(original, len(numbers))
        while start < len(numbers):
            rows, reported = slice(start, start + batch_size), False
            part = None if original is None else original.part(rows)
            plan = self.resolve(original=part, guide=guide, **options)
            try:
                for step in ready._steps(plan, names[rows], numbers[rows], guide, limit):
                    if callback_on_step_end is not None:
                        callback_on_step_end(step)
                    reported = True
            except RuntimeError as error:
                if plan.cache is None or not out_of_memory(error):
                    raise
                if reported:  # calls with a cache cannot be split, and reported steps cannot be repeated
                    raise InputError(f"not enough memory for a batch of {batch_size} with reuse; give fewer") from error
                batch_size = halved(min(batch_size, len(numbers) - start))
                continue
            yield step.x
            start += len(step.x)

    def _steps(
        self,
        plan: Plan,
        names: Sequence[Label],
        seeds: Sequence[Seed],
        guide: "BasePipeline | None",
        limit: RowLimit,
    ) -> Iterator[Step]:
        """Run the sampling plan for one batch."""
        check_originals(plan.original, len(seeds))
        condition = self.conditioner.encode(names).to(self.net.device)
        condition = condition if plan.original is None else plan.original.conditioned(condition)
        net, objective = inference_net(self, plan, condition), self.objective.at_guidance(plan.guidance)
        if plan.cache is not None:
            net = plan.cache.on(net)
        denoiser = objective.denoiser(Splitting(net, limit) if plan.cache is None else net)
        scale, interval, channels = plan.outer, plan.interval, plan.options.guidance_channels
        denoise: Denoise
        if guide is None:
            null = self.null(len(condition), plan.negative)
            null = null if condition.given is None else null.with_given(condition.given)
            text, null = encoded_pair(net, condition, null, scale)
            further = further_guidance(plan, objective, net, text, limit)
            other = other_half(self.second, plan, condition, limit)
            denoise = cfg(denoiser, text, null, scale, interval, channels, further, other)
        else:  # both networks receive the condition as it is, because each encodes it in its own way
            further = further_guidance(plan, objective, net, encoded(net, condition), limit)
            weak = guide.objective.denoiser(Splitting(inference_net(guide, plan, condition), limit))
            denoise = autoguidance(denoiser, weak, condition, scale, interval, channels, further)
        if plan.cache is not None:
            denoise = plan.cache.timed(denoise)
        if plan.original is not None:
            denoise = plan.original.holding(denoise, plan.process)
        noise = image_noise(seeds)
        x = plan.start(noise(torch.empty(len(seeds), self.net.channels, *plan.size, device=self.net.device)))
        return finite_steps(evaluated(net, plan.run(denoise, x, noise), x, plan.options.sampler), self, seeds)
