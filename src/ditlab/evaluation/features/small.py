"""Small classifiers as feature networks, which are trained once from a fixed seed and stored in the user's cache."""

from collections.abc import Callable
from contextlib import suppress

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ditlab.core.device import cache_folder
from ditlab.core.errors import InputError
from ditlab.core.weights import state_hash, write_tensors
from ditlab.evaluation.features.base import Extracted, Features

FEATURES = 64  # values of the layer before the last


class SmallClassifier(nn.Module):
    """A classifier of uint8 images (B, C, H, W), with features (B, 64) and logits (B, K)."""

    features: nn.Sequential

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, 64)."""
        features: Tensor = self.features(images.float() / 127.5 - 1)
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(images))
        return logits


class ClassifierFeatures(Features):
    """The features of a small classifier, and the probabilities of the classes of its data set, if any."""

    dimension = FEATURES

    def __init__(
        self,
        name: str,
        net: SmallClassifier,
        classes: list[str] | None,
        channels: int,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.name, self.net, self.classes, self.channels, self.size = name, net, classes, channels, size
        self.weights = state_hash(net)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Extracted:
        features = self.net.embed(images)
        return Extracted(features, probabilities=self.net.head(features).softmax(1) if self.classes else None)


def load_or_train(name: str, net: SmallClassifier, train: Callable[[SmallClassifier], None]) -> SmallClassifier:
    """Load a classifier from the user's cache, or train it and store it there."""
    file = cache_folder() / f"{name}.safetensors"
    try:
        net.load_state_dict(load_file(file))
        return net.eval()
    except (OSError, SafetensorError, RuntimeError):
        pass  # the file is missing or incomplete
    with torch.enable_grad(), torch.inference_mode(False):
        train(net)
    with suppress(OSError, SafetensorError):  # without a cache file, it is trained again next time
        write_tensors(net.state_dict(), file)
    return net.eval()


def check_no_weights(name: str, weights: str) -> None:
    """Check that no weights are given for features that are trained on this machine.

    Raises:
        InputError: weights are given.
    """
    if weights:
        raise InputError(f"the features {name} are trained on this machine and take no weights; omit {weights}")
