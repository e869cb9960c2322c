"""The frames of clips as images, for feature networks of images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditlab.config.sections import Preparation
from ditlab.core.types import Batch, Condition
from ditlab.data import Dataset
from ditlab.evaluation.features import Features
from ditlab.evaluation.gather import check_fit

CLIPS = ("frames", "fps", "seconds", "stride", "frame_folders")
"""Settings of the training data that say which frames are a clip."""


class Frames(Dataset):
    """The frames of a data set of clips as images: image i is frame i modulo T of clip i / T."""

    def __init__(self, clips: Dataset) -> None:
        self.clips, self.values = clips, clips.values
        self.frames, *size = clips.size
        self.labels = clips.labels.repeat_interleave(self.frames)
        self.classes, self.channels, self.size = clips.classes, clips.channels, tuple(size)
        self.preprocessing = clips.preprocessing

    def fetch(self, indices: Tensor) -> Batch:
        return self._frames(self.clips.fetch, indices)

    def fetch_readable(self, indices: Tensor) -> Batch:
        return self._frames(self.clips.fetch_readable, indices)

    def _frames(self, fetch: Callable[[Tensor], Batch], indices: Tensor) -> Batch:
        numbers, place = torch.unique(indices // self.frames, return_inverse=True)
        batch = fetch(numbers)
        if len(batch) < len(numbers):  # clips that cannot be read
            assert batch.index is not None
            position = {int(number): i for i, number in enumerate(batch.index)}
            known = torch.tensor([int(numbers[p]) in position for p in place])
            indices = indices[known]
            place = torch.tensor([position[int(numbers[p])] for p in place[known]], dtype=torch.long)
        frames = batch.x[place, :, indices % self.frames]
        return Batch(frames, Condition(label=self.labels[indices]), index=indices)


def seen_by(features: Features, images: Dataset) -> Dataset:
    """What a feature network sees of a data set: its images or clips, or the frames of its clips.

    Raises:
        InputError: the network takes clips, and these are images; or it does not support their channels or size.
    """
    seen = images if features.clips or len(images.size) == 2 else Frames(images)
    check_fit(seen, features)
    return seen


def clip_protocol(features: Features, images: Dataset, preparation: Preparation | None) -> dict[str, Any]:
    """What determines the features of clips: their frames, and how they are resized; empty for features of images.

    Args:
        features: the feature network.
        images: the clips to evaluate.
        preparation: how the clips of the model's training were read; None for existing clips.
    """
    if not features.clips:
        return {}
    timing = images.preprocessing if preparation is None else vars(preparation)
    known = {key: timing[key] for key in ("fps", "stride") if timing.get(key) is not None}
    return {"frames": images.size[0], "resize": features.resize, **known}


def clips_of(images: Dataset) -> Dataset:
    """The data set itself, or the clips whose frames it presents."""
    return images.clips if isinstance(images, Frames) else images
