"""The request bodies of the HTTP API, with types and ranges, and their translation to options of the pipeline."""

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ditlab.conditioning import ClassLabels
from ditlab.core.errors import InputError, lookup, nearest
from ditlab.diffusion.samplers import GRIDS, SAMPLERS
from ditlab.inference.base import BasePipeline

# An image of one white pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
UNKNOWN_KEY = "unknown_key"  # type of an error whose message is complete
DATA_URL = re.compile(r"data:[\w/+.;=-]*,")  # what browsers put before the base64 of a file
ALIASES = {
    "num_inference_steps": "steps",  # the words of diffusers' pipelines
    "guidance_scale": "guidance",
    "class_labels": "labels",
    "prompts": "labels",
    "to_prompt": "to_label",
    "mask_image": "mask",
    "output_format": "format",  # the word of other image services
    "quality": "preset",  # earlier words of this API
    "seed": "seeds",
    "label": "labels",  # the words of a response, so that its settings can be sent again
}
SETTINGS = (
    "steps",
    "sampler",
    "guidance",
    "guidance_interval",
    "guidance_channels",
    "guidance_rescale",
    "skip_layers",
    "skip_guidance",
    "skip_interval",
    "schedule",
    "shift",
    "eta",
    "preset",
    "reuse",
    "reuse_error",
)


def whole(value: Any) -> Any:
    """Accepts 4.0 as an integer, as JSON Schema does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_list(value: Any) -> Any:
    """A single value as a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def known(table: Mapping[str, Any], what: str) -> AfterValidator:
    """Checks that a name is in a registry."""

    def check(name: str) -> str:
        lookup(table, name, what)
        return name

    return AfterValidator(check)


def alternatives(names: Iterable[str]) -> str:
    """Join names for the end of a sentence: "a, b or c"."""
    *most, last = names
    return f"{', '.join(most)} or {last}"


WHOLE = BeforeValidator(whole)
Seed = Annotated[int, Field(ge=0, lt=2**53), WHOLE]  # readers of JSON disagree on larger integers
Name = Annotated[str, Field(min_length=1, max_length=200)]
Label = Annotated[int, Field(ge=0, lt=2**31), WHOLE] | Annotated[str, Field(min_length=1, max_length=2000)]
Block = Annotated[int, Field(ge=0, le=10_000), WHOLE]
Time = Annotated[float, Field(ge=0, le=1)]
File = Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]
# Two patterns that are only described here: `server.generation` checks them, with messages for people.
FRAME, SIZE = re.compile("^(0|-?[1-9][0-9]{0,3})$"), re.compile("^([0-9]{1,5}x)?[0-9]{1,5}x[0-9]{1,5}$")
FrameNumber = Annotated[str, Field(json_schema_extra={"pattern": FRAME.pattern})]
Frames = Annotated[int, Field(ge=1, le=1_000_000), WHOLE]
# The first invalid value ends a check: a message names only that one, and a long list of errors takes seconds.
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=1024, fail_fast=True)]
Labels = Annotated[list[Label], Field(min_length=1, max_length=1024, fail_fast=True)]


