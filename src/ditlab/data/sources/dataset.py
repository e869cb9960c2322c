"""Present the images of a data set as a source, so that a survey can read them like files."""

from typing import Self

import torch
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.data.base import Dataset
from ditlab.data.sources.base import Column, Source
from ditlab.report.sheets import to_pil


class DatasetImages(Source):
    """The images of a data set; a video is represented by its first frame."""

    min_side = 1  # training uses them whatever their size

    def __init__(self, dataset: Dataset, title: str) -> None:
        self.dataset, self.title, self.reading = dataset, title, dataset.reading
        self.columns = {"label": Column(dataset.labels, dataset.classes)}

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return False

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        raise NotImplementedError

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def raw(self, i: int) -> Image.Image:
        x = self.dataset.fetch(torch.tensor([i])).x
        return to_pil(x if x.ndim == 4 else x[:, :, 0])[0]
