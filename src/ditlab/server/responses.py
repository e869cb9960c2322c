"""What the HTTP API answers, as its description tells it: a form and an example for each answer.

The answers themselves are plain dicts, made where the work is done; the tests hold them against these forms.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Responses = dict[int | str, dict[str, Any]]

# One white pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
SETTINGS = {"model": "demo", "label": 3, "seed": 0}
DRAWN: dict[str, Any] = {"created": 1767225600, "model": "demo", "data": [{"b64_json": PIXEL, "settings": SETTINGS}]}
SEEN: dict[str, Any] = {
    "model": "demo",
    "steps": [{"t": 0.5, "b64_json": PIXEL}, {"t": 0.0, "b64_json": PIXEL}],
    "changes": [[0.31, 0.27, None]],
    "attentions": 3,
    "attention": {"height": 1, "width": 1, "weights": "/w=="},
}
EVENTS = f"""event: image_generation.step
data: {{"type": "image_generation.step", "step": 1, "steps": 2}}

event: image_generation.partial_image
data: {{"type": "image_generation.partial_image", "step": 1, "steps": 2, "partial_image_index": 0, \
"data": [{{"b64_json": "{PIXEL}"}}]}}

event: image_generation.completed
data: {{"type": "image_generation.completed", "step": 2, "steps": 2, "created": 1767225600, "model": "demo", \
"data": [{{"b64_json": "{PIXEL}", "settings": {{"model": "demo", "label": 3, "seed": 0}}}}]}}

"""
FIGURES = (
    "# HELP ditlab_pictures_total pictures drawn\n# TYPE ditlab_pictures_total counter\nditlab_pictures_total 4.0\n"
)
FAULTS = {
    400: ("An order that cannot be drawn.", 'unknown class "bea"; did you mean "bee"?'),
    404: ("Nothing there yet.", "the run demo has no preview yet; come back later"),
    401: ("No token, or a wrong one.", "a token is needed: Authorization: Bearer TOKEN"),
    411: ("A body whose length is not told.", "the body's length must be told before"),
    413: ("A body that is too long.", "a body of 52428800 bytes; at most 16777216 are taken"),
    422: ("A body or parameter of another form.", "n: Input should be greater than or equal to 1"),
    429: ("No place is free.", "32 drawings are in progress, which is as many as there may be; come back in a second"),
    503: ("A drawing that failed or took too long.", "not done after 120 s; ask for fewer steps or pictures"),
}


class Health(BaseModel):
    """Always the same."""

    status: str = Field(examples=["ok"])


class Ready(Health):
    """With the names of the models."""

    models: list[str] = Field(examples=[["demo"]])


class Model(BaseModel):
    """What a model draws, and how if nothing else is said."""

    id: str = Field(description="The name under which it is asked for.", examples=["demo"])
    object: str = Field(examples=["model"])
    owned_by: str = Field(examples=["ditlab"])
    network: str = Field(examples=["DiT"])
    size: str = Field(description="WIDTHxHEIGHT of its pictures.", examples=["32x32"])
    classes: int = Field(description="How many; none is 0.", examples=[10])
    sampler: str = Field(examples=["ab4"])
    num_inference_steps: int = Field(examples=[20])
    guidance_scale: float = Field(examples=[1.5])
    guidance_interval: list[float] = Field(description="Two times, 0 is data and 1 noise.", examples=[[0.0, 1.0]])


class Models(BaseModel):
    """All of them; the first one draws what names none."""

    object: str = Field(examples=["list"])
    data: list[Model]


class Classes(BaseModel):
    """The names of a model's classes; a class's index is its position."""

    model: str = Field(examples=["demo"])
    classes: list[str] = Field(examples=[["zero", "one", "two"]])


class Picture(BaseModel):
    """A picture and all that draws it again."""

    b64_json: str = Field(description="PNG as base64; its metadata holds the settings too, under ditlab.")
    settings: dict[str, Any] = Field(examples=[SETTINGS])
    animation_b64: str | None = Field(None, description="Its way as a GIF, where that was asked for.")


class Drawn(BaseModel):
    """The pictures in the order in which they were asked for."""

    model_config = ConfigDict(json_schema_extra={"examples": [DRAWN]})

    created: int = Field(description="Seconds since 1970.")
    model: str
    data: list[Picture]


class Estimate(BaseModel):
    """The network's estimate of the picture."""

    t: float = Field(description="The time behind the step, 0 is data and 1 noise.")
    b64_json: str = Field(description="PNG as base64.")


class Attention(BaseModel):
    """What each patch attends to, averaged over the heads."""

    height: int = Field(description="Rows of patches.")
    width: int
    weights: str = Field(
        description="As base64: a byte for each pair, queries first, both row by row; 255 is the most of a query."
    )


class Seen(BaseModel):
    """What the network did while it drew."""

    model_config = ConfigDict(json_schema_extra={"examples": [SEEN]})

    model: str
    steps: list[Estimate]
    changes: list[list[float | None]] = Field(
        description="From the second step on: the relative change of each block's output since the step before."
    )
    attentions: int = Field(description="Self-attentions in a network call.")
    attention: Attention | None


class Runs(BaseModel):
    """The names of training runs."""

    runs: list[str] = Field(examples=[["demo"]])


Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class Run(BaseModel):
    """How a training run goes."""

    id: str = Field(examples=["demo"])
    images: int = Field(description="Seen so far.", examples=[51200])
    total: int = Field(description="At the end.", examples=[110000])
    seconds_left: float | None = Field(examples=[97.5])
    curves: dict[str, list[Point]] = Field(
        description="Points (images, value) of loss, grad_norm, lr and images_per_second.",
        examples=[{"loss": [[12800, 0.86], [25600, 0.5]]}],
    )
    loss_by_time: list[Point] = Field(
        description="Points (time, loss) of the last line, 0 is data and 1 noise.",
        examples=[[[0.25, 0.3], [0.75, 0.9]]],
    )
    preview: int | None = Field(description="Images seen at the newest preview.", examples=[51200])


class Message(BaseModel):
    """A line for people, and what kind of fault it is."""

    message: str
    type: str = Field(description="invalid_request_error, or server_error.")
    code: int = Field(description="The status of the answer.")


class Fault(BaseModel):
    """What went wrong."""

    error: Message


BYTES, TEXT = {"type": "string", "format": "binary"}, {"type": "string"}
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": [f"image_generation.{kind}" for kind in ("step", "partial_image", "completed")] + ["error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
METRICS: Responses = {
    200: {"description": "Prometheus' text form.", "content": {"text/plain": {"schema": TEXT, "example": FIGURES}}}
}
THUMBNAIL: Responses = {200: {"description": "A PNG file.", "content": {"image/png": {"schema": BYTES}}}}
GENERATED: Responses = {
    200: {
        "description": "The pictures; for a stream, server-sent events that end with them or with an error.",
        "model": Drawn,
        "content": {"text/event-stream": {"itemSchema": EVENT, "example": EVENTS}},
    }
}


def faults(*codes: int) -> Responses:
    """The description of answers with these statuses."""
    return {code: described(code) for code in codes}


def described(code: int) -> dict[str, Any]:
    """An answer that says what went wrong."""
    meaning, line = FAULTS[code]
    kind = "invalid_request_error" if code < 500 else "server_error"
    example = {"error": {"message": line, "type": kind, "code": code}}
    told: dict[str, Any] = {
        "description": meaning,
        "model": Fault,
        "content": {"application/json": {"example": example}},
    }
    if code == 429:
        told["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return told
