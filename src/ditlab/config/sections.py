"""Recipes as frozen dataclasses: one for each section.

Nothing here imports torch. Times are t in 0..1 (0 is data); progress, warm-up and intervals are counted in images.
Each field states its range and who may change it when a run resumes, see `ditlab.config.fields`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cyclopts import Parameter

from ditlab.config.fields import renamed, setting
from ditlab.config.sampling import Sample
from ditlab.config.values import Whole

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
    """The path from data to noise and what the network is trained to predict."""

    process: str | None = None
    """linear (rectified flow; the default), cosine, vp, ddpm, scaled-linear, or package.module:Class. If neither
    process nor target is set, a run with train.init_from takes both from its source."""
    process_options: dict[str, float | str] = setting(dict)
    """Arguments of the process, such as clock_rate = -1.0 and clock_start = 1.0: the timestep input is then 1 - t. An
    option on the command line replaces the whole table."""
    target: str | None = None
    """What the network predicts: velocity (the default), x0, eps or v."""
    time: str = setting("logit-normal", resume="ask")
    """Distribution of training times: logit-normal or uniform."""
    time_mean: float = setting(0.0, resume="ask")
    """Mean of the logit-normal distribution; above 0 trains more on noise."""
    time_scale: float = setting(1.0, resume="ask", not_negative=True)
    """Scale of the logit-normal distribution."""
    stratified: bool = setting(True, resume="ask")
    """Spread the times evenly over the quantiles within each batch."""
    weight: str = setting("one", resume="ask")
    """Weight of the loss over time: one, min-snr or velocity."""
    direction: float = setting(0.0, resume="ask", not_negative=True)
    """Weight of a second loss: 1 - cosine between output and target at each place (LightningDiT)."""
    learn_variance: bool | None = None
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
    gray: Annotated[bool, Parameter(alias="grey")] = setting(False, was="grey")
    """Convert to gray."""
    background: str = "white"
    """Color under transparent parts, and of bars."""
    labels: str = ""
    """CSV or JSONL file with the labels of a flat folder."""
    max_skipped: float = setting(0.05, resume="free")
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
    conditioner: str = "class"
    """What the network receives beside image and timestep: class, or package.module:Class."""


@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule."""

    name: Literal["adamw", "muon"] = setting("adamw", resume="never")
    """AdamW, or Muon for the matrices of the blocks and AdamW for the others."""
    lr: float = setting(1e-4, not_negative=True)
    """Peak learning rate."""
    betas: tuple[float, float] = setting((0.9, 0.999), share=True)
    """Decay of the two moments."""
    weight_decay: float = setting(0.0, not_negative=True)
    """Decoupled weight decay of matrices."""
    warmup: Whole = setting(0, not_negative=True)
    """Images over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    """Learning-rate schedule after warm-up; all but constant fall to 0 at the last image, wsd at the end only."""
    decay: float = setting(0.2, not_negative=True)
    """Share of the run over which wsd falls."""
    clip: float = setting(1.0, not_negative=True)
    """Largest norm of the gradient; 0 disables clipping."""


@dataclass(frozen=True)
class Train:
    """The length of the run, what is trained, and what is written."""

    images: Whole = setting(1_000_000, resume="free", at_least=1)
    """Images to train on, repeats counted."""
    batch: Whole = setting(128, resume="ask", at_least=1)
    """Images in a step."""
    objective: str = "regression"
    """How the losses are computed: regression, or package.module:Class."""
    aids: tuple[str, ...] = setting((), resume="ask")
    """Further training aids by name, or as package.module:Class; those with a setting of their own need no entry."""
    label_dropout: float = setting(0.1, resume="ask", share=True)
    """Share of conditions replaced by "no condition", which classifier-free guidance needs."""
    route: float = setting(0.0, resume="ask", share=True)
    """Share of the tokens that bypass the middle blocks in training (DiT; TREAD)."""
    layer_sync: Annotated[tuple[Whole, ...], Parameter(alias="align")] = setting((), resume="ask", was="align")
    """Numbers of two blocks; the output of the first is pulled towards that of the second (LayerSync)."""
    layer_sync_weight: Annotated[float, Parameter(alias="align_weight")] = setting(
        0.5, resume="ask", not_negative=True, was="align_weight"
    )
    """Weight of the LayerSync loss."""
    ema: float = setting(0.9999, resume="ask", share=True)
    """Decay of the weight average (EMA) in each step, after warm-up."""
    power_ema: Annotated[tuple[float, ...], Parameter(alias="widths")] = setting((), was="widths")
    """EMA lengths, as shares of the run, of power-function averages that are kept, such as 0.05 0.1."""
    init_from: str = ""
    """A model to start from instead of fresh weights; [model] is then its own."""
    class_map: str = ""
    """With init_from: a TOML or JSON file that gives for a class of the data the class of the source it continues."""
    lora: Whole = setting(0, at_least=0)
    """With init_from: rank of low-rank updates that are trained instead of the weights; 0 trains the weights."""
    lora_apart: bool = False
    """Save the low-rank updates apart from the source instead of merged into it."""
    seed: Whole = setting(0, at_least=0, below=2**32)
    """Decides initial weights, order, noise and times."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto times one step in each and keeps the faster."""
    compile: Literal["auto", "always", "never"] = setting("auto", resume="free")
    """Compile the network's blocks; auto does it if the run is long enough for it to pay off."""
    device: str = setting("auto", resume="free")
    """auto, cpu, cuda, cuda:1, mps."""
    report: tuple[str, ...] = setting((), resume="free")
    """Trackers that receive metrics and previews beside metrics.jsonl: tensorboard, wandb, trackio."""
    log_every: Whole = setting(12_800, resume="free", at_least=1)
    """Images between lines of metrics.jsonl."""
    preview_every: Whole = setting(128_000, resume="free", at_least=1)
    """Images between preview grids."""
    save_every: Whole = setting(128_000, resume="free", at_least=1)
    """Images between checkpoints."""
    keep: Whole = setting(2, resume="free", at_least=1)
    """Number of newest checkpoints that are kept."""
    keep_every: Whole = setting(0, resume="free", not_negative=True)
    """Checkpoints at multiples of this number of images are kept too; 0 keeps none of them."""
    max_bad_steps: Annotated[Whole, Parameter(alias="patience")] = setting(10, resume="ask", at_least=1, was="patience")
    """Consecutive steps with non-finite gradients after which the run returns to its last checkpoint."""


