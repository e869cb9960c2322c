"""Language models whose keys and values, layer by layer, are the condition of the network (`DeepFusion`)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ditlab.conditioning.encoders.minilm import model_folder
from ditlab.conditioning.encoders.pretrained import MOST_TOKENS, Pretrained
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, TextShape


class LanguageModel(Pretrained):
    """Encodes texts as the keys and values of all layers of a pretrained model, which stays as it is.

    Of a language model (Llama, Gemma, Qwen and others) these are the keys with their rotary positions, as the model
    itself attends to them. Of BERT and its relatives, which read a text in both directions and add positions to the
    words, they are the outputs of the key and value layers.

    Args:
        model: a folder, or a hub id.
        length: number of tokens to which every text is padded or cut; padding comes last and is masked.
        layers: number of layers.
        heads: key and value heads of each layer.
        head_width: channels of a head.
        hash: of the weights and the vocabulary; they are compared when the first text is encoded.
        tokenizer: folder or hub id of the tokenizer, if it is not with the model.
    """

    kind = "language-model"
    options: ClassVar[tuple[str, ...]] = ("model", "length", "tokenizer")

    def __init__(
        self, model: str, length: int, layers: int, heads: int, head_width: int, hash: str, tokenizer: str = ""
    ) -> None:
        super().__init__(model, length, 0, hash, tokenizer=tokenizer)
        self.shape = TextShape(length, layers=layers, heads=heads, head_width=head_width)
        self.config = {
            "kind": self.kind, "model": model, "tokenizer": tokenizer, "hash": hash, "length": length,
            "layers": layers, "heads": heads, "head_width": head_width,
        }  # fmt: skip

    @classmethod
    def open(cls, model: str, *, captions: Sequence[str] = (), **options: Any) -> Self:
        """Open a pretrained model, and complete the options: its geometry, its hash, and the length.

        Raises:
            InputError: the model cannot be loaded, has no keys and values, or an option is invalid.
        """
        values = cls.checked({"model": model, **options})
        geometry = {"layers": 0, "heads": 0, "head_width": 0, "hash": ""}
        trial = cls(**values | geometry | {"length": values.get("length", MOST_TOKENS)})
        if "length" not in values:
            values["length"] = trial.length_for(captions)
        trial.shape = TextShape(1)
        keys, _, _ = trial.layers([""])
        sizes = {"layers": keys.shape[1], "heads": keys.shape[3], "head_width": keys.shape[4]}
        return cls(**values | sizes | {"hash": trial.present_hash})

    def encoded(self, texts: Sequence[str]) -> Condition:
        """Encode a few texts as keys and values (B, layers, length, heads, d) float32, with a mask."""
        keys, values, mask = self.layers(texts)
        return Condition(mask=mask, layer_keys=keys, layer_values=values)

    @torch.no_grad()
    def layers(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B, layers, L, heads, d) float32, and the mask (B, L), on the CPU."""
        ids, mask = self.inputs(texts)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        pairs = bidirectional(self.net, inputs) or cached(self.net, inputs)
        if not pairs or len({(*key.shape, *value.shape) for key, value in pairs}) != 1:
            raise InputError(
                f"the text encoder {self.place} has no keys and values of one size in all layers; give a language "
                "model such as Llama, or a BERT"
            )
        keys, values = (torch.stack(part, 1).float().cpu() for part in zip(*pairs, strict=True))
        return keys.transpose(2, 3), values.transpose(2, 3), mask.cpu()


def cached(net: Any, inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values (B, heads, L, d) that a causal model keeps for each layer; none for other models."""
    try:
        past = getattr(net(**inputs, use_cache=True), "past_key_values", None)
    except (TypeError, ValueError):  # an encoder, such as T5's, keeps nothing
        return []
    return [(layer.keys, layer.values) for layer in getattr(past, "layers", [])]


def bidirectional(net: Any, inputs: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values (B, heads, L, d) of a BERT, layer by layer; none for other models."""
    layers = getattr(getattr(net, "encoder", None), "layer", ())
    parts = [layer.attention.self for layer in layers if hasattr(getattr(layer, "attention", None), "self")]
    outputs: list[Tensor] = []
    hooks = [
        linear.register_forward_hook(lambda module, given, output: outputs.append(output))
        for part in parts
        for linear in (part.key, part.value)
    ]
    try:
        if parts:
            net(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    count = net.config.num_attention_heads
    heads = [torch.unflatten(output, -1, (count, -1)).transpose(1, 2) for output in outputs]
    return list(zip(heads[::2], heads[1::2], strict=True))


class MiniLMLayers(LanguageModel):
    """Keys and values of MiniLM, which is in a package of PyPI: nothing is downloaded.

    It is a sentence encoder and no language model: a stand-in with which `DeepFusion` can be tried without a download.
    """

    kind = "minilm-layers"
    options = ("length",)

    def __init__(self, **options: Any) -> None:
        super().__init__("", **{key: value for key, value in options.items() if key not in ("model", "tokenizer")})
        self.config = {key: value for key, value in self.config.items() if key not in ("model", "tokenizer")}

    @classmethod
    def for_captions(cls, captions: Sequence[str], options: Mapping[str, Any]) -> Self:
        return cls.open(model_folder(), captions=captions, **options)

    @property
    def place(self) -> str:
        """The folder in the package."""
        return model_folder()

    @property
    def tokenizer_place(self) -> str:
        """The folder in the package."""
        return model_folder()
