"""Read and write models: ditlab folders, published and other external checkpoints, diffusers folders."""

from ditlab.autoencoders.io import load_autoencoder, save_autoencoder
from ditlab.checkpoints.convert import LAYOUTS, convert
from ditlab.checkpoints.load import load

__all__ = ["LAYOUTS", "convert", "load", "load_autoencoder", "save_autoencoder"]
