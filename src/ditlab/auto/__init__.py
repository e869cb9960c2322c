"""Train on anyone's images without a recipe: look at them, choose, train for a given time, tune and score."""

from ditlab.auto.finish import Outcome
from ditlab.auto.train import train_folder

__all__ = ["Outcome", "train_folder"]
