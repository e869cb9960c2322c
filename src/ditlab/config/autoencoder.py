"""The settings with which a small autoencoder is trained."""

from dataclasses import dataclass
from typing import Literal

from ditlab.config.fields import setting
from ditlab.config.values import Whole


@dataclass(frozen=True)
class AutoencoderTraining:
    """The sizes of a small autoencoder, and how it is trained."""

    stride: Whole = setting(4, at_least=1, below=257)
    """Down-sampling factor: image side / latent side."""
    latent_channels: Whole = setting(8, at_least=1)
    """Channels of the latents."""
    width: Whole = setting(64, at_least=1, below=65_537)
    """Channels of the network."""
    depth: Whole = setting(3, at_least=0, below=1025)
    """Residual blocks of the encoder, and of the decoder."""
    images: Whole = setting(40_000, at_least=1)
    """Length of the run: number of images to train on, including repeats."""
    minutes: float = setting(0.0, resume="free", not_negative=True)
    """Largest training time in minutes, over all parts of a run that was paused; the learning rate follows the time if
    it is further than the images (0: no limit)."""
    batch: Whole = setting(16, at_least=1)
    """Batch size: images per optimizer step."""
    lr: float = setting(2e-3, not_negative=True)
    """Peak learning rate; it falls to 0 with a cosine schedule."""
    kl: float = setting(0.03, not_negative=True)
    """Weight of the KL term, in nats per image value."""
    edges: float = setting(1.0, not_negative=True)
    """Weight of the error of the differences between neighboring pixels."""
    held_out: float = setting(0.05, share=True)
    """Share of the images that are held out for evaluation."""
    seed: Whole = setting(0, at_least=0, below=2**32)
    """Seed of initial weights, image order, noise and the held-out images."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of training: auto (which is faster is measured), float32 or bfloat16."""
    device: str = setting("auto", resume="free")
    """auto, cpu, cuda, cuda:1, mps."""
    log_every: Whole = setting(4_000, resume="free", at_least=1)
    """Images between checkpoints and lines of metrics.jsonl."""
