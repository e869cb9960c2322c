"""The response bodies of the HTTP API: their schemas with examples, and the functions that fill them.

The functions return plain dicts; the tests compare them with the schemas.
"""

import time
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from ditlab.core.errors import InputError
from ditlab.server.files import as_base64
from ditlab.server.generation import Event, Generation, Inspection
from ditlab.server.requests import PIXEL, InspectionRequest
from ditlab.server.service import Service

Responses = dict[int | str, dict[str, Any]]

SETTINGS: dict[str, Any] = {
    "model": "demo",
    "label": 3,
    "seed": 0,
    "steps": 20,
    "sampler": "ab4",
    "guidance": 1.5,
    "guidance_interval": [0.0, 1.0],
    "schedule": "uniform",
    "size": "32x32",
    "precision": "float32",
    "model_hash": "0123456789abcdef",
    "version": "1.0.0",
}
GENERATED_EXAMPLE: dict[str, Any] = {
    "created": 1767225600,
    "model": "demo",
    "data": [{"b64_json": PIXEL, "settings": SETTINGS}],
}
INSPECTED_EXAMPLE: dict[str, Any] = {
    "model": "demo",
    "settings": SETTINGS,
    "steps": [{"t": 0.5, "b64_json": PIXEL}, {"t": 0.0, "b64_json": PIXEL}],
    "changes": [[0.31, 0.27, None]],
    "attentions": 3,
    "attention": {"height": 1, "width": 1, "weights": "/w==", "largest": [1.0]},
}
EVENTS = f"""event: image_generation.step
data: {{"type": "image_generation.step", "step": 1, "steps": 2}}

event: image_generation.partial_image
data: {{"type": "image_generation.partial_image", "step": 1, "steps": 2, "partial_image_index": 0, \
"data": [{{"b64_json": "{PIXEL}"}}]}}

event: image_generation.completed
data: {{"type": "image_generation.completed", "step": 2, "steps": 2, "created": 1767225600, "model": "demo", \
"data": [{{"b64_json": "{PIXEL}", "settings": {{"model": "demo", "label": 3, "seed": 0, "steps": 2}}}}]}}

"""
METRICS_EXAMPLE = (
    "# HELP ditlab_images_total Images generated.\n# TYPE ditlab_images_total counter\nditlab_images_total 4.0\n"
)
ERRORS = {
    400: ("The request cannot be fulfilled.", 'unknown class "bea"; did you mean "bee"?'),
    401: ("The token is missing or wrong.", "a token is required: Authorization: Bearer TOKEN"),
    403: (
        "The host or the origin is not allowed.",
        "the service does not have the name example.org; add it to the allowed hosts at the start",
    ),
    404: ("Not available yet.", "run demo has no preview yet; try again later"),
    411: ("The request has no Content-Length.", "send the body with Content-Length, not in chunks"),
    413: ("The body is too large.", "the body has 52428800 bytes; the limit is 16777216"),
    422: ("The body or a parameter has the wrong type or range.", "n: Input should be greater than or equal to 1"),
    429: ("Too many requests are in progress.", "the limit of 32 requests in progress is reached; try again in 1 s"),
    503: ("The generation failed or took too long.", "not finished after 120 s; request fewer steps or images"),
}


class Health(BaseModel):
    """The service is running."""

    status: str = Field(examples=["ok"])


class Ready(Health):
    """The service is ready, with the names of its models."""

    models: list[str] = Field(examples=[["demo"]])


class Model(BaseModel):
    """A model and its default settings."""

    id: str = Field(description="The name to use in requests.", examples=["demo"])
    object: str = Field(examples=["model"])
    path: str | None = Field(
        description="Its folder or hub id, as given to the service; null if other machines can connect to it.",
        examples=["runs/demo"],
    )
    owned_by: str = Field(examples=["ditlab"])
    network: str = Field(examples=["DiT"])
    size: str = Field(description="WIDTHxHEIGHT of its images, FRAMESxWIDTHxHEIGHT of its clips.", examples=["32x32"])
    images: str = Field(
        description="Channels, type and range of its images, and the channels that PNG files show.",
        examples=["3 channels of uint8, 0..255"],
    )
    given: bool = Field(description="Whether it takes given frames, and continues clips.", examples=[False])
    condition: str = Field(description="Kind of condition.", examples=["class"])
    classes: int = Field(description="Number of classes; 0 for a model without class labels.", examples=[10])
    prompts: list[str] = Field(
        description="Some captions of the training data; empty for a model that reads no text.", examples=[[]]
    )
    steps: int = Field(examples=[20])
    sampler: str = Field(examples=["ab4"])
    schedule: str = Field(examples=["uniform"])
    guidance: float = Field(examples=[1.5])
    guidance_interval: list[float] = Field(
        description="Times between which guidance is applied; 0 is data and 1 is noise.", examples=[[0.0, 1.0]]
    )
    precision: str = Field(description="Precision of the network.", examples=["float32"])
    model_hash: str = Field(description="Start of the SHA-256 of the weights.", examples=["0123456789abcdef"])


