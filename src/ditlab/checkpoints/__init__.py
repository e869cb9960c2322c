"""Read and write models: ditlab folders, published and other external checkpoints, diffusers folders."""

from ditlab.autoencoders.io import load_autoencoder, save_autoencoder
from ditlab.checkpoints.convert import LAYOUTS, convert
from ditlab.checkpoints.load import load
from ditlab.inference.pipeline import Pipeline

Pipeline.loader = staticmethod(load)

__all__ = ["LAYOUTS", "Pipeline", "convert", "load", "load_autoencoder", "save_autoencoder"]
