"""The three text encoders of Stable Diffusion 3, joined as its pipelines join them.

The states of both CLIPs lie side by side on the channels, are padded with zeros to the width of T5, and precede the
states of T5. No padding is masked. Without T5, zeros take the place of its states.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F

from ditlab.conditioning.encoders.base import Encoder, Region, whole_option
from ditlab.conditioning.encoders.pretrained import Pretrained, pipeline_folder
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, TextShape

CLIP_TOKENS, T5_TOKENS, WIDTH = 77, 256, 4096
PARTS = ("clip_l", "clip_g", "t5")
FOLDERS = {"clip_l": "", "clip_g": "_2", "t5": "_3"}  # ends of the names of folders in a pipeline of diffusers


class SD3(Encoder):
    """Two CLIPs and a T5; tokens (B, 77 + t5_length, width), pooled (B, both CLIPs).

    Args:
        clip_l, clip_g: the configs of the two CLIPs, see `Pretrained`.
        t5: that of T5; None for zeros.
        t5_length: tokens of T5: 256 in diffusers, 77 in the reference code.
        width: width of the states: that of T5.
    """

    options = ("model", "t5_length", "width")

    def __init__(
        self,
        clip_l: Mapping[str, Any],
        clip_g: Mapping[str, Any],
        t5: Mapping[str, Any] | None = None,
        t5_length: int = T5_TOKENS,
        width: int = WIDTH,
    ) -> None:
        given = zip(PARTS, (clip_l, clip_g, t5), strict=True)
        self.parts = {name: Pretrained(**without_kind(part)) for name, part in given if part is not None}
        self.config = {"kind": "sd3", **{name: part.config for name, part in self.parts.items()}}
        self.config |= {"t5": self.config.get("t5"), "t5_length": t5_length, "width": width}
        clips = [self.parts[name].shape for name in PARTS[:2]]
        self.length, pooled = clips[0].length, sum(shape.pooled for shape in clips)
        self.shape = TextShape(self.length + t5_length, width=width, pooled=pooled)
        if sum(shape.width for shape in clips) > width:
            raise InputError(f"the width of T5 is {width}, less than that of both CLIPs; give the width of the network")

    @classmethod
    def for_captions(cls, captions: Sequence[str], options: Mapping[str, Any]) -> Self:
        if not options.get("model"):
            raise InputError("the encoder sd3 has no model; set data.encoder_options.model to a pipeline of diffusers")
        return cls.from_pipeline(
            str(options["model"]), **{key: options[key] for key in cls.options[1:] if key in options}
        )

    @classmethod
    def from_pipeline(cls, folder: str | Path, t5_length: int = T5_TOKENS, width: int | None = None) -> Self:
        """Open the encoders in a pipeline folder of diffusers; a pipeline without text_encoder_3 has no T5.

        Args:
            folder: the folder.
            t5_length: tokens of T5.
            width: width of the states of the network; by default that of T5, or without it that of Stable Diffusion 3.

        Raises:
            InputError: an encoder is missing or cannot be loaded.
        """
        pipeline = pipeline_folder(folder)
        parts: dict[str, Any] = {"t5": None}
        for name, end in FOLDERS.items():
            model, tokenizer = pipeline / f"text_encoder{end}", pipeline / f"tokenizer{end}"
            if not model.is_dir() and name == "t5":
                continue
            rule: dict[str, Any] = {"length": whole_option("t5_length", t5_length), "mask": False}
            if name != "t5":
                rule = {"length": CLIP_TOKENS, "mask": False, "layer": -2, "pooled": "model"}
            parts[name] = Pretrained.open(str(model), tokenizer=str(tokenizer), **rule).config
        wide = parts["t5"]["width"] if parts["t5"] else WIDTH
        return cls(**parts, t5_length=int(t5_length), width=whole_option("width", width or wide))

    def encode(self, texts: Sequence[str]) -> Condition:
        first, second = (self.parts[name].encode(texts) for name in PARTS[:2])
        assert first.tokens is not None
        assert second.tokens is not None
        clip = torch.cat([first.tokens, second.tokens], dim=-1)
        clip = F.pad(clip, (0, self.shape.width - clip.shape[-1]))
        if "t5" in self.parts:
            last = self.parts["t5"].encode(texts).tokens
            assert last is not None
        else:
            last = clip.new_zeros(len(texts), self.shape.length - self.length, self.shape.width)
        tokens = torch.cat([clip, last], dim=1)
        pooled = [part.pooled for part in (first, second) if part.pooled is not None]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return Condition(tokens=tokens, mask=mask, pooled=torch.cat(pooled, dim=-1))

    def regions(self) -> dict[str, Region]:
        """The channels and pooled values of each CLIP, and the tokens of T5."""
        first, second = (self.parts[name].shape for name in PARTS[:2])
        clips, wide = slice(0, self.length), first.width + second.width
        return {
            "clip_l": Region(clips, slice(0, first.width), slice(0, first.pooled)),
            "clip_g": Region(clips, slice(first.width, wide), slice(first.pooled, first.pooled + second.pooled)),
            "t5": Region(slice(self.length, None), slice(None), slice(0, 0)),
        }

    def release(self) -> None:
        for part in self.parts.values():
            part.release()

    def cut(self, text: str) -> str:
        """The end of a text that no encoder reads."""
        return min((part.cut(text) for part in self.parts.values()), key=len)


def without_kind(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the config of an encoder."""
    return {key: value for key, value in config.items() if key != "kind"}
