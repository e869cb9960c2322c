"""Whether images may be mirrored: whether a classifier can tell mirrored images from the others."""

import torch
from rich.console import Console

from ditlab.data import Dataset
from ditlab.evaluation.features.own import SIDE, OwnClassifier, fitted, read_images
from ditlab.evaluation.seen import seen_channels

MOST = 4000  # images that are compared with their mirrored versions
STEPS = 300


def mirrored_accuracy(dataset: Dataset, seconds: float, console: Console) -> float:
    """Share of unseen images for which a classifier decides correctly whether they are mirrored; 0.5 is a guess.

    It is trained on half of the images, and tested on the other half.

    Args:
        dataset: the images.
        seconds: longest time of the training.
        console: where progress is shown.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:MOST]
    side = min(SIDE, max(dataset.size))
    images, _ = read_images(dataset, order, side, console)
    both = torch.stack([images, images.flip(-1)], dim=1)  # (N, 2, C, H, W)
    training, test = both.chunk(2)
    labels = torch.arange(2).repeat(len(training))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = OwnClassifier(2, seen_channels(dataset), side)
        net, _ = fitted(net, training.flatten(0, 1), labels, 0, STEPS, seconds, console)
    with torch.inference_mode():
        found = torch.cat([net(part).argmax(1) for part in torch.split(test.flatten(0, 1), 256)])
    return (found == torch.arange(2).repeat(len(test))).float().mean().item()
