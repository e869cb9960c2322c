"""Present the images of a data set as a source, so that a survey can read them like files."""

import torch
from PIL import Image

from ditlab.data.base import Dataset
from ditlab.data.decode import Raster
from ditlab.data.sources.base import Column, Source
from ditlab.report.sheets import to_pil


class DatasetImages(Source):
    """The images of a data set; a video is represented by its first frame."""

    min_side = 1  # training uses them whatever their size

    def __init__(self, dataset: Dataset, title: str) -> None:
        self.dataset, self.title, self.reading = dataset, title, dataset.reading
        self.columns = {"label": Column(dataset.labels, dataset.classes)}

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def captions(self, i: int) -> tuple[str, ...]:
        return self.dataset.captions(i)

    def raw(self, i: int) -> Image.Image | Raster:
        x = self.dataset.fetch(torch.tensor([i])).x
        x = x if x.ndim == 4 else x[:, :, 0]
        if self.dataset.values.eight_bits and x.shape[1] in (1, 3):
            return to_pil(x)[0]
        return self.dataset.values.restored(x)[0].permute(1, 2, 0).numpy()
