"""Training: setup in stages, the training loop, objectives, training aids, and run folders with checkpoints."""

from ditlab.training.api import train

__all__ = ["train"]