class Models(BaseModel):
    """All models. The first one is the default."""

    object: str = Field(examples=["list"])
    data: list[Model]


class Classes(BaseModel):
    """The class names of a model; the position is the class index."""

    model: str = Field(examples=["demo"])
    classes: list[str] = Field(examples=[["zero", "one", "two"]])
    labels: list[int | str] = Field(
        description="For a request: the index of each class, or its name where a number may be another class.",
        examples=[[0, 1, 2]],
    )


class Image(BaseModel):
    """An image and all settings that generate it again."""

    b64_json: str = Field(
        description="PNG as base64, animated for a clip; its metadata has the settings too, under the key ditlab. Or "
        "the file of a clip in the requested format."
    )
    settings: dict[str, Any] = Field(
        description="Every setting with the value that was used, given or default.", examples=[SETTINGS]
    )
    npy_b64: str | None = Field(None, description="All numbers as an .npy file, if they were requested.")
    animation_b64: str | None = Field(None, description="The trajectory as a GIF, if it was requested.")


class Generated(BaseModel):
    """The images, in the order of the request."""

    model_config = ConfigDict(json_schema_extra={"examples": [GENERATED_EXAMPLE]})

    created: int = Field(description="Unix time in seconds.")
    model: str
    data: list[Image]


class Estimate(BaseModel):
    """The network's estimate of the image after a step."""

    t: float = Field(description="The time after the step; 0 is data and 1 is noise.")
    b64_json: str = Field(description="PNG as base64.")


class AttentionMap(BaseModel):
    """The attention weights between patches, averaged over the heads."""

    height: int = Field(description="Rows of patches.")
    width: int = Field(description="Columns of patches.")
    weights: str = Field(
        description="As base64: one byte for each pair of patches, queries first, both row by row; 255 is the largest "
        "weight of a query."
    )
    largest: list[float] = Field(description="The largest weight of each query, from 0 to 1.")


class Inspected(BaseModel):
    """What the network computed while it generated an image."""

    model_config = ConfigDict(json_schema_extra={"examples": [INSPECTED_EXAMPLE]})

    model: str
    settings: dict[str, Any] = Field(description="Every setting with the value that was used, given or default.")
    steps: list[Estimate]
    changes: list[list[float | None]] = Field(
        description="From the second step on: relative change of the output of each block since the step before."
    )
    attentions: int = Field(description="Number of self-attentions in a network call.")
    attention: AttentionMap | None


class Runs(BaseModel):
    """The names of the training runs."""

    runs: list[str] = Field(examples=[["demo"]])


Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class Run(BaseModel):
    """The progress of a training run."""

    id: str = Field(examples=["demo"])
    state: Literal["running", "stopped", "finished", "unknown"] = Field(
        description="stopped: no process trains it, and it has not reached its total. unknown: it has not reached its "
        "total, and its file system has no locks, which show whether a process trains it.",
        examples=["running"],
    )
    images: int = Field(description="Images seen.", examples=[51200])
    total: int = Field(description="Images to see.", examples=[110000])
    seconds_left: float | None = Field(description="Estimated; null if the run is not running.", examples=[97.5])
    seconds_since_entry: float | None = Field(
        description="Age of the latest entry of the curves; null if there is none.", examples=[1.5]
    )
    curves: dict[str, list[Point]] = Field(
        description="Points (images, value) of loss, grad_norm, lr and images_per_second.",
        examples=[{"loss": [[12800, 0.86], [25600, 0.5]]}],
    )
    loss_by_time: list[Point] = Field(
        description="Points (time, loss) of the latest entry; 0 is data and 1 is noise.",
        examples=[[[0.25, 0.3], [0.75, 0.9]]],
    )
    preview: int | None = Field(description="Images seen at the latest preview.", examples=[51200])


