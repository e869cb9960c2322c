"""Training: setup in stages, one loop, objectives and aids, and the run folder with its checkpoints."""

from ditlab.training.api import train

__all__ = ["train"]
