"""Recipes as frozen dataclasses, one for each section.

Nothing here imports torch. Times are t in 0..1 (0 is data); progress, warm-up and intervals are counted in images.
Each field defines its range and whether a resumed run may change it, see `ditlab.config.fields`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from cyclopts import Parameter

from ditlab.config.distill import Distill
from ditlab.config.fields import Unused, renamed, setting
from ditlab.config.parallel import Parallel
from ditlab.config.sampling import Sample
from ditlab.config.values import Located, Location, Whole
from ditlab.core.errors import InputError
from ditlab.core.spelling import expand

NETWORK = "DiT-S/2"
NO_SOURCE = Unused("init_from", ("",))
NO_TEXT = Unused("conditioner", ("class",), use="text")


class Model:
    """The network: its name, and any option of its family.

    An option that is not given is None here, and has the value of the named size in the network. The shape of the input
    and the class count follow from the data and the autoencoder.

    Args:
        name: family and size, such as DiT-XL/2, or "package.module:Class".
        options: keyword arguments of the family's class.
    """

    name: str

    def __init__(self, name: str = NETWORK, **options: Any) -> None:
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        vars(self).update({"name": name} | {key: value for key, value in options.items() if value is not None})

    @property
    def options(self) -> dict[str, Any]:
        """The options that are given."""
        return {key: value for key, value in vars(self).items() if key != "name"}

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        return None

    def __setattr__(self, key: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to {key}; create another Model")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(frozenset(vars(self).items()))

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


@dataclass(frozen=True)
class Diffusion:
    """The diffusion process, and what the network is trained to predict."""

    process: str | None = None
    """Path from data to noise: linear (rectified flow; the default), cosine, vp, ddpm, scaled-linear, or
    package.module:Class. If neither process nor target is set, a run with train.init_from uses those of its source."""
    process_options: dict[str, float | str] = setting(dict)
    """Arguments of the process, such as clock_rate = -1.0 and clock_start = 1.0: the timestep input is then 1 - t. An
    option on the command line replaces the whole table."""
    target: str | None = None
    """What the network predicts: velocity (the default), x0, eps or v."""
    time: str = setting("logit-normal", resume="ask")
    """Distribution of training times: logit-normal, uniform, mode or cosmap."""
    time_mean: float = setting(
        0.0, resume="ask", between=(-10, 10),
        unused=Unused("time", ("uniform", "mode", "cosmap"), "which has no mean", "logit-normal"),
    )  # fmt: skip
    """Mean of the logit-normal distribution; above 0 trains more on noise."""
    time_scale: float = setting(
        1.0, resume="ask", between=(-1, 10),
        unused=Unused("time", ("uniform", "cosmap"), "which has no scale", "logit-normal"),
    )  # fmt: skip
    """Scale of the logit-normal distribution, or of mode (-1 to 1.75; below 0 trains more on both ends)."""
    stratified: bool = setting(True, resume="ask")
    """Spread the times evenly over the quantiles within each batch."""
    weight: str = setting("one", resume="ask")
    """Weight of the loss over time: one, min-snr or velocity."""
    direction: float = setting(0.0, resume="ask", not_negative=True)
    """Weight of a second loss: 1 - cosine similarity of output and target at each position (LightningDiT)."""
    learn_variance: bool | None = None
    """Learn the reverse variance too (improved DDPM; needs process ddpm)."""


@dataclass(frozen=True)
class ImageSettings(Located):
    """How images are read and resized."""

    size: str = ""
    """Side, or HEIGHTxWIDTH, to which images are resized; or "native": each image keeps its aspect ratio and gets about
    as many pixels as data.pixels. Without it all images must have the same size."""
    pixels: Whole | None = setting(None, at_least=1)
    """With size native: largest number of pixels of an image, or of a frame of a clip, such as 65536."""
    multiple: Whole | None = setting(None, at_least=1)
    """With size native: what sides are divisible by (default: 8). The network needs its patch times the stride of the
    autoencoder."""
    fit: Literal["crop", "letterbox", "stretch"] = "crop"
    """How images of another aspect ratio are resized: crop the center, add bars (letterbox), or distort (stretch)."""
    flip: bool = False
    """Add the mirrored version of each image."""
    gray: Annotated[bool, Parameter(alias="grey")] = setting(False, was="grey")
    """Convert to gray; the same as channels = 1."""
    channels: Whole | None = setting(None, at_least=1)
    """Channels of the images: 1 gray, 3 RGB, 4 RGB and transparency, or the bands of the files (default: from the
    data)."""
    range: str = ""
    """The numbers that become black and white: "LOW,HIGH", or "standardize" for the mean and deviation of each channel
    (default: 0,255 for 8 bits, otherwise from the data)."""
    show: tuple[Whole, ...] = setting((), at_least=1)
    """Numbers of the one or three channels, from 1, that PNG files and previews show (default: the first ones)."""
    min_side: Whole = setting(8, at_least=1)
    """Shortest side in pixels; smaller images are left out."""
    max_pixels: Whole = setting(178_956_970, resume="free", at_least=1)
    """Largest number of pixels of an image; larger ones are left out. The default is the most that Pillow decodes."""
    background: str = "white"
    """Color behind transparent pixels, and of bars."""
    labels: Location = ""
    """CSV or JSONL file with the labels of a flat folder."""
    split: str = ""
    """Part of a data set that is divided into train, val and test (default: train)."""
    image_column: str = ""
    """Column with the images, in a data set that has several."""
    label_column: str = ""
    """Column with the class labels; "none" ignores all labels."""
    caption_column: str = ""
    """Column with the captions; several are separated by commas."""
    max_skipped: float = setting(0.05, resume="free", up_to=1)
    """Largest share of images that may be unreadable."""

    def divided(self, held_out: float) -> "Preparation":
        """The same settings, with a share of the images that are held out."""
        return Preparation(**vars(self) | {"held_out": held_out})


@dataclass(frozen=True)
class Preparation(ImageSettings):
    """How images are read, resized and divided."""

    held_out: float = setting(0.0, share=True)
    """Share of the images of each class that training does not see, for evaluation: the part val of the source."""
    frames: Whole | None = setting(None, at_least=1)
    """Number of frames of a clip. The source then holds videos and animations instead of images. With size native: of
    the longest clips; shorter files give clips of half as many frames, and so on, and images clips of one frame."""
    fps: float | None = setting(None, between=(0.01, 1000))
    """Frames per second of the clips (default: the frame rate of each file)."""
    seconds: float | None = setting(None, not_negative=True)
    """Length of a clip in seconds, instead of frames or of fps."""
    stride: Whole = setting(1, at_least=1)
    """Use every n-th frame of a file at its own frame rate, instead of fps; with trajectories, every n-th state."""
    frame_multiple: Whole | None = setting(None, at_least=1)
    """With size native: what the number of frames of clips is divisible by (default: 1); the network needs its
    patch_frames. Clips of one frame are images, which fill a token."""
    frame_folders: bool = False
    """Each folder of numbered image files is a clip."""
    trajectories: bool = False
    """Each file, .npy or .npz, is a trajectory (T, C, H, W) of a field, for train.objective next-state."""


@dataclass(frozen=True)
class Data(Preparation):
    """Where the images come from."""

    source: Location = setting("digits", resume="ask")
    """digits, glyphs-SIZE, a folder of classes, a flat folder, tar shards, hf:NAME[:SPLIT], or a latent cache."""
    shuffle_shards: Whole = setting(16, resume="ask", at_least=1)
    """Shards in a store whose images are read in a common random order; the cache must have room for twice as many."""
    autoencoder: Location = ""
    """Train on the latents of this autoencoder: folder, file or hub id. A latent cache contains its autoencoder."""
    classes: Whole | None = setting(None, at_least=1, unused=Unused("conditioner", ("text",), "which has no classes"))
    """Class count of the model, if it must be larger than that of the data."""
    conditioner: str = "class"
    """What the network is conditioned on: class, text, or package.module:Class."""
    encoder: str = setting("", unused=NO_TEXT)
    """With conditioner text: words (a learned embedding of each word of the captions; the default), or another text
    encoder. A run with train.init_from uses that of its source."""
    encoder_options: dict[str, float | str] = setting(dict)
    """Options of the text encoder, such as length = 16. An option on the command line replaces the whole table."""
    text_cache: Location = setting("", unused=NO_TEXT)
    """With conditioner text: folder of captions that `ditlab encode` has encoded; it contains its encoder."""
    caption_template: str = setting("", unused=NO_TEXT)
    """With conditioner text: caption of images without one, such as "a photo of {class}"."""


@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule."""

    name: Literal["adamw", "muon"] = setting("adamw", resume="never")
    """adamw, or muon: Muon for the matrices of the blocks and AdamW for all other parameters."""
    moments: Literal["float32", "8bit"] = setting("float32", resume="never", unused=Unused("name", ("muon",)))
    """Precision of Adam's moments: 8bit takes a quarter of the memory (needs the extra lowbit)."""
    lr: float = setting(1e-4, not_negative=True)
    """Peak learning rate."""
    betas: tuple[float, float] = setting((0.9, 0.999), share=True)
    """Decay rates of Adam's two moment estimates."""
    weight_decay: float = setting(0.0, not_negative=True)
    """Decoupled weight decay, applied to matrices only."""
    warmup: Whole = setting(0, not_negative=True)
    """Images over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    """Learning-rate schedule after warm-up. All but constant fall to 0 at the last image; wsd falls late, see decay."""
    decay: float = setting(
        0.2, up_to=1, unused=Unused("schedule", ("constant", "cosine", "linear"), "which has no such share", "wsd")
    )
    """Share of the run over which the learning rate falls with wsd."""
    clip: float = setting(1.0, not_negative=True)
    """Largest gradient norm; larger gradients are scaled down (0 disables clipping)."""


@dataclass(frozen=True)
class Train(Located):
    """The length of a run, what is trained, and what is written."""

    images: Whole = setting(1_000_000, resume="free", at_least=1)
    """Length of the run: number of images to train on, including repeats."""
    minutes: float = setting(0.0, resume="free", not_negative=True)
    """Largest training time in minutes, over all parts of a run that was paused; the learning-rate schedule follows the
    time if it is further than the images (0: no limit)."""
    clock: Literal["wall", "cpu"] = setting("wall", resume="free")
    """How training time is measured: wall-clock time (wall), or the processor time of all threads of the process (cpu),
    which other programs on the machine hardly change."""
    batch: Whole = setting(128, resume="ask", at_least=1)
    """Batch size: images per optimizer step."""
    objective: str = "regression"
    """Training objective: regression; next-state, for fields; guided, halves, pairs, correction or mean-flow (see
    [distill]); or package.module:Class."""
    aids: tuple[str, ...] = setting((), resume="ask")
    """Further training aids by name, or as package.module:Class; aids with a setting in this table need no entry."""
    label_dropout: float = setting(0.1, resume="ask", share=True)
    """Share of conditions that are replaced by the null condition, which classifier-free guidance needs."""
    encoder_dropout: dict[str, float] = setting(dict, resume="ask")
    """With several text encoders: share of images for which each one alone is replaced by zeros, by its name. Stable
    Diffusion 3 was trained with {clip_l = 0.464, clip_g = 0.464, t5 = 0.464}, and label_dropout = 0."""
    route: float = setting(0.0, resume="ask", share=True)
    """Share of the tokens that bypass the middle blocks in training (DiT; TREAD)."""
    layer_sync: Annotated[tuple[Whole, ...], Parameter(alias="align")] = setting(
        (), resume="ask", at_least=0, was="align"
    )
    """Numbers of two blocks: the output of the first is aligned with the output of the second (LayerSync)."""
    layer_sync_weight: Annotated[float, Parameter(alias="align_weight")] = setting(
        0.5, resume="ask", not_negative=True, unused=Unused("layer_sync", ((),)), was="align_weight"
    )
    """Weight of the LayerSync loss."""
    budget_ramp: Whole = setting(0, resume="ask", not_negative=True)
    """With model.budget: images over which the target of the compute falls from all to the budget (DyDiT)."""
    budget_complete: Whole = setting(0, resume="ask", not_negative=True)
    """With model.budget: first images on which the complete network is trained too (DyDiT's first stage)."""
    repa: Location = setting("", resume="ask")
    """Folder or hub id of a DINOv2 with whose features the output of a block is aligned (REPA); or "cache" for the
    features in a latent cache."""
    repa_block: Whole | None = setting(None, resume="ask", at_least=0, unused=Unused("repa", ("",)))
    """Number of the block that REPA aligns, from 0 (default: 7, or the last one of the middle of a U-shaped
    network)."""
    repa_weight: float = setting(0.5, resume="ask", not_negative=True, unused=Unused("repa", ("",)))
    """Weight of the REPA loss."""
    repa_manifold: float = setting(0.0, resume="ask", not_negative=True, unused=Unused("repa", ("",)))
    """Weight, within the REPA loss, of the distance between the similarities of the images (U-REPA: 3)."""
    given_first: float = setting(0.0, resume="ask", share=True)
    """Share of clips whose first frame is given, for image to video; the loss counts the other frames."""
    given_start: float = setting(0.0, resume="ask", share=True)
    """Share of clips of which up to half of the frames, from the first one, are given, for longer clips."""
    given_ends: float = setting(0.0, resume="ask", share=True)
    """Share of clips whose first and last frame are given, for interpolation."""
    ema: float = setting(0.9999, resume="ask", share=True)
    """Decay of the exponential moving average (EMA) of the weights per step, after warm-up."""
    power_ema: Annotated[tuple[float, ...], Parameter(alias="widths")] = setting((), up_to=1, was="widths")
    """Lengths of additional power-function EMAs, as shares of the run, such as 0.05 0.1."""
    init_from: Location = ""
    """Model whose weights the run starts from; the settings of [model] are then those of this model."""
    class_map: Location = setting("", unused=NO_SOURCE)
    """With init_from: TOML or JSON file that maps classes of the data to the classes of the source they start from."""
    freeze: tuple[str, ...] = setting((), unused=NO_SOURCE)
    """With init_from: parts of the network that are not trained, by the beginning of their names, such as
    t_embedder."""
    lora: Whole = setting(0, at_least=0, unused=NO_SOURCE)
    """With init_from: rank of low-rank updates that are trained instead of the weights; 0 trains the weights."""
    lora_apart: bool = setting(False, unused=Unused("lora", (0,)))
    """Save the low-rank updates separately instead of merged into the weights of the source."""
    seed: Whole = setting(0, at_least=0, below=2**32)
    """Seed of initial weights, image order, noise and timesteps."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the computation; auto measures one step in each and uses the faster."""
    compile: Literal["auto", "always", "never"] = setting("auto", resume="free")
    """Compile the blocks of the network; auto compiles if the run is long enough for compilation to save time."""
    device: str = setting("auto", resume="free")
    """auto, cpu, cuda, cuda:1, mps."""
    report: tuple[str, ...] = setting((), resume="free")
    """Trackers that receive metrics and previews, in addition to metrics.jsonl: tensorboard, wandb, trackio."""
    log_every: Whole = setting(12_800, resume="free", at_least=1)
    """Images between lines of metrics.jsonl."""
    preview_every: Whole = setting(128_000, resume="free", at_least=1)
    """Images between preview grids."""
    save_every: Whole = setting(128_000, resume="free", at_least=1)
    """Images between checkpoints."""
    keep: Whole = setting(2, resume="free", at_least=1)
    """Number of newest checkpoints that are kept."""
    keep_every: Whole = setting(0, resume="free", not_negative=True)
    """Also keep checkpoints at multiples of this number of images (0 disables this)."""
    upload: Location = setting("", resume="free")
    """Address in a store, such as s3://bucket/run, to which checkpoints are copied; another machine resumes there."""
    max_bad_steps: Annotated[Whole, Parameter(alias="patience")] = setting(10, resume="ask", at_least=1, was="patience")
    """Consecutive steps with non-finite gradients after which the run returns to its last checkpoint."""


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run."""

    model: Model = setting(Model)
    diffusion: Diffusion = setting(Diffusion)
    data: Data = setting(Data)
    optim: Optim = setting(Optim, resume="ask")
    train: Train = setting(Train)
    distill: Distill = setting(Distill)
    parallel: Parallel = setting(Parallel, resume="free")
    sample: Sample = setting(Sample, resume="free")

    @classmethod
    def load(cls, name: str | Path | Mapping[str, Any]) -> Self:
        """Read a recipe from a TOML file, by the name of a recipe of the package ("digits"), or from its tables.

        Raises:
            InputError: no such recipe, an unknown key, or a value of the wrong type.
        """
        from ditlab.config.reader import find_recipe, parse_recipe, read_toml

        if isinstance(name, Mapping):
            return cls(**vars(parse_recipe(dict(name))))
        if not isinstance(name, str | Path):
            raise InputError(f"recipe is a {type(name).__name__}; give a name, the path of a .toml file, or tables")
        path = find_recipe(str(name))
        return cls(**vars(parse_recipe(read_toml(path), source=str(path))))

    def override(
        self, tables: Mapping[str, Mapping[str, Any]] = MappingProxyType({}), **sections: Mapping[str, Any]
    ) -> Self:
        """Return this recipe with some values changed, such as {"train": {"images": 64}}, or train={"images": 64}.

        If the name of the network (model.name) changes, the other settings of [model] are reset, because they belong to
        the previous network.

        Raises:
            InputError: an unknown key, a value of the wrong type, or a section in `tables` and as an argument.
        """
        from ditlab.config.reader import check_sections, parse_recipe, to_tables, with_values, without_network

        if twice := tables.keys() & sections.keys():
            raise InputError(f"override has the section {min(twice)} twice; give it once")
        current, tables = to_tables(self), {**tables, **sections}
        if "name" in tables.get("model", {}):
            current = without_network(current)
        changes, notes = renamed(type(self), check_sections(dict(tables), "override"))
        for note in notes:
            warnings.warn(note, FutureWarning, stacklevel=2)
        return type(self)(**vars(parse_recipe(with_values(current, changes), source="override")))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the recipe as a TOML file; returns its path.

        Args:
            path: the file.
            overwrite: replace a file that exists.

        Raises:
            InputError: the file exists, and `overwrite` is false.
        """
        from ditlab.config.reader import to_tables, to_toml
        from ditlab.core.io import replace_text

        file = Path(expand(str(path)))
        if file.exists() and not overwrite:
            raise InputError(f"{file} exists; give another name, or set overwrite=True to replace the file")
        replace_text(file, to_toml(to_tables(self)))
        return file
