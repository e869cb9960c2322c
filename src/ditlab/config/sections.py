"""Recipes as frozen dataclasses: one for each section.

Nothing here imports torch. Times are t in 0..1 (0 is data); progress, warm-up and intervals are counted in images.
"""

import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    """Whole numbers only: 12.5 is not silently cut to 12, but 1_000_000 and 1e6 are fine."""
    text = tokens[0].value
    if re.fullmatch(r"[+-]?[\d_]+", text):
        return int(text)
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f'"{text}" is not a whole number')


Whole = Annotated[int, Parameter(converter=_whole)]
NETWORK = "DiT-S/2"


class Model:
    """The network: its name, and any option of its family. Its shape and classes follow from data and autoencoder.

    An option that is not given is None here, and has the value that belongs to the name.

    Args:
        name: family and size, such as DiT-XL/2, or "package.module:Class".
        options: keyword arguments of the family's class.
    """

    name: str

    def __init__(self, name: str = NETWORK, **options: Any) -> None:
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        vars(self).update({"name": name} | {key: value for key, value in given.items() if value is not None})

    @property
    def options(self) -> dict[str, Any]:
        """The options that are given."""
        return {key: value for key, value in vars(self).items() if key != "name"}

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return None

    def __setattr__(self, key: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to {key}; make another Model")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(frozenset(vars(self).items()))

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


@dataclass(frozen=True)
class Diffusion:
    """The path from data to noise and what the network is trained to say."""

    process: Literal["linear", "cosine", "vp", "ddpm", "scaled-linear"] = "linear"
    """linear is rectified flow, ddpm the table of 1000 linear betas, scaled-linear Stable Diffusion's."""
    target: Literal["x0", "eps", "v", "velocity"] = "velocity"
    """What the network regresses."""
    time: Literal["uniform", "logit-normal"] = "logit-normal"
    """Distribution of training times."""
    time_mean: float = 0.0
    """Mean of the logit-normal; above 0 trains more on noise."""
    time_scale: float = 1.0
    """Scale of the logit-normal."""
    stratified: bool = True
    """Spread the times evenly over the quantiles within each batch."""
    weight: Literal["one", "min-snr", "velocity"] = "one"
    """Weight of the loss over time."""
    direction: float = 0.0
    """Weight of a second loss: how far the direction of the target is missed at each place (LightningDiT)."""
    learn_variance: bool = False
    """Learn the reverse variance too (improved DDPM; needs process ddpm)."""


@dataclass(frozen=True)
class Preparation:
    """How images are read and brought to one size."""

    size: str = ""
    """Side, or HEIGHTxWIDTH, to which images are resized; without it they must have the same size."""
    fit: Literal["crop", "letterbox", "stretch"] = "crop"
    """How: crop the center, add bars, or distort the sides."""
    flip: bool = False
    """Add the mirrored version of each image."""
    gray: Annotated[bool, Parameter(alias="grey")] = field(default=False, metadata={"was": "grey"})
    """Convert to gray."""
    background: str = "white"
    """Color under transparent parts, and of bars."""
    labels: str = ""
    """CSV or JSONL file with the labels of a flat folder."""
    max_skipped: float = 0.05
    """Share of the images that may be unreadable."""


@dataclass(frozen=True)
class Data(Preparation):
    """Where the images come from."""

    source: str = "digits"
    """digits, glyphs-SIZE, a folder of classes, a flat folder, tar shards, hf:NAME[:SPLIT], or a latent cache."""
    autoencoder: str = ""
    """Train on the latents of this autoencoder: folder, file or hub id. A latent cache contains its autoencoder."""
    classes: Whole | None = None
    """Class count of the model, if it must have room for more classes than the data has."""


@dataclass(frozen=True)
class Optim:
    """The optimiser and its schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest."""
    lr: float = 1e-4
    """Learning rate at its height."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    warmup: Whole = 0
    """Images over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    """Course of the learning rate after warm-up; all but constant fall to 0 at the last image, wsd at the end only."""
    decay: float = 0.2
    """Share of the run over which wsd falls."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""


@dataclass(frozen=True)
class Train:
    """The length of the run and what it leaves behind."""

    images: Whole = 1_000_000
    """Pictures to train on, repeats counted."""
    batch: Whole = 128
    """Pictures in a step."""
    label_dropout: float = 0.1
    """Share of labels replaced by "no condition", so that guidance works."""
    route: float = 0.0
    """Share of the tokens that pass by the middle blocks in training (DiT; TREAD)."""
    align: tuple[Whole, ...] = ()
    """An early and a late block: what the first says is drawn towards what the second says (LayerSync)."""
    align_weight: float = 0.5
    """Weight of that."""
    ema: float = 0.9999
    """Decay of the weight average in each step, after warm-up."""
    widths: tuple[float, ...] = ()
    """Widths, as shares of the run, of averages of which snapshots are kept, such as 0.05 0.1 (`ditlab average`)."""
    init_from: str = ""
    """A model to start from instead of fresh weights; [model] is then its own."""
    class_map: str = ""
    """With init_from: a TOML or JSON file that says for a class of the data which class of the source it continues."""
    lora: Whole = 0
    """With init_from: rank of low-rank updates that are trained instead of the weights; 0 trains the weights."""
    lora_apart: bool = False
    """Save the low-rank updates apart from the source instead of merged into it."""
    seed: Whole = 0
    """Decides initial weights, order, noise and times."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto times one step in each and keeps the faster."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the network's blocks; auto does if the run is so long that it pays."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    report: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Who is told of the numbers and previews beside metrics.jsonl."""
    log_every: Whole = 12_800
    """Images between lines of metrics.jsonl."""
    preview_every: Whole = 128_000
    """Images between preview grids."""
    save_every: Whole = 128_000
    """Images between checkpoints."""
    keep: Whole = 2
    """Newest checkpoints that are kept."""
    keep_every: Whole = 0
    """Checkpoints at multiples of so many images are kept too; 0 keeps none of them."""
    patience: Whole = 10
    """Steps in a row without a finite gradient after which the run goes back to its last checkpoint."""


@dataclass(frozen=True)
class Parallel:
    """How a run is spread over processes and memory; none of it changes what is computed."""

    shard: Literal["none", "full", "hybrid"] = "none"
    """Weights in every process (DDP), a part in each (FSDP2), or a part in each of a node (HSDP)."""
    checkpointing: bool = False
    """Compute the blocks again in the backward pass instead of keeping what they computed."""
    accumulate: Whole = 1
    """Parts of a batch that pass one after the other."""
    timeout: Whole = 600
    """Seconds to wait for a process that says nothing."""


@dataclass(frozen=True)
class Sample:
    """How the trained model is best sampled; saved with it as its default."""

    sampler: str = "heun"
    """ddpm, ddim, euler, heun, dpmpp, ab2, ab4 or sde."""
    steps: Whole = 20
    """Steps of the sampler."""
    grid: str = "uniform"
    """Time grid: uniform, cosine, log-snr, shifted or leading."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times between which guidance acts."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run."""

    model: Model = field(default_factory=Model)
    diffusion: Diffusion = field(default_factory=Diffusion)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    parallel: Parallel = field(default_factory=Parallel)
    sample: Sample = field(default_factory=Sample)


@dataclass(frozen=True)
class AutoencoderTraining:
    """A small autoencoder and how it is trained."""

    stride: Whole = 4
    """Picture sides divided by latent sides."""
    latent_channels: Whole = 8
    """Channels of the latents."""
    width: Whole = 64
    """Channels of the network."""
    depth: Whole = 3
    """Residual blocks of the encoder, and of the decoder."""
    images: Whole = 40_000
    """Pictures to train on, repeats counted."""
    batch: Whole = 16
    """Pictures in a step."""
    lr: float = 2e-3
    """Learning rate at its height; it falls to 0 along a cosine."""
    kl: float = 0.03
    """Weight of the KL term, in nats for each value of the picture."""
    edges: float = 1.0
    """Weight of the error of differences between neighbouring pixels."""
    held_out: float = 0.05
    """Share of the pictures kept for the score."""
    seed: Whole = 0
    """Decides initial weights, order, noise and what is held out."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    log_every: Whole = 4_000
    """Images between checkpoints and lines of metrics.jsonl."""


@dataclass(frozen=True)
class Evaluation:
    """All that decides a score; what is None is as the model was saved with."""

    weights: Literal["ema", "model"] = "ema"
    """The average of the weights, or the raw ones of a training checkpoint."""
    autoencoder: str = ""
    """The autoencoder of a model that came without one: folder, file or hub id."""
    heads: Whole | None = None
    """Attention heads of a foreign checkpoint whose size was never published."""
    latent_size: str = ""
    """Side, or HEIGHTxWIDTH, of the latents of a foreign checkpoint that does not tell it (U-DiT)."""
    classes: Whole | None = None
    """Classes of a foreign checkpoint whose label table does not tell them (U-ViT)."""
    sampler: str | None = None
    """ddpm, ddim, euler, heun, dpmpp, ab2, ab4 or sde."""
    steps: Whole | None = None
    """Steps of the sampler."""
    grid: str | None = None
    """Time grid: uniform, cosine, log-snr, shifted or leading."""
    guidance: float | None = None
    """Scale of classifier-free guidance; 1 is none."""
    interval: tuple[float, float] | None = None
    """Times between which guidance acts."""
    guidance_channels: Whole | None = None
    """Guide the first so many channels only; 3 reproduces published DiT figures."""
    eta: float | None = None
    """Noise of ddim, 0 to 1."""
    labels: Literal["balanced", "random"] = "balanced"
    """Each class equally often, or drawn uniformly at random."""
    seed: Whole = 0
    """Other seeds give other pictures."""
    count: Whole = 50_000
    """Pictures to draw."""
    reference: str = ""
    """What to compare with: an .npz file of ours or of ADM's evaluator, or any source of pictures."""
    features: str = ""
    """inception, dinov2, digits or glyphs; left out, those of the reference."""
    feature_weights: str = ""
    """File, folder or hub id of the features' weights."""
    metrics: tuple[str, ...] = ()
    """frechet, spatial, inception-score, precision-recall, kernel, accuracy; all that apply if left out."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 draws sooner, with compiled blocks where that pays; its scores are not those of float32."""
    batch_size: Whole = 64
    """Pictures drawn at a time; they do not depend on it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    expect: float | None = None
    """The distance that must come out; another one is a failure."""
    within: float | None = None
    """How far from it is still the same; 2 % of it if left out."""
