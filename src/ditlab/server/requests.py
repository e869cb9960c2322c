"""What may be asked of the HTTP API: a form for each body."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ditlab.diffusion.samplers import SAMPLERS
from ditlab.server.responses import (
    PIXEL,
)


def whole(value: Any) -> Any:
    """4.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)
Seed = Annotated[int, Field(ge=0, lt=2**53), WHOLE]  # beyond that readers of JSON do not agree on integers
Name = Annotated[str, Field(min_length=1, max_length=200)]
ClassLabel = Annotated[int, Field(ge=0, lt=2**31), WHOLE] | Name
Time = Annotated[float, Field(ge=0, le=1)]
File = Annotated[str, Field(min_length=1, json_schema_extra={"contentEncoding": "base64"})]


class Drawing(BaseModel):
    """What all orders may say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name | None = Field(None, description="A name of /v1/models; the first one if left out.")
    prompt: ClassLabel | None = Field(None, description="A class, by name or index.")
    seed: Seed | None = Field(None, description="Of the first picture, those behind it have the next ones.")
    num_inference_steps: Annotated[int, Field(ge=1, le=100_000), WHOLE] | None = Field(
        None, description="The model's own if left out."
    )
    guidance_scale: float | None = Field(
        None, ge=-1000, le=1000, allow_inf_nan=False, description="1 is none; the model's own if left out."
    )
    guidance_interval: Annotated[tuple[Time, Time], Field(strict=False)] | None = Field(
        None, description="The times between which guidance acts, 0 is data and 1 noise."
    )
    sampler: Name | None = Field(None, description=f"One of {', '.join(SAMPLERS)}; the model's own if left out.")
    quality: Literal["draft", "normal", "best", "reference"] | None = Field(
        None, description="Sampler, steps and guidance in one word; what is given beside it goes before it."
    )

    def settings(self) -> dict[str, Any]:
        """Of `Pipeline.steps`."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "guidance_interval": self.guidance_interval,
            "sampler": self.sampler,
            "preset": self.quality,
        }


class Generation(Drawing):
    """An order for pictures."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "3", "n": 4, "seed": 0},
                {"class_labels": [3, 7], "stream": True},
                {"prompt": "3", "to_label": "8", "n": 4, "seed": 0},
                {"prompt": "3", "image": PIXEL, "strength": 0.6},
            ]
        },
    )

    class_labels: list[ClassLabel] | None = Field(
        None, min_length=1, max_length=1024, description="A class for each picture, in the place of the prompt."
    )
    n: Annotated[int, WHOLE] = Field(1, ge=1, le=1024, description="How many pictures.")
    size: Annotated[str, Field(pattern="^[0-9]{1,5}x[0-9]{1,5}$")] | None = Field(
        None, description="WIDTHxHEIGHT; a model has one size, any other is refused."
    )
    seeds: list[Seed] | None = Field(None, min_length=1, max_length=1024, description="One for each picture.")
    to_label: ClassLabel | None = Field(None, description="The pictures go from the first class to this one.")
    to_seed: Seed | None = Field(None, description="The pictures go from the first seed to this one.")
    image: File | None = Field(None, description="A picture to start from.")
    mask: File | None = Field(None, description="What is white in it is drawn anew, what is black stays.")
    strength: float | None = Field(
        None, gt=0, le=1, description="Part of the way that is walked from the image; 0.6, and 1 with a mask."
    )
    resample: Annotated[int, Field(ge=1, le=100), WHOLE] | None = Field(
        None, description="With a mask: how often each piece of the way is walked; 2."
    )
    animation: bool = Field(False, description="Also give each picture's way, as a GIF in animation_b64.")
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: Annotated[int, WHOLE] = Field(3, ge=0, le=100, description="Previews of a stream.")


class Looking(Drawing):
    """An order to look inside the network while it draws one picture."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "3", "seed": 0, "num_inference_steps": 12}]})

    step: Annotated[int, Field(ge=0, le=100_000), WHOLE] | None = Field(
        None, description="With attention: the step at which it is told; the drawing ends there."
    )
    attention: Annotated[int, Field(ge=0, le=100_000), WHOLE] | None = Field(
        None, description="The number of a self-attention in the network, whose weights shall be told."
    )