class SamplingRequest(BaseModel):
    """The settings that all requests for images have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name | None = Field(None, description="A model name from /v1/models. Default: the first model.")
    prompt: Label | None = Field(
        None, description='What to generate: a class name, an index, "index:3", or a text, depending on the model.'
    )
    labels: Annotated[Labels | None, BeforeValidator(as_list, json_schema_input_type=Label | Labels | None)] = Field(
        None,
        description="Instead of prompt: one for all images, or one for each image. "
        "Default: all classes, or some captions of the training data, in turn. Aliases: class_labels, prompts.",
    )
    negative_prompt: Annotated[str, Field(max_length=2000)] | None = Field(
        None, description="Text to lead away from, for a model that reads text; with guidance above 1."
    )
    seeds: Annotated[Seeds | None, BeforeValidator(as_list, json_schema_input_type=Seed | Seeds | None)] = Field(
        None,
        description="One for each image, or the seed of the first image; the following images then have the "
        "following seeds. Default: random. Alias: seed.",
    )
    steps: Annotated[int, Field(ge=1, le=100_000), WHOLE] | None = Field(
        None, description="Number of sampling steps. Default: the model's. Alias: num_inference_steps."
    )
    sampler: Annotated[Name, known(SAMPLERS, "sampler")] | None = Field(
        None, description=f"{alternatives(SAMPLERS)}. Default: the model's."
    )
    guidance: float | None = Field(
        None,
        ge=-1000,
        le=1000,
        allow_inf_nan=False,
        description="Guidance scale; 1 disables guidance. Default: the model's. Alias: guidance_scale.",
    )
    guidance_interval: Annotated[tuple[Time, Time], Field(strict=False)] | None = Field(
        None, description="Times between which guidance is applied; 0 is data and 1 is noise. Default: the model's."
    )
    guidance_channels: Annotated[int, Field(ge=1, le=1024), WHOLE] | None = Field(
        None, description="Apply guidance to the first N channels only. Default: all."
    )
    guidance_rescale: Time | None = Field(
        None, description="Share by which guidance keeps the contrast of the output without guidance. Default: 0."
    )
    skip_layers: Annotated[list[Block], Field(max_length=100)] | None = Field(
        None, description="Skip-layer guidance: lead away from the output without these blocks. Default: none."
    )
    skip_guidance: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="Scale of skip-layer guidance. Default: 2.8."
    )
    skip_interval: Annotated[tuple[Time, Time], Field(strict=False)] | None = Field(
        None, description="Shares of the steps between which skip-layer guidance acts. Default: 0.01 to 0.2."
    )
    schedule: Annotated[Name, known(GRIDS, "schedule")] | None = Field(
        None, description=f"Timestep schedule: {alternatives(GRIDS)}. Default: the model's."
    )
    shift: Annotated[float, Field(ge=1e-3, le=1e3)] | None = Field(
        None, description="Shift of the schedules shifted and sd3. Default: 3."
    )
    eta: Time | None = Field(None, description="Noise of the sampler ddim: 0 is deterministic.")
    preset: Name | None = Field(
        None,
        description="Settings by name: draft, normal, best, reference or dit-published. Settings that are given "
        "explicitly take precedence. Alias: quality.",
    )
    reuse: Annotated[int, Field(ge=2, le=1000), WHOLE] | None = Field(
        None, description="Feature caching: compute the inner blocks of the network at every Nth step only."
    )
    reuse_error: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Feature caching: compute the inner blocks where their extrapolation has a larger expected error.",
    )

    @model_validator(mode="before")
    @classmethod
    def rename(cls, body: Any) -> Any:
        """Replace aliases by the names of the fields.

        Raises:
            InputError: a setting that is given twice, under two names.
        """
        if not isinstance(body, dict):
            return body
        for key in body:
            if key not in cls.model_fields and key not in ALIASES:
                # Only the first one is reported; messages for thousands would take seconds.
                words = f'unknown key "{key[:40]}"; {nearest(key[:40], cls.model_fields)}'
                raise PydanticCustomError(UNKNOWN_KEY, "{words}", {"words": words})
        renamed: dict[Any, Any] = {}
        origin: dict[Any, str] = {"labels": "prompt"} if body.get("prompt") is not None else {}
        for key, value in body.items():
            name = ALIASES.get(key, key)
            if value is not None and name in origin:
                raise InputError(f"{origin[name]} and {key} are the same setting; give one of them")
            if value is not None:
                origin[name] = key
            if value is not None or name not in renamed:
                renamed[name] = value
        return renamed

    def values(self) -> list[int | str] | None:
        """The prompt or the labels, as a list; None if the request has neither."""
        return self.labels if self.prompt is None else [self.prompt]

    def settings(self) -> dict[str, Any]:
        """The sampling settings of the request, without those that it leaves open."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}


