"""The two text encoders of Flux.1: the states of a T5, and the pooled vector of a CLIP. No padding is masked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from ditlab.conditioning.encoders.base import Encoder, Region, whole_option
from ditlab.conditioning.encoders.pretrained import Pretrained, pipeline_folder
from ditlab.conditioning.encoders.sd3 import CLIP_TOKENS, without_kind
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, TextShape

T5_TOKENS = 512
FOLDERS = {"clip": "", "t5": "_2"}  # ends of the names of folders in a pipeline of diffusers


class FluxTexts(Encoder):
    """A T5 and a CLIP; tokens (B, t5_length, width of T5), pooled (B, width of CLIP).

    Args:
        clip, t5: the configs of both, see `Pretrained`.
    """

    options = ("model", "t5_length")

    def __init__(self, clip: Mapping[str, Any], t5: Mapping[str, Any]) -> None:
        self.clip, self.t5 = (Pretrained(**without_kind(part)) for part in (clip, t5))
        self.config = {"kind": "flux", "clip": self.clip.config, "t5": self.t5.config}
        self.shape = TextShape(self.t5.shape.length, width=self.t5.shape.width, pooled=self.clip.shape.pooled)

    @classmethod
    def for_captions(cls, captions: Sequence[str], options: Mapping[str, Any]) -> Self:
        if not options.get("model"):
            raise InputError("the encoder flux has no model; set data.encoder_options.model to a pipeline of diffusers")
        length = {"t5_length": options["t5_length"]} if "t5_length" in options else {}
        return cls.from_pipeline(str(options["model"]), **length)

    @classmethod
    def from_pipeline(cls, folder: str | Path, t5_length: int = T5_TOKENS) -> Self:
        """Open the encoders in a pipeline folder of diffusers.

        Args:
            folder: the folder.
            t5_length: tokens of T5: 512 in diffusers; 256 in the reference code for Flux.1 schnell.

        Raises:
            InputError: an encoder is missing or cannot be loaded.
        """
        pipeline = pipeline_folder(folder)
        rules: dict[str, dict[str, Any]] = {
            "clip": {"length": CLIP_TOKENS, "pooled": "model"},
            "t5": {"length": whole_option("t5_length", t5_length)},
        }
        parts = {}
        for name, end in FOLDERS.items():
            model, tokenizer = pipeline / f"text_encoder{end}", pipeline / f"tokenizer{end}"
            parts[name] = Pretrained.open(str(model), tokenizer=str(tokenizer), mask=False, **rules[name]).config
        return cls(**parts)

    def encode(self, texts: Sequence[str]) -> Condition:
        tokens = self.t5.encode(texts).tokens
        assert tokens is not None
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return Condition(tokens=tokens, mask=mask, pooled=self.clip.encode(texts).pooled)

    def regions(self) -> dict[str, Region]:
        """The pooled vector of CLIP, and the tokens of T5."""
        nothing, everything = slice(0, 0), slice(None)
        return {"clip": Region(nothing, nothing, everything), "t5": Region(everything, everything, nothing)}

    def release(self) -> None:
        for part in (self.clip, self.t5):
            part.release()

    def cut(self, text: str) -> str:
        """The end of a text that T5, the only encoder of all words, does not read."""
        return self.t5.cut(text)
