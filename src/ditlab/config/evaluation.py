"""Settings of evaluation protocols: everything that a score depends on. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.config.fields import Unused, setting
from ditlab.config.sampling import SETTINGS, SamplingOptions, modern
from ditlab.config.values import Located, Location, Whole

Metrics = Annotated[tuple[str, ...], Parameter(negative="")]

RENAMED = SETTINGS | {"labels": "label_sampling"}
"""Keys of evaluation recipes in version 0.1, which are still accepted."""


@dataclass(frozen=True)
class CheckpointOptions(Located):
    """Which weights of a model are loaded, and properties that external checkpoints do not contain."""

    weights: Literal["ema", "model"] = "ema"
    """Averaged weights (ema), or the raw weights of a training checkpoint (model)."""
    autoencoder: Location = ""
    """Autoencoder of a model that has none in its folder: folder, file or hub id."""
    base: Location = ""
    """Present place of the model from which low-rank updates were trained, if it has moved (train.lora_apart)."""
    heads: Whole | None = setting(None, at_least=1)
    """Number of attention heads of an external checkpoint whose model size is not a published one."""
    latent_size: str = ""
    """Side, or HEIGHTxWIDTH, of the latents of an external checkpoint that does not contain it (U-DiT)."""
    classes: Whole | None = setting(None, at_least=0)
    """Class count of an external checkpoint whose class-embedding table does not show it (U-ViT)."""
    sit: bool | None = None
    """Whether a state dict without training settings is a SiT's; DiT has the same tensors (default: DiT)."""


@dataclass(frozen=True)
class SampleSet(Located):
    """Which images a model generates for an evaluation."""

    label_sampling: Literal["balanced", "random"] = "balanced"
    """Labels of the generated images: balanced (each class equally often, or all prompts in turn) or random (uniformly
    distributed)."""
    prompts_from: Location = ""
    """Prompts of a model that reads text: a .txt file with one in each line, or data with captions (default: the data
    that the model was trained on)."""
    seed: Whole = setting(0, at_least=0, below=2**32)
    """Seed of the image set; another seed gives other images."""
    count: Whole = setting(50_000, at_least=1)
    """Number of images to generate."""
    precision: Literal["float32", "bfloat16", "int8", "float8"] = "float32"
    """Precision of the network. The others are faster, and their scores differ from those of float32."""
    batch_size: Whole = setting(64, at_least=1)
    """Images generated at a time; does not change the images."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""


@dataclass(frozen=True)
class FeatureOptions(Located):
    """The features in which images are compared."""

    features: str = ""
    """inception, dinov2, digits, glyphs or own, and for clips i3d or moving-digits (default: the features of the
    reference)."""
    feature_weights: Location = ""
    """File, folder or hub id of the weights of the feature network."""


@dataclass(frozen=True)
class Scoring(FeatureOptions):
    """The reference that images are compared with, and the metrics."""

    reference: Location = ""
    """Reference: an .npz file of ditlab or of ADM's evaluator, or any data source."""
    metrics: Metrics = ()
    """frechet, spatial, inception-score, precision-recall, kernel, accuracy, prompts, and for clips real-vs-real and
    motion (default: all that apply)."""
    show: tuple[Whole, ...] = ()
    """Numbers of the one or three channels, from 1, that the features see (default: those that PNG files show)."""


@dataclass(frozen=True)
class Expectation:
    """The value that the first metric must have."""

    expect: float | None = None
    """Expected value of the first metric; any other value is a failure (exit code 1)."""
    within: float | None = setting(None, not_negative=True, unused=Unused("expect", (None,)))
    """Largest accepted difference from the expected value (default: 2 % of it)."""


@dataclass(frozen=True)
class SampleSource(SampleSet, SamplingOptions, CheckpointOptions):
    """A model and the images that it generates."""

    def for_models(self) -> list[str]:
        """Names of the settings that are set and affect a model only, not existing images."""
        used = ("batch_size", "device")
        return [
            option.name
            for option in fields(SampleSource)
            if option.name not in used and getattr(self, option.name) != option.default
        ]


@dataclass(frozen=True)
class Copying(FeatureOptions, SampleSource):
    """The settings of a memorization test."""


@dataclass(frozen=True)
class Evaluation(Expectation, Scoring, SampleSource):
    """Everything that a score depends on; a sampling setting that is None is the model's default."""

    size: str = ""
    """Side, or HEIGHTxWIDTH, of the generated images (default: the size of the model)."""

    def keys(self) -> dict[str, Any]:
        """The settings under the names of version 0.1, which are part of the hash of a protocol."""
        values = asdict(self)
        del values["base"]  # the place of a model does not change its images
        for name in ("show", "size", "prompts_from"):
            if not values[name]:
                del values[name]
        for old, new in RENAMED.items():
            if new in values:
                values[old] = values.pop(new)
        later = ("quality", "reuse", "reuse_error", "sit")
        return {key: value for key, value in values.items() if value is not None or key not in later}


def modern_evaluation(table: Mapping[str, Any]) -> dict[str, Any]:
    """Replace previous keys of an evaluation recipe by the present ones."""
    return modern(table, RENAMED)
