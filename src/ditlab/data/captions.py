"""Statistics of the captions of a data set, for surveys."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from rich.table import Table

from ditlab.conditioning.encoders.words import split
from ditlab.core.terminal import cell
from ditlab.core.units import counted
from ditlab.data.base import spread
from ditlab.data.sources import Source


@dataclass(frozen=True)
class CaptionStatistics:
    """How many captions there are, and how long and how different they are."""

    captions: int
    different: int
    without: int  # images without a caption
    several: int  # images with several captions
    words: tuple[int, int, int]  # words of a caption: min, median, max
    vocabulary: int  # different words
    most_frequent: str  # the most frequent caption, and
    repeats: int  # how often it occurs

    @classmethod
    def of(cls, source: Source) -> Self | None:
        """Count the captions of a source; None if it has none.

        Raises:
            InputError: a caption is no text.
        """
        texts: Counter[str] = Counter()
        without = several = 0
        with ThreadPoolExecutor() as pool:
            for captions in spread(pool, source.captions, len(source)):
                texts.update(captions)
                without += not captions
                several += len(captions) > 1
        if not texts:
            return None
        words = {text: split(text) for text in texts}
        lengths = sorted(len(words[text]) for text in texts.elements())
        (most_frequent, repeats), *_ = texts.most_common(1)
        return cls(
            captions=texts.total(),
            different=len(texts),
            without=without,
            several=several,
            words=(lengths[0], lengths[len(lengths) // 2], lengths[-1]),
            vocabulary=len({word for parts in words.values() for word in parts}),
            most_frequent=most_frequent,
            repeats=repeats,
        )

    def table(self) -> Table:
        """The statistics as a table for the terminal."""
        table = Table("captions", "value", title=counted(self.captions, "caption"))
        table.add_row("different", f"{self.different:,}")
        table.add_row("duplicates", f"{self.captions - self.different:,}")
        table.add_row("images without a caption", f"{self.without:,}")
        table.add_row("images with several", f"{self.several:,}")
        table.add_row("words, min / median / max", " / ".join(f"{count:,}" for count in self.words))
        table.add_row("vocabulary", counted(self.vocabulary, "word"))
        if self.repeats > 1:
            table.add_row(f"most frequent ({self.repeats:,} times)", cell(self.most_frequent))
        return table
