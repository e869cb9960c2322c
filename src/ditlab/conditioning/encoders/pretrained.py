"""Pretrained text encoders of the transformers library: CLIP, T5, BERT, Llama, Gemma, Qwen and others."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ditlab.conditioning.encoders.base import Encoder, flag_option, whole_option
from ditlab.core.errors import InputError, lookup, nearest_path, nothing_at
from ditlab.core.formats import reason
from ditlab.core.hub import hub_library, is_hub_id
from ditlab.core.spelling import absolute, expand
from ditlab.core.types import Condition, TextShape
from ditlab.core.weights import weights_digest

MOST_TOKENS = 256  # default limit of the length, which is otherwise that of the longest caption
AT_ONCE = 64  # texts that are encoded at a time
REQUEST_SECONDS = 10  # longest wait for an answer of the hub
TEXT_CLASSES = {
    "clip": "CLIPTextModelWithProjection", "t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel",
}  # fmt: skip
"""model_type -> class of the text part of models that have other parts too."""
SIDES = {"left": 0, "right": 1}
POOLED = {"none": 0, "model": 1, "mean": 2}


class Pretrained(Encoder):
    """Encodes texts as hidden states of a pretrained model, which stays as it is.

    Args:
        model: a folder, or a hub id.
        length: number of tokens to which every text is padded or cut.
        width: width of the states.
        hash: of the weights and the vocabulary; they are compared when the first text is encoded.
        pooled_width: width of the pooled vector; 0 if there is none.
        layer: -1 is the output of the model, after its last normalization; -2 and so on, or 0 and so on, are the hidden
            states between its layers.
        mask: whether padding is masked, in the encoder and in the network.
        padding: number of the padding token; None is that of the tokenizer.
        padding_side: left or right.
        pooled: none, model (the vector that the model itself provides, projected if it has a projection) or mean (of
            the states).
        tokenizer: folder or hub id of the tokenizer, if it is not with the model.
    """

    kind = "transformers"
    options: ClassVar[tuple[str, ...]] = (
        "model",
        "length",
        "layer",
        "mask",
        "padding",
        "padding_side",
        "pooled",
        "tokenizer",
    )

    def __init__(
        self,
        model: str,
        length: int,
        width: int,
        hash: str,
        pooled_width: int = 0,
        layer: int = -1,
        mask: bool = True,
        padding: int | None = None,
        padding_side: str = "right",
        pooled: str = "none",
        tokenizer: str = "",
    ) -> None:
        self.shape = TextShape(length, width=width, pooled=pooled_width)
        self.hash, self.layer, self.mask, self.padding, self.side, self.pooled = (
            hash,
            layer,
            mask,
            padding,
            padding_side,
            pooled,
        )
        self.config = {
            "kind": self.kind, "model": model, "tokenizer": tokenizer, "hash": hash, "length": length, "width": width,
            "pooled_width": pooled_width, "layer": layer, "mask": mask, "padding": padding,
            "padding_side": padding_side, "pooled": pooled,
        }  # fmt: skip

    @classmethod
    def for_captions(cls, captions: Sequence[str], options: Mapping[str, Any]) -> Self:
        if not options.get("model"):
            raise InputError(
                "the encoder transformers has no model; set data.encoder_options.model to a folder or hub id"
            )
        return cls.open(captions=captions, **options)

    @classmethod
    def open(cls, model: str, *, captions: Sequence[str] = (), **options: Any) -> Self:
        """Open a pretrained model, and complete the options: its width, its hash, and the length.

        Args:
            model: a folder, or a hub id.
            captions: the longest one determines the length if this is not given, up to `MOST_TOKENS`.
            options: the other arguments of the class, except widths and hash.

        Raises:
            InputError: the model cannot be loaded, or an option is invalid.
        """
        values = cls.checked({"model": model, **options})
        trial = cls(**values | {"length": values.get("length", MOST_TOKENS), "width": 0, "hash": ""})
        if "length" not in values:
            values["length"] = trial.length_for(captions)
            trial = cls(**values | {"width": 0, "hash": ""})
        states, pooled, _ = trial.computed([""])
        width = 0 if pooled is None else pooled.shape[-1]
        return cls(**values | {"width": states.shape[-1], "pooled_width": width, "hash": trial.present_hash})

    @staticmethod
    def checked(options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a recipe with their types, and with absolute folders.

        Raises:
            InputError: a value is invalid.
        """
        values = dict(options)
        for name in ("model", "tokenizer"):
            if values.get(name):
                values[name] = absolute(str(values[name]))
        for name in ("length", "layer", "padding"):
            if values.get(name) is not None:
                values[name] = whole_option(name, values[name])
        if "mask" in values:
            values["mask"] = flag_option("mask", values["mask"])
        if "length" in values and values["length"] < 1:
            raise InputError(f"length is {values['length']}; give 1 or more")
        lookup(SIDES, values.get("padding_side", "right"), "padding_side")
        lookup(POOLED, values.get("pooled", "none"), "pooled")
        return values

    def encode(self, texts: Sequence[str]) -> Condition:
        """Encode texts as tokens (B, length, width) float32, with a mask and, if the rule has one, a pooled vector."""
        if self.present_hash != self.hash:
            raise InputError(
                f"the text encoder {self.place} has the hash {self.present_hash}, but this model was trained with "
                f"{self.hash}; give that encoder (conditioner.encoder.model in config.json of the model)"
            )
        return Condition.cat([self.encoded(texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)])

    def encoded(self, texts: Sequence[str]) -> Condition:
        """Encode a few texts."""
        states, pooled, mask = self.computed(texts)
        return Condition(tokens=states, mask=mask, pooled=pooled)

    @torch.no_grad()
    def computed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None, Tensor]:
        """States (B, L, E) float32, pooled vectors (B, P) or None, and the mask (B, L), on the CPU."""
        ids, mask = self.inputs(texts)
        masked = {"attention_mask": mask.long()} if self.mask else {}
        output = self.net(input_ids=ids, output_hidden_states=True, **masked)
        states = output.last_hidden_state if self.layer == -1 else output.hidden_states[self.layer]
        mask = mask if self.mask else torch.ones_like(mask)
        return states.float().cpu(), self._pooled(output, states, mask), mask.cpu()

    def inputs(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The numbers of the tokens of texts (B, L) int64, padded or cut, and the mask (B, L), on the device."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.shape.length, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"].bool()
        if self.padding is not None:
            ids = ids.masked_fill(~mask, self.padding)
        mask[:, 0 if self.side == "right" else -1] = True  # a text without tokens, which some tokenizers leave empty
        device = next(self.net.parameters()).device
        return ids.to(device), mask.to(device)

    def length_for(self, captions: Sequence[str]) -> int:
        """The tokens of the longest caption, up to what the model reads and `MOST_TOKENS`."""
        limit = min(MOST_TOKENS, self.longest)
        return min(limit, max([len(self.ids(text)) for text in captions], default=limit))

    def _pooled(self, output: Any, states: Tensor, mask: Tensor) -> Tensor | None:
        if self.pooled == "none":
            return None
        if self.pooled == "mean":
            counts = mask.unsqueeze(-1).to(states)
            return ((states * counts).sum(1) / counts.sum(1)).float().cpu()
        for name in ("text_embeds", "pooler_output"):
            if (vector := getattr(output, name, None)) is not None:
                return vector.float().cpu()
        raise InputError(f"the text encoder {self.place} has no pooled vector; set pooled to mean or none")

    def ids(self, text: str) -> list[int]:
        """The numbers of all tokens of a text, without padding and not cut."""
        return list(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def cut(self, text: str) -> str:
        if len(text) <= self.shape.length // 4 or len(self.ids(text)) <= self.shape.length:
            return ""
        kept = self.tokenizer(
            text, truncation=True, max_length=self.shape.length, return_offsets_mapping=True, verbose=False
        )
        return text[max(end for _, end in kept["offset_mapping"]) :].strip()

    def release(self) -> None:
        vars(self).pop("net", None)

    @property
    def place(self) -> str:
        """The folder or hub id of the model."""
        return str(self.config["model"])

    @property
    def tokenizer_place(self) -> str:
        """The folder or hub id of the tokenizer."""
        return self.config["tokenizer"] or self.place

    @cached_property
    def net(self) -> Any:
        """The pretrained model in float32, on the GPU if there is one."""
        transformers = library()
        with loading(self.place, transformers):
            config = transformers.AutoConfig.from_pretrained(source(self.place))
            name = next(iter(config.architectures or ()), "")
            text_part = name in {*TEXT_CLASSES.values(), "CLIPTextModel"}
            kind = getattr(transformers, name if text_part else TEXT_CLASSES.get(config.model_type, "AutoModel"))
            net = kind.from_pretrained(source(self.place), dtype=torch.float32)
        return net.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, set to this padding side."""
        transformers = library()
        with loading(self.tokenizer_place, transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source(self.tokenizer_place))
        tokenizer.padding_side = self.side
        if tokenizer.pad_token is None:  # of language models, which need none
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def longest(self) -> int:
        """The most tokens that the model reads."""
        limits = (getattr(self.net.config, "max_position_embeddings", 0), self.tokenizer.model_max_length)
        return int(min((limit for limit in limits if limit), default=MOST_TOKENS))

    @cached_property
    def present_hash(self) -> str:
        """Hash of the weights and the vocabulary that are on this machine, 16 digits."""
        vocabulary = repr(sorted(self.tokenizer.get_vocab().items())).encode()
        return weights_digest(self.net, hashlib.sha256(vocabulary).digest()).hexdigest()[:16]


def pipeline_folder(place: str | Path) -> Path:
    """A pipeline folder of diffusers, whose encoders are opened.

    Raises:
        InputError: there is none.
    """
    folder = Path(expand(str(place)))
    if not (folder / "text_encoder").is_dir():
        raise nothing_at(folder, "pipeline with a text_encoder", "give a pipeline folder of diffusers")
    return folder


def library() -> Any:
    """Import the transformers library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError("text encoders need transformers; pip install 'ditlab[text]'") from None
    return transformers


def source(place: str, what: str = "text encoder") -> str:
    """The absolute path of a folder, or a hub id, which may have no owner, such as "bert-base-uncased".

    Args:
        place: what the user gave.
        what: what it is called in messages.

    Raises:
        InputError: it is neither.
    """
    folder = Path(expand(place))
    if folder.is_dir():
        return str(folder)
    if not is_hub_id(place) and not re.fullmatch(r"\w[\w.-]*", place):
        remedy = f"download the {what}, or give its folder (in config.json of a model: conditioner.encoder)"
        raise nothing_at(folder, what, remedy)
    return on_hub(place, what)


@cache
def on_hub(place: str, what: str) -> str:
    """A hub id, or the folder of the copy on this machine if the hub cannot be reached.

    This asks the hub once. Without a connection, transformers would repeat each of its requests for 20 seconds.

    Raises:
        InputError: the hub does not have it, or cannot be reached, and there is no copy.
    """
    hub = hub_library()
    try:
        hub.HfApi().repo_info(place, timeout=REQUEST_SECONDS)
    except Exception as error:  # the library raises exceptions of many types
        copy = hub.try_to_load_from_cache(place, "config.json")
        if isinstance(copy, str):
            return str(Path(copy).parent)
        remedy = nearest_path(Path(place), f"give the folder of a {what} on this machine")
        raise InputError(
            f"the {what} {place} is no folder, and cannot be downloaded from the hub ({reason(error)}); {remedy}"
        ) from error
    return place


@contextmanager
def loading(place: str, transformers: Any, what: str = "text encoder") -> Iterator[None]:
    """Report in one line that a pretrained model cannot be loaded in the enclosed block; the library prints nothing.

    Raises:
        InputError: it cannot be loaded.
    """
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library raises exceptions of many types
        raise InputError(
            f"the {what} {place} cannot be loaded ({reason(error)}); give a folder that transformers saved, with "
            "its tokenizer"
        ) from error
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