@dataclass(frozen=True)
class Parallel:
    """How a run is spread over processes and memory; none of it changes what is computed."""

    shard: Literal["none", "full", "hybrid"] = "none"
    """Weights in every process (DDP), a part in each (FSDP2), or a part in each of a node (HSDP)."""
    checkpointing: bool = False
    """Activation checkpointing: compute the blocks again in the backward pass instead of keeping their activations."""
    accumulate: Whole = setting(1, at_least=1)
    """Parts of a batch that are processed one after the other."""
    timeout: Whole = setting(600, at_least=1)
    """Seconds to wait for a process that does not respond."""


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run."""

    model: Model = setting(Model)
    diffusion: Diffusion = setting(Diffusion)
    data: Data = setting(Data)
    optim: Optim = setting(Optim, resume="ask")
    train: Train = setting(Train)
    parallel: Parallel = setting(Parallel, resume="free")
    sample: Sample = setting(Sample, resume="free")

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """A recipe from a TOML file, or by the name of one that comes with ditlab ("digits").

        Raises:
            InputError: no such recipe, or one with an unknown key or a value of another type.
        """
        from ditlab.config.reader import find_recipe, parse_recipe, read_toml

        path = find_recipe(str(name))
        return cls(**vars(parse_recipe(read_toml(path), source=str(path))))

    def override(self, tables: Mapping[str, Mapping[str, Any]]) -> Self:
        """This recipe with other values, such as {"train": {"images": 64}}.

        Another network name (model.name) also resets the other model settings, which belong to the old network.

        Raises:
            InputError: an unknown key or a value of another type.
        """
        from ditlab.config.reader import check_sections, parse_recipe, to_tables, without_network

        own = to_tables(self)
        if "name" in tables.get("model", {}):
            own = without_network(own)
        changes, notes = renamed(type(self), check_sections(dict(tables), "override"))
        for note in notes:
            warnings.warn(note, FutureWarning, stacklevel=2)
        merged = {name: own.get(name, {}) | changes.get(name, {}) for name in {*own, *changes}}
        return type(self)(**vars(parse_recipe(merged, source="override")))

    def save(self, path: str | Path) -> Path:
        """Write the recipe as TOML."""
        from ditlab.config.reader import to_tables, to_toml
        from ditlab.core.io import replace_text

        replace_text(Path(path), to_toml(to_tables(self)))
        return Path(path)


@dataclass(frozen=True)
class AutoencoderTraining:
    """A small autoencoder and how it is trained."""

    stride: Whole = 4
    """Image sides divided by latent sides."""
    latent_channels: Whole = 8
    """Channels of the latents."""
    width: Whole = 64
    """Channels of the network."""
    depth: Whole = 3
    """Residual blocks of the encoder, and of the decoder."""
    images: Whole = setting(40_000, at_least=1)
    """Images to train on, repeats counted."""
    batch: Whole = setting(16, at_least=1)
    """Images in a step."""
    lr: float = setting(2e-3, not_negative=True)
    """Peak learning rate; it falls to 0 along a cosine."""
    kl: float = setting(0.03, not_negative=True)
    """Weight of the KL term, in nats for each value of the image."""
    edges: float = setting(1.0, not_negative=True)
    """Weight of the error of differences between neighboring pixels."""
    held_out: float = 0.05
    """Share of the images kept for the score."""
    seed: Whole = 0
    """Decides initial weights, order, noise and what is held out."""
    device: str = setting("auto", resume="free")
    """auto, cpu, cuda, cuda:1, mps."""
    log_every: Whole = setting(4_000, resume="free", at_least=1)
    """Images between checkpoints and lines of metrics.jsonl."""
