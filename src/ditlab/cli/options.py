"""Options of the commands that generate images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.cli.terminal import say_note
from ditlab.config.fields import Amount, Natural, Positive, Share
from ditlab.config.reader import parse_sides
from ditlab.config.sampling import Interval
from ditlab.config.values import File, Location

if TYPE_CHECKING:
    import torch

    from ditlab.inference.pipeline import Pipeline

Flag = Annotated[bool, Parameter(negative="")]
Base = Annotated[
    Location | None,
    Parameter(
        help="Present place of the model from which low-rank updates were trained, if it has moved (train.lora_apart)."
    ),
]


@dataclass(frozen=True)
class Request:
    """Which images to generate."""

    labels: Annotated[list[str] | None, Parameter(negative="")] = None
    """Class names or indices (default: all classes). Where class names are numbers, an index is given as index:3."""
    prompts: Annotated[list[str] | None, Parameter(negative="")] = None
    """Prompts of a model that reads text (default: some captions of its training data)."""
    prompts_file: File | None = None
    """Text file with a prompt in each line."""
    negative_prompt: str | None = None
    """Prompt to lead away from; with guidance above 1."""
    seeds: Annotated[tuple[str, ...] | None, Parameter(negative="")] = None
    """Numbers, or ranges such as 0-15 (default: 0-7)."""
    count: Positive | None = None
    """Number of images, with consecutive seeds from the first of --seeds. With --npz the default is 50,000."""
    label_sampling: Literal["balanced", "random"] | None = None
    """With --npz: labels are balanced (each class equally often, or all prompts in turn; the default) or random
    (uniformly distributed)."""
    size: str | None = None
    """Side, or HEIGHTxWIDTH, of the images, or FRAMESxHEIGHTxWIDTH of clips (default: the size of the model, with
    --like that of the image)."""
    strip: Positive | None = None
    """Interpolate with this number of images: between two seeds for each label, or with one seed between two labels."""
    like: File | None = None
    """Generate the images of a PNG file or samples.json of ditlab again; other options replace recorded settings."""


@dataclass(frozen=True)
class StartImage:
    """Image-to-image, in-painting, and given frames of clips."""

    image: File | None = None
    """Start from this image (image-to-image)."""
    mask: File | None = None
    """With --image: in-painting mask. White is regenerated, black is kept."""
    strength: Share | None = None
    """With --image: share of the sampling trajectory that runs; 1 starts from noise (default: 0.6; 1 with --mask)."""
    resample: Positive | None = None
    """With --mask: number of times that each part of the schedule runs, so that new and kept parts fit (default: 2)."""
    given: tuple[str, ...] = ()
    """Given frames of clips, as INDEX=FILE: 0=a.png is image to video, and 0=a.png -1=b.png (or last=b.png)
    interpolates."""
    frames: Positive | None = None
    """Length of clips that are continued beyond the length of the model."""
    overlap: Positive | None = None
    """With --frames: number of last frames that each further part continues (default: half of the model's)."""


@dataclass(frozen=True)
class Files:
    """What is written."""

    out: File | None = None
    """Folder for the images; must be empty or new (default: samples, or the first free one of samples-2, ...)."""
    npz: Flag = False
    """Write samples.npz for evaluation tools instead. Run the same command again to resume; works under torchrun."""
    format: Literal["png", "npy", "webp", "gif", "mp4", "webm", "frames"] | None = None
    """png shows one or three channels with 8 bits. npy holds all channels, in the numbers and the type of the training
    data; the contact sheet is a PNG file with either (default: png, with --like that of the images). Videos are webp
    (the default), gif, mp4, webm or npy files, or folders of frames."""
    fps: Amount | None = None
    """Frames per second of videos (default: those that the model was trained on, or 8)."""
    show: Annotated[tuple[Positive, ...], Parameter(negative="", consume_multiple=1)] = ()
    """Numbers of the one or three channels, from 1, that PNG files show (default: the model's)."""
    trajectory: Flag = False
    """Also write trajectory.gif, an animation of the sampler steps."""
    overwrite: Flag = False
    """Write into a folder that is not empty."""


@dataclass(frozen=True)
class Checkpoint:
    """Which weights to read, and properties that external checkpoints do not contain."""

    weights: Literal["ema", "model"] = "ema"
    """Averaged weights (ema), or the raw weights of a training checkpoint (model)."""
    autoencoder: Location | None = None
    """Autoencoder of a model that has none in its folder: folder, file or hub id."""
    base: Base = None
    heads: Positive | None = None
    """Number of attention heads of an external checkpoint whose model size is not a published one."""
    latent_size: Annotated[str | None, Parameter(alias="--size")] = None
    """Side, HEIGHTxWIDTH, or FRAMESxHEIGHTxWIDTH of the latents of an external checkpoint without it (such as a
    U-DiT's)."""
    classes: Natural | None = None
    """Class count of an external checkpoint whose class-embedding table does not show it (U-ViT)."""
    exits: Annotated[tuple[Share, ...], Parameter(negative="")] = ()
    """Early exit of an external checkpoint, which does not contain it: shares of the blocks, from data to noise."""
    sit: bool | None = None
    """Whether a state dict without training settings is a SiT's; DiT has the same tensors (default: DiT)."""

    def load(self, path: str | Path, device: "str | torch.device" = "cpu", **options: Any) -> "Pipeline":
        """Load a model, and print notes about conversions."""
        from ditlab.checkpoints import load

        size = None if self.latent_size is None else parse_sides(self.latent_size)
        properties = {"heads": self.heads, "size": size, "classes": self.classes, "sit": self.sit}
        options |= {"exits": self.exits} if self.exits else {}
        options |= {key: value for key, value in properties.items() if value is not None}
        options |= {"weights": self.weights, "autoencoder": self.autoencoder, "base": self.base}
        pipe = load(path, device=device, **options)
        say_note(pipe.config)
        return pipe


@dataclass(frozen=True)
class Decoding(Checkpoint):
    """Which weights to read, and how latents are decoded."""

    latent_size: str | None = None
    """Side, or HEIGHTxWIDTH, of the latents of an external checkpoint that does not contain it (U-DiT)."""
    tile: Positive | None = None
    """Decode in tiles with this side in pixels, for images that do not fit into memory."""


@dataclass(frozen=True)
class Machine:
    """How the machine is used; only the precision changes the images."""

    precision: Literal["auto", "float32", "bfloat16", "int8", "float8"] = "auto"
    """Precision of the network. auto uses the fastest one, and float32 with --npz or --preset reference."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the blocks of the network; auto compiles if that saves time."""
    batch_size: Positive | None = None
    """Images generated at a time; does not change the images (default: the fastest, which is measured)."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@dataclass(frozen=True)
class Tuning:
    """Settings for which schedules are tuned."""

    steps: Annotated[tuple[Positive, ...] | None, Parameter(negative="")] = None
    """Numbers of steps; a schedule is tuned for each (default: 4 6 8)."""
    budget: Amount | None = None
    """Instead of --steps: evaluations of the network for an image, for which steps and feature caching are searched."""
    budget_ms: Amount | None = None
    """The same in milliseconds of the network in float32 on this machine."""
    sampler: str = "ab4"
    """A deterministic sampler: ddim, euler, heun, dpmpp, ab2 or ab4."""
    guidance: Amount | None = None
    """Guidance scale that the schedules will be used with (default: the model's)."""
    guidance_interval: Interval = None
    """Guidance interval that the schedules will be used with (default: the model's)."""
    images: Positive = 32
    """Images generated in each trial."""


@dataclass(frozen=True)
class Benchmark:
    """What `bench` measures."""

    batch: Positive = 8
    """Images per network call."""
    rounds: Positive = 5
    """Number of measured rounds; all variants run in turn, and medians are shown."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Precision to measure beside the baseline; auto measures all that are fast on this machine."""
    compile: bool = True
    """Measure compiled blocks too."""
    training: bool = True
    """Measure a training step too."""
    against: Annotated[tuple[Literal["diffusers", "torch", "onnx", "openvino"], ...], Parameter(negative="")] = ()
    """Compare with diffusers' implementation of the network, or with graphs exported for other runtimes."""
    cache: Flag = False
    """Show at which times feature caching (--reuse) is safe, by generating a few images, instead of the speed."""


@dataclass(frozen=True)
class RandomNetwork:
    """Input shape and class count of a network that is given by name."""

    size: str = "32"
    """For a network name: side, HEIGHTxWIDTH, or FRAMESxHEIGHTxWIDTH of the input."""
    channels: Positive = 4
    """For a network name: channels of the input."""
    classes: Natural = 1000
    """For a network name: number of classes."""
