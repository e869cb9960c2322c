"""Text encoders. To add one, write a file with a subclass of `Encoder` and a line in `ENCODERS`."""

from typing import Any

from ditlab.conditioning.encoders.absent import NoEncoder
from ditlab.conditioning.encoders.base import Encoder
from ditlab.conditioning.encoders.flux import FluxTexts
from ditlab.conditioning.encoders.language_model import LanguageModel, MiniLMLayers
from ditlab.conditioning.encoders.minilm import MiniLM
from ditlab.conditioning.encoders.pretrained import Pretrained
from ditlab.conditioning.encoders.sd3 import SD3
from ditlab.conditioning.encoders.words import Words
from ditlab.core.registry import Registry

ENCODERS: Registry[type[Encoder]] = Registry(
    "encoder",
    {
        "words": Words,
        "minilm": MiniLM,
        "transformers": Pretrained,
        "sd3": SD3,
        "flux": FluxTexts,
        "language-model": LanguageModel,
        "minilm-layers": MiniLMLayers,
    },
    base=Encoder,
)

__all__ = [
    "ENCODERS",
    "SD3",
    "Encoder",
    "FluxTexts",
    "LanguageModel",
    "MiniLM",
    "MiniLMLayers",
    "NoEncoder",
    "Pretrained",
    "Words",
    "create_encoder",
]


def create_encoder(kind: str, **options: Any) -> Encoder:
    """Build a text encoder from its saved `config`.

    Raises:
        InputError: an unknown kind, or the encoder is not on this machine.
    """
    return NoEncoder(**options) if kind == NoEncoder.kind else ENCODERS.find(kind)(**options)