class GenerationRequest(SamplingRequest):
    """A request for images."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "3", "n": 4, "seeds": 0},
                {"labels": [3, 7], "stream": True},
                {"prompt": "3", "to_label": "8", "n": 4, "seeds": 0},
                {"prompt": "3", "image": PIXEL, "strength": 0.6},
                {"prompt": "3", "given": {"0": PIXEL}, "frames": 64, "format": "mp4"},
            ]
        },
    )

    n: Annotated[int, WHOLE] = Field(
        1, ge=1, le=1024, description="Number of images. Default: the number of labels. Alias: num_images_per_prompt."
    )
    size: Annotated[str, Field(json_schema_extra={"pattern": SIZE.pattern})] | None = Field(
        None,
        description="WIDTHxHEIGHT, for clips also FRAMESxWIDTHxHEIGHT. Default: the size of the model. Networks "
        "whose weights do not depend on the size take any other that their patches divide.",
    )
    to_label: Label | None = Field(
        None, description="Interpolate from the first label or prompt to this one. Alias: to_prompt."
    )
    to_seed: Seed | None = Field(None, description="Interpolate from the first seed to this one.")
    image: File | None = Field(
        None, description="Image-to-image: the image to start from, as base64 or as a data URL with base64."
    )
    mask: File | None = Field(
        None, description="Inpainting mask: white is regenerated, black is kept. Alias: mask_image."
    )
    strength: float | None = Field(
        None, gt=0, le=1, description="Part of the trajectory that is sampled. Default: 0.6, or 1 with a mask."
    )
    resample: Annotated[int, Field(ge=1, le=100), WHOLE] | None = Field(
        None, description="With a mask: how often each part of the trajectory is sampled. Default: 2."
    )
    given: Annotated[dict[FrameNumber, File], Field(min_length=1, max_length=64)] | None = Field(
        None,
        description='Given frames of clips, by their number, from 0, or negative from the end: {"0": IMAGE} is image '
        'to video, and {"0": IMAGE, "-1": IMAGE} interpolates. Images of the size of the clip, as base64 or data URLs.',
    )
    frames: Frames | None = Field(
        None, description="Length of clips that are continued beyond the length of the model, or of size."
    )
    overlap: Frames | None = Field(
        None,
        description="With frames: number of last frames that each further part continues. Default: half of a part.",
    )
    format: Literal["png", "webp", "gif", "mp4", "webm"] = Field(
        "png", description="Format of clips; png is an animated PNG, and that of images. Alias: output_format."
    )
    animation: bool = Field(False, description="Also return the trajectory of each image, as a GIF in animation_b64.")
    numbers: bool = Field(
        False,
        description="Also return all channels of each image in the numbers and the type of the training data, as an "
        ".npy file (H, W, C), of a clip (T, H, W, C), in npy_b64.",
    )
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = Field(False, description="Respond with server-sent events.")
    partial_images: Annotated[int, WHOLE] = Field(3, ge=0, le=100, description="Number of previews in a stream.")

    @model_validator(mode="before")
    @classmethod
    def repeat(cls, body: Any) -> Any:
        """Translate num_images_per_prompt: as in diffusers, each label is repeated.

        Raises:
            InputError: n is given too.
        """
        if not isinstance(body, dict) or body.get("num_images_per_prompt") is None:
            return body
        if body.get("n") is not None:
            raise InputError("n and num_images_per_prompt are both given; give one of them")
        count = whole(body["num_images_per_prompt"])
        others = {key: value for key, value in body.items() if key != "num_images_per_prompt"}
        name = next((name for name in ("labels", "class_labels", "prompts") if isinstance(body.get(name), list)), None)
        if name is None or type(count) is not int or not 1 <= count <= 1024 or len(body[name]) > 1024:
            return others | {"n": count}
        return others | {name: [value for value in body[name] for _ in range(count)], "n": count * len(body[name])}

    def file(self, name: Literal["image", "mask"]) -> bytes | None:
        """The content of a file.

        Raises:
            InputError: text that is not base64.
        """
        text = getattr(self, name)
        return None if text is None else decoded(text, f"the {name}")

    def given_files(self, frames: int) -> dict[int, bytes] | None:
        """The content of the given frames, by their number, for clips of a number of frames.

        Raises:
            InputError: a key that is not a number, or text that is not base64.
        """
        if self.given is None:
            return None
        for key in self.given:
            if not FRAME.fullmatch(key):
                raise InputError(
                    f'given has the key "{key[:50]}"; its keys are the numbers of frames: "0" to "{frames - 1}", or '
                    f'"-1" to "-{frames}" from the end'
                )
        return {int(number): decoded(text, f"given frame {number}") for number, text in self.given.items()}


def decoded(text: str, what: str) -> bytes:
    """The content of a file as base64, or as a data URL with base64.

    Raises:
        InputError: text that is neither.
    """
    start = DATA_URL.match(text)
    try:
        if start is not None and not start[0].endswith(";base64,"):
            raise ValueError
        return base64.b64decode(text[start.end() :] if start else text, validate=True)
    except ValueError:
        raise InputError(f"{what} is not base64; encode the content of the file as base64") from None


class InspectionRequest(SamplingRequest):
    """A request to generate one image and to return what the network computes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "3", "seeds": 0, "steps": 12}]})

    labels: Annotated[
        Annotated[list[Label], Field(min_length=1, max_length=1)] | None,
        BeforeValidator(as_list, json_schema_input_type=Label | None),
    ] = Field(None, description="One label, instead of prompt. Default: the first class.")
    seeds: Annotated[
        Annotated[list[Seed], Field(min_length=1, max_length=1)] | None,
        BeforeValidator(as_list, json_schema_input_type=Seed | None),
    ] = Field(None, description="One seed. Default: random. Alias: seed.")
    step: Annotated[int, Field(ge=0, le=100_000), WHOLE] | None = Field(
        None, description="With attention: the step of which the attention is returned; sampling ends after it."
    )
    attention: Annotated[int, Field(ge=0, le=100_000), WHOLE] | None = Field(
        None, description="Index of a self-attention in the network, of which the weights are returned."
    )

    def generation(self) -> GenerationRequest:
        """The request for the image."""
        return GenerationRequest(**self.model_dump(exclude={"step", "attention"}, exclude_none=True))


