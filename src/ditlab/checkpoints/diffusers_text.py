"""Open the text encoders of a diffusers pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditlab.backbones import Backbone
from ditlab.conditioning import Text
from ditlab.conditioning.encoders import SD3, Encoder, FluxTexts, NoEncoder
from ditlab.core.errors import InputError
from ditlab.core.weights import read_json

INDEX = "model_index.json"


def sd3(folder: Path, net: Backbone) -> Encoder:
    """Open the two CLIPs and the T5 of Stable Diffusion 3."""
    return SD3.from_pipeline(folder, width=net.text.width)


def flux(folder: Path, net: Backbone) -> Encoder:
    """Open the CLIP and the T5 of Flux.1."""
    return FluxTexts.from_pipeline(folder, t5_length=net.text.length)


OPEN: dict[str, Callable[[Path, Backbone], Encoder]] = {"StableDiffusion3Pipeline": sd3, "FluxPipeline": flux}
"""Class of the pipeline -> what opens its text encoders."""


def text_conditioner(folder: Path, net: Backbone) -> Text:
    """Return the conditioner of a network that reads text, with the encoders in the folder of its pipeline.

    Args:
        folder: the folder; one without encoders gives a conditioner that cannot encode.
        net: the network.

    Raises:
        InputError: the encoders are not those of the network.
    """
    name = read_json(folder / INDEX).get("_class_name") if (folder / INDEX).is_file() else None
    text = net.text
    if name not in OPEN or not (folder / "text_encoder").is_dir():
        return Text(NoEncoder(text.length, text.width, text.pooled).config)
    encoder = OPEN[name](folder, net)
    if encoder.shape != text:
        raise InputError(
            f"the text encoders in {folder} give {described(encoder.shape)}, and the transformer reads "
            f"{described(text)}; download the whole folder again"
        )
    return Text(encoder.config)  # reads the weights when it encodes: a run with a text cache never does


def described(shape: Any) -> str:
    """A text shape in words."""
    return f"{shape.length} tokens of {shape.width} values and a pooled vector of {shape.pooled}"
