"""The captions of a run: which images have which, and their conditions, which are encoded once."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ditlab.conditioning import CONDITIONERS, Text
from ditlab.conditioning.cache import CachedRows, TextCache, bytes_of, compact, local_folder
from ditlab.config.sections import Data
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.core.units import counted
from ditlab.data import Dataset
from ditlab.data.base import CLASS, caption_from, caption_texts, spread
from ditlab.training.rng import CAPTION, Randomness

IN_MEMORY = 2**30  # bytes of encoded captions that a run keeps in memory
EXAMPLES = 10  # captions that are saved with a model


@dataclass(frozen=True)
class Captions:
    """The captions of N images."""

    texts: list[str]
    """The different captions, in order of their first image; the empty text stands for no caption."""
    numbers: Tensor  # (M,) int64: the captions of all images, one image after the other, as positions in `texts`
    starts: Tensor  # (N + 1,) int64: where the captions of each image begin in `numbers`
    from_classes: int = 0
    """Images whose caption is made from the name of their class."""

    @classmethod
    def of(cls, dataset: Dataset, template: str = "") -> Self:
        """Read the captions of a data set.

        Args:
            dataset: the data set.
            template: caption of images without one, in which {class} is the name of the class; empty for none.

        Raises:
            InputError: no image has a caption, or the template does not suit the data.
        """
        check_template(template, dataset.classes)
        positions: dict[str, int] = {}
        numbers, starts, from_classes = [], [0], 0
        with ThreadPoolExecutor() as pool:
            for i, entry in enumerate(spread(pool, dataset.captions, len(dataset))):
                captions = caption_texts(entry, f"image {i}")
                if not captions and template:
                    captions = (caption_from(template, dataset.classes[int(dataset.labels[i])]),)
                    from_classes += 1
                for text in captions or ("",):
                    numbers.append(positions.setdefault(text, len(positions)))
                starts.append(len(numbers))
        if not any(positions):
            remedy = f', or set data.caption_template, such as "a photo of {CLASS}"' if dataset.classes else ""
            raise InputError(
                "the data have no captions, which the conditioner text needs; add metadata.jsonl with file_name and "
                f"text, or .txt files beside the images{remedy}"
            )
        return cls([*positions], torch.tensor(numbers), torch.tensor(starts), from_classes)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.starts) - 1

    @cached_property
    def missing(self) -> int:
        """Images without a caption."""
        return int((self.numbers == self.texts.index("")).sum()) if "" in self.texts else 0

    @property
    def digest(self) -> str:
        """Hash of all captions, 16 digits, by which a resumed run recognizes that captions have changed."""
        parts = [repr(self.texts).encode(), self.numbers.numpy().tobytes(), self.starts.numpy().tobytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def examples(self) -> list[str]:
        """Captions of images that are spread over the data set, for previews."""
        places = torch.linspace(0, len(self.texts) - 1, min(4 * EXAMPLES, len(self.texts))).round().long().tolist()
        return [text for i in places if (text := self.texts[i])][:: max(1, len(places) // EXAMPLES)][:EXAMPLES]

    def lines(self, conditioner: Text) -> list[str]:
        """What training reads, and what it leaves out, in sentences."""
        different = [text for text in self.texts if text]
        captions = len(self.numbers) - self.missing
        lines = [f"captions: {captions:,} for {counted(len(self), 'image')}, {len(different):,} different"]
        if self.from_classes:
            lines.append(f"{counted(self.from_classes, 'caption')} from data.caption_template")
        if self.missing:
            without = f"{self.missing:,} of {counted(len(self), 'image')}"
            lines.append(f"{without} have no caption and are trained with the null condition")
        empty = [text for text in different if not conditioner.encoder.reads(text)]
        if empty:
            lines.append(
                f"{len(empty):,} of {counted(len(different), 'caption')} have no words and are trained with the null "
                f'condition, such as "{empty[0]}"'
            )
        cut = [text for text in different if conditioner.encoder.cut(text)]
        if cut:
            lines.append(
                f"{len(cut):,} of {counted(len(different), 'caption')} are longer than the "
                f'{conditioner.encoder.shape.length} tokens of the model and are cut, such as "{cut[0]}"'
            )
        return lines


@dataclass(frozen=True)
class CaptionConditions:
    """The conditions of captions."""

    captions: Captions
    rows: Condition | CachedRows  # one row for each of the different captions, on the CPU

    @classmethod
    def encode(
        cls, captions: Captions, conditioner: Text, cache: str = "", say: Callable[[str], None] = lambda line: None
    ) -> Self:
        """Encode all different captions, or find them in a cache.

        Args:
            captions: the captions.
            conditioner: the conditioner of the model.
            cache: folder of a cache; empty to encode the captions now, in memory.
            say: prints a line.

        Raises:
            InputError: a caption that the conditioner cannot encode; the encoded captions are too large for memory; or
                the cache is that of another encoder, or lacks captions.
        """
        encoder, kind = conditioner.encoder, conditioner.encoder.config["kind"]
        if cache:
            opened = TextCache.open(local_folder(cache))
            opened.check(encoder)
            return cls(captions, opened.rows(captions.texts))
        size = len(captions.texts) * bytes_of(encoder)
        if encoder.shape.width or encoder.shape.layers:
            what = f"{counted(len(captions.texts), 'caption')} encoded by {kind}: {size / 2**20:,.1f} MiB"
            if size > IN_MEMORY:
                raise InputError(
                    f"{what}, more than the {IN_MEMORY / 2**20:,.0f} MiB that are kept in memory; encode them with "
                    "`ditlab encode`, and set data.text_cache to the folder"
                )
            say(f"{what}, kept in memory")
        return cls(captions, compact(encoder.encode(captions.texts)))

    def condition(self, index: Tensor, randomness: Randomness) -> Condition:
        """The conditions of some images; one of several captions is chosen each time.

        The choice depends on the seed and on the position of the image in the run.

        Args:
            index: positions (B,) of the images in the data set.
            randomness: the randomness of these images.
        """
        starts = self.captions.starts
        counts = starts[index + 1] - starts[index]
        share = torch.special.ndtr(randomness.normal(CAPTION, 1)[:, 0].double())  # uniform in 0..1
        chosen = torch.minimum((share * counts).long(), counts - 1)
        return self.conditions(self.captions.numbers[starts[index] + chosen])

    def conditions(self, numbers: Tensor) -> Condition:
        """The conditions of captions, which are given as positions (B,) in `captions.texts`."""
        return self.rows[numbers].apply(lambda value: value.float() if value.is_floating_point() else value)


def read_captions(settings: Data, dataset: Dataset) -> Captions | None:
    """The captions of a data set; None if the conditioner of the recipe reads none.

    Raises:
        InputError: no image has a caption, or the template does not suit the data.
    """
    if not issubclass(CONDITIONERS.find(settings.conditioner), Text):
        return None
    return Captions.of(dataset, settings.caption_template)


def check_template(template: str, classes: Sequence[str]) -> None:
    """Check that a template makes captions from class names.

    Raises:
        InputError: it does not contain {class}, or the data have no classes.
    """
    if template and CLASS not in template:
        raise InputError(f'data.caption_template is "{template}"; put {CLASS} where the name of the class belongs')
    if template and not classes:
        raise InputError("data.caption_template needs classes, but the data have none; remove it")