def resolved(pipe: BasePipeline, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings together with those that follow from the preset and from the model's defaults.

    Args:
        pipe: the model.
        settings: the explicit settings.
    """
    values = pipe.resolve(**settings).settings()
    return {name: values[name] for name in SETTINGS if name in values}


def example(pipe: BasePipeline, number: int) -> dict[str, Any]:
    """What a request for an example asks for: a class, a caption of the training data, or a seed if there are neither.

    Raises:
        InputError: a class or a caption that the model does not have.
    """
    if isinstance(pipe.conditioner, ClassLabels) and pipe.conditioner.classes:
        pipe.conditioner.index(f"index:{number}")
        return {"labels": f"index:{number}", "seeds": 0}
    if (examples := pipe.examples) == [None]:
        return {"seeds": number}
    if number >= len(examples):
        raise InputError(f"no example {number}; this model has the examples 0 to {len(examples) - 1}")
    return {"labels": examples[number], "seeds": 0}


def require_classes(name: str, pipe: BasePipeline) -> ClassLabels:
    """The class labels of a model.

    Raises:
        InputError: a model with another kind of condition.
    """
    if not isinstance(pipe.conditioner, ClassLabels):
        raise InputError(f"model {name} has no class labels; describe the image with prompt")
    return pipe.conditioner