class ErrorDetail(BaseModel):
    """One line that says what was wrong and what to do."""

    message: str
    type: str = Field(description="invalid_request_error or server_error.")
    code: int = Field(description="The HTTP status.")


class Error(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail


BINARY, TEXT = {"type": "string", "format": "binary"}, {"type": "string"}
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": [f"image_generation.{kind}" for kind in ("step", "partial_image", "completed")] + ["error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
METRICS: Responses = {
    200: {
        "description": "Prometheus' text format.",
        "content": {"text/plain": {"schema": TEXT, "example": METRICS_EXAMPLE}},
    }
}
PNG: Responses = {200: {"description": "A PNG file.", "content": {"image/png": {"schema": BINARY}}}}
GENERATED: Responses = {
    200: {
        "description": "The images. For a stream: server-sent events that end with the images or with an error.",
        "model": Generated,
        "content": {"text/event-stream": {"itemSchema": EVENT, "example": EVENTS}},
    }
}


def errors(*codes: int) -> Responses:
    """The description of responses with these statuses."""
    return {code: _error(code) for code in codes}


def _error(code: int) -> dict[str, Any]:
    meaning, line = ERRORS[code]
    description: dict[str, Any] = {
        "description": meaning,
        "model": Error,
        "content": {"application/json": {"example": error_body(code, line)}},
    }
    if code == 429:
        description["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return description


def error_body(code: int, message: str) -> dict[str, Any]:
    """The body of a response that is not a success."""
    kind = "invalid_request_error" if code < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": code}}


def model_info(service: Service, name: str) -> dict[str, Any]:
    """A model and its default settings."""
    pipe, about = service.models[name], service.about[name]
    settings = {key: about.defaults[key] for key in ("steps", "sampler", "schedule", "guidance", "guidance_interval")}
    return {
        "id": name,
        "object": "model",
        "path": service.paths.get(name),
        "owned_by": "ditlab",
        "network": pipe.net.config["name"],
        "size": about.size,
        "images": about.images,
        "given": about.given,
        "condition": about.condition,
        "classes": about.classes,
        "prompts": about.prompts,
        **settings,
        "precision": about.precision,
        "model_hash": about.model_hash,
    }


def generated(service: Service, generation: Generation, event: Event) -> dict[str, Any]:
    """The images of the last event of a generation."""
    data = [
        {"b64_json": as_base64(image), "settings": service.settings(generation, i)}
        for i, image in enumerate(event.images)
    ]
    for item, animation in zip(data, event.animations, strict=False):  # there are none unless they were requested
        item["animation_b64"] = as_base64(animation)
    for item, array in zip(data, event.arrays, strict=False):
        item["npy_b64"] = as_base64(array)
    return {"created": int(time.time()), "model": generation.model, "data": data}


def inspected(request: InspectionRequest, inspection: Inspection) -> dict[str, Any]:
    """What the network computed.

    Raises:
        InputError: a step or an attention that does not exist.
    """
    available = {"step": len(inspection.steps), "attention": inspection.attentions}
    for name, count in available.items():
        index = getattr(request, name)
        if index is not None and index >= count:
            hint = f", from 0 to {count - 1}" if count else ""
            raise InputError(f"{name} {index} does not exist; there are {count}{hint}")
    weights = None
    if (attention := inspection.attention) is not None:
        largest = attention.weights.amax(1)
        rows = attention.weights / largest[:, None].clamp(min=1e-12)
        weights = {
            "height": attention.height,
            "width": attention.width,
            "weights": as_base64((255 * rows).round().to(torch.uint8).cpu().numpy().tobytes()),
            "largest": [round(value, 4) for value in largest.tolist()],
        }
    return {
        "model": inspection.settings["model"],
        "settings": inspection.settings,
        "steps": [{"t": t, "b64_json": as_base64(image)} for t, image in inspection.steps],
        "changes": inspection.changes,
        "attentions": inspection.attentions,
        "attention": weights,
    }
