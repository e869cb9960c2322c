"""The cache of encoded captions, so that training runs the text encoder once for each caption.

    cache/description.json          the config of the encoder, and the hash of its rule
    cache/000000.safetensors        keys (n, 16), tokens (n, L, E) bfloat16, mask (n, L) and pooled (n, P) float32,
                                    or layer_keys and layer_values bfloat16 instead of tokens

The key of a caption is a hash of its text. A cache belongs to one encoder and one rule.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from ditlab.conditioning.encoders import Encoder, create_encoder
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.file_cache import file_cache
from ditlab.core.formats import interpreting, read_object
from ditlab.core.io import is_vacant, replace_text
from ditlab.core.spelling import expand
from ditlab.core.stores import create, is_url, join, matching, read_json, upload
from ditlab.core.types import Condition
from ditlab.core.units import counted
from ditlab.core.weights import write_tensors

DESCRIPTION, FORMAT = "description.json", "ditlab text states"
FILE_BYTES = 64 * 2**20  # of a file, about
DIGEST = 16  # bytes of a key


class TextCache:
    """The encoded captions in a folder."""

    def __init__(self, folder: Path, config: dict[str, Any], rule: str) -> None:
        """A cache; `open` and `prepare` make one.

        Args:
            folder: its folder.
            config: the config of the encoder.
            rule: hash of the encoder's rule.
        """
        self.folder, self.config, self.rule = folder, config, rule
        self.files = [Stored(file) for file in sorted(folder.glob("*.safetensors"))]
        self.places = {key: (i, row) for i, file in enumerate(self.files) for row, key in enumerate(file.keys)}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a cache.

        Raises:
            InputError: the folder is no cache, or is damaged.
        """
        file = folder / DESCRIPTION
        if not file.is_file():
            remedy = nearest_path(folder, "give a folder that `ditlab encode` wrote for captions")
            raise InputError(f"{folder} is no cache of captions; {remedy}")
        with interpreting(file, "encode the captions again"):
            content = read_object(file)
            if content["format"] != FORMAT:
                raise InputError(f"{folder} is no cache of captions; give a folder that `ditlab encode` wrote for them")
            return cls(folder, dict(content["encoder"]), str(content["rule"]))

    @classmethod
    def prepare(cls, folder: Path, encoder: Encoder) -> Self:
        """Open or create the cache of an encoder.

        Raises:
            InputError: the folder holds other files, or the cache of another encoder.
        """
        if (folder / DESCRIPTION).exists():
            cache = cls.open(folder)
            cache.check(encoder)
            return cache
        if not is_vacant(folder):
            raise InputError(f"{folder} is not empty and holds no cache of captions; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "rule": encoder.rule, "encoder": encoder.config}
        replace_text(folder / DESCRIPTION, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return cls(folder, encoder.config, encoder.rule)

    def check(self, encoder: Encoder) -> None:
        """Check that this is the cache of an encoder.

        Raises:
            InputError: it is that of another encoder, or of another rule.
        """
        if encoder.rule != self.rule:
            kind, other = encoder.config["kind"], self.config["kind"]
            differing = [key for key in encoder.config if encoder.config[key] != self.config.get(key)]
            details = f"with {other}, not with {kind}"
            if kind == other and differing:
                key = differing[0]
                was, now = self.config.get(key), encoder.config[key]
                numbers = isinstance(was, int) and isinstance(now, int)
                details = f"with {key} {was}, not {now}" if numbers else f"with another {key}"
            raise InputError(
                f"the captions in {self.folder} were encoded {details}; encode them again in another folder"
            )

    @property
    def encoder(self) -> Encoder:
        """The encoder of the captions."""
        return create_encoder(**self.config)

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The texts that the cache lacks."""
        return [text for text in texts if key_of(text) not in self.places]

    def add(self, texts: Sequence[str], encoder: Encoder, prefix: str = "") -> Iterator[int]:
        """Encode texts and write them; yields the number of texts in each file after it is written.

        Args:
            texts: texts that the cache lacks.
            encoder: its encoder.
            prefix: begins the names of the files; that of each of several writers is another one.
        """
        count = max(1, FILE_BYTES // bytes_of(encoder))
        for start in range(0, len(texts), count):
            part = texts[start : start + count]
            rows = compact(encoder.encode(part))
            values = {name: value for name, value in rows.parts().items() if isinstance(value, Tensor)}
            keys = torch.tensor([list(key_of(text)) for text in part], dtype=torch.uint8)
            file = self.folder / f"{prefix}{len(self.files):06d}.safetensors"
            write_tensors({"keys": keys, **values}, file)
            self.files.append(Stored(file))
            self.places |= {key_of(text): (len(self.files) - 1, row) for row, text in enumerate(part)}
            yield len(part)

    def publish(self, url: str) -> None:
        """Copy the files to a folder of a store, where those of other parts of the captions may be.

        Raises:
            InputError: the cache of another encoder is there, or the store cannot be used.
        """
        if not create(place := join(url, DESCRIPTION), (self.folder / DESCRIPTION).read_bytes()):
            there = read_json(place)
            if there.get("rule") != self.rule:
                raise InputError(f"{url} holds the captions of another encoder; give another address")
        stored = matching(url, "*.safetensors")
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name not in stored or stored[file.name].size != file.stat().st_size:
                upload(file, join(url, file.name))

    def rows(self, texts: Sequence[str]) -> "CachedRows":
        """The conditions of texts, which are read when they are needed.

        Raises:
            InputError: the cache lacks some of them.
        """
        if missing := self.missing(texts):
            raise InputError(
                f"the cache {self.folder} lacks {len(missing):,} of {counted(len(texts), 'caption')}, such as "
                f'"{missing[0]}"; encode the captions again into this folder'
            )
        return CachedRows(self, [self.places[key_of(text)] for text in texts])


def local_folder(text: str) -> Path:
    """The folder of a cache: on this machine, or a copy of one in a store, which is read whole.

    Raises:
        InputError: the store cannot be used, or the cache is larger than the copies on this machine may be.
    """
    return file_cache().mirror(text, DESCRIPTION, "*.safetensors") if is_url(text) else Path(expand(text))


class CachedRows:
    """The conditions of some captions, in the order of a list."""

    def __init__(self, cache: TextCache, places: list[tuple[int, int]]) -> None:
        """The rows (file, row) of a cache."""
        self.cache, self.places = cache, places

    def __getitem__(self, rows: Tensor) -> Condition:
        """The conditions (B rows) of captions by their numbers (B,)."""
        places = [self.places[i] for i in rows.tolist()]
        return Condition.cat([self.cache.files[file].row(row) for file, row in places])


class Stored:
    """One file of a cache."""

    def __init__(self, file: Path) -> None:
        """Open a file and read its keys.

        Raises:
            InputError: the file is damaged.
        """
        self.file = file
        with interpreting(file, "remove it and encode the captions again"):
            opened: Any = safe_open(file, framework="pt")
            self.names = [name for name in opened.keys() if name != "keys"]  # noqa: SIM118 - not a dict
            self.keys = [bytes(key) for key in opened.get_tensor("keys").tolist()]
        self.opened = opened

    def row(self, row: int) -> Condition:
        """The condition of one caption."""
        parts: dict[str, Any] = {name: self.opened.get_slice(name)[row : row + 1] for name in self.names}
        return Condition(**parts)


def key_of(text: str) -> bytes:
    """The key of a caption."""
    return blake2b(text.encode(), digest_size=DIGEST).digest()


def bytes_of(encoder: Encoder) -> int:
    """The bytes of one encoded text in a cache, or in memory."""
    shape = encoder.shape
    states = 2 * shape.width + 4 * shape.layers * shape.heads * shape.head_width
    return shape.length * (8 if shape.vocabulary else states) + shape.length + 4 * shape.pooled


def compact(rows: Condition) -> Condition:
    """Encoded texts as they are kept: states, keys and values in bfloat16."""
    states = {name: getattr(rows, name) for name in ("tokens", "layer_keys", "layer_values")}
    halved = {
        name: value.bfloat16() for name, value in states.items() if value is not None and value.is_floating_point()
    }
    return replace(rows, **halved)
