"""Options of the commands that generate images, as dataclasses that several commands may share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ditlab.config.sampling import Interval
from ditlab.config.values import Whole

Flag = Annotated[bool, Parameter(negative="")]


@dataclass(frozen=True)
class Request:
    """Which images to generate."""

    labels: Annotated[list[str] | None, Parameter(negative="")] = None
    """Class names or indices (default: all classes). A name takes precedence over an index."""
    seeds: Annotated[tuple[str, ...], Parameter(negative="")] = ("0-7",)
    """Numbers, or ranges such as 0-15."""
    count: Whole | None = None
    """Number of images: as many seeds for each label, from the first of --seeds. With --npz the default is 50,000."""
    label_sampling: Literal["balanced", "random"] | None = None
    """With --npz: each class equally often (balanced, the default), or uniformly at random."""
    strip: Whole | None = None
    """Interpolate: this many images from one seed to another for each label, or with one seed between two labels."""


@dataclass(frozen=True)
class StartImage:
    """Image-to-image and in-painting."""

    image: Path | None = None
    """Start from this image (image-to-image)."""
    mask: Path | None = None
    """With --image: in-painting mask. White is regenerated, black is kept."""
    strength: float | None = None
    """With --image: how much of the trajectory runs, up to 1, which starts from noise alone (0.6; 1 with a mask)."""
    resample: Whole | None = None
    """With --mask: run each part of the schedule this many times, so that old and new parts agree (2)."""


@dataclass(frozen=True)
class Files:
    """What is written."""

    out: Path = Path("samples")
    """Folder for the images; must be empty or new."""
    npz: Flag = False
    """Write samples.npz for evaluation tools instead; the same command continues, and torchrun shares the work."""
    trajectory: Flag = False
    """Also write trajectory.gif, an animation of the sampler's steps."""
    overwrite: Flag = False
    """Write into a folder that is not empty."""


@dataclass(frozen=True)
class Checkpoint:
    """How the model is loaded."""

    weights: Literal["ema", "model"] = "ema"
    """Averaged weights (ema), or the raw weights of a training checkpoint (model)."""
    autoencoder: str | None = None
    """Autoencoder of a model that came without one: folder, file or hub id."""
    heads: Whole | None = None
    """Attention heads of an external checkpoint whose model size was never published."""
    size: str | None = None
    """Side, or HEIGHTxWIDTH, of the latents of an external checkpoint that does not state it (U-DiT)."""
    classes: Whole | None = None
    """Class count of an external checkpoint whose class-embedding table does not show it (U-ViT)."""
    tile: Whole | None = None
    """Decode in tiles of this many pixels, for images that do not fit in memory."""


@dataclass(frozen=True)
class Machine:
    """How the machine is used; the images depend on the precision alone."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the network. auto uses the faster one; with --npz and --preset reference it is float32."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the network's blocks; auto compiles if that saves time."""
    batch_size: Whole | None = None
    """Images generated at a time; it does not change them (default: the fastest, found by trying)."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass(frozen=True)
class Tuning:
    """What schedules are tuned for."""

    steps: Annotated[tuple[Whole, ...], Parameter(negative="")] = (4, 6, 8)
    """Numbers of steps to find schedules for."""
    sampler: str = "ab4"
    """A deterministic sampler: ddim, euler, heun, dpmpp, ab2 or ab4."""
    guidance: float | None = None
    """Guidance scale that the schedules will be used with (default: the model's)."""
    guidance_interval: Interval = None
    """Times between which guidance will act (default: the model's)."""
    images: Whole = 32
    """Images generated in each trial."""


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    batch: Whole = 8
    """Images in a network call."""
    rounds: Whole = 5
    """Measured rounds; all variants run in turns, and medians are shown."""
    compile: bool = True
    """Measure compiled blocks too."""
    training: bool = True
    """Measure a training step too."""
    against: Annotated[tuple[Literal["diffusers", "torch", "onnx", "openvino"], ...], Parameter(negative="")] = ()
    """Compare with diffusers' version of the same network, or with its graph exported for these runtimes."""
    cache: Flag = False
    """Instead, generate a few images and show at which times feature caching (--reuse) would be safe."""


@dataclass(frozen=True)
class RandomNetwork:
    """The input of a network that is given by name."""

    size: str = "32"
    """Side, or HEIGHTxWIDTH, of the input of a network given by name."""
    channels: Whole = 4
    """Its channels."""
    classes: Whole = 1000
    """Its classes."""
