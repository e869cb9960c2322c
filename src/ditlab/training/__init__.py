"""Training: one visible loop (`trainer`), its state on disk, optimiser, weight average, precision and log."""

from ditlab.training.trainer import train

__all__ = ["train"]
