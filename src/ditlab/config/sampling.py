"""The sampling settings, which have the same names in recipes, Python, command line, HTTP and evaluation protocols.

Nothing here imports torch. `ditlab.inference.plan.resolve` computes the sampling plan of a model from these settings.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Self

from cyclopts import Parameter

from ditlab.config.fields import Unused, setting
from ditlab.config.values import Whole
from ditlab.core.errors import InputError, lookup, nearest

Interval = Annotated[tuple[float, float] | None, Parameter(negative="")]

MOST_STEPS = 10_000  # ten times the steps of the longest published schedule; larger numbers are mistakes
Layers = Annotated[tuple[Whole, ...] | None, Parameter(negative="")]
WITHOUT_SHIFT = Unused("schedule", ("uniform", "cosine", "log-snr", "leading", "flux"), "which has no shift", "sd3")
WITHOUT_GUIDANCE = Unused("guidance", (1.0,), "which disables guidance", unless="preset")


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling settings; None is the model's default."""

    steps: Whole | None = setting(None, at_least=1, below=MOST_STEPS + 1)
    """Number of sampler steps."""
    sampler: str | None = None
    """Sampler, such as heun, ab4, dpmpp or ddpm; docs/sampling.md lists all."""
    guidance: float | None = setting(None, not_negative=True)
    """Classifier-free guidance scale (1 disables guidance)."""
    guidance_interval: Interval = setting(None, up_to=1)
    """Times between which guidance acts (0 is data, 1 is noise)."""
    guidance_channels: Whole | None = setting(None, at_least=1)
    """Guide only the first N channels; 3 reproduces the published DiT results."""
    guidance_rescale: float | None = setting(None, up_to=1, unused=WITHOUT_GUIDANCE)
    """Share by which guidance keeps the contrast of the output without guidance (0 to 1; Lin et al. 2023)."""
    skip_layers: Layers = setting(None, at_least=0)
    """Skip-layer guidance: lead away from the output without these blocks (Stable Diffusion 3.5 medium: 7 8 9)."""
    skip_guidance: float | None = setting(None, not_negative=True)
    """Scale of skip-layer guidance (default: 2.8)."""
    skip_interval: Interval = setting(None, up_to=1)
    """Shares of the steps between which skip-layer guidance acts (default: 0.01 0.2)."""
    schedule: str | None = None
    """Timestep schedule: uniform, cosine, log-snr, shifted, leading, sd3, flux, or a file written by `ditlab tune`."""
    shift: float | None = setting(None, between=(1e-3, 1e3), unused=WITHOUT_SHIFT)
    """Shift of the schedules shifted and sd3 (default: 3)."""
    eta: float | None = setting(None, up_to=1)
    """Noise of the ddim sampler, from 0 (none) to 1."""
    preset: str | None = None
    """Named settings: draft, normal, best, reference or dit-published. Other options take precedence."""
    reuse: Whole | None = setting(None, at_least=1)
    """Feature caching: run the inner part of the network in every N-th step only (for many steps)."""
    reuse_error: float | None = setting(None, up_to=1)
    """Feature caching: run the inner part where its extrapolation would have a larger error than this, such as 0.1."""

    @classmethod
    def accept(cls, words: Mapping[str, Any]) -> Self:
        """Read settings under any accepted name; None is "not given".

        Raises:
            InputError: an unknown name, or one setting under two names.
        """
        return cls(**canonical(words))

    def given(self) -> dict[str, Any]:
        """The sampling settings that are not None, by name."""
        values = {name: getattr(self, name) for name in NAMES}
        return {name: value for name, value in values.items() if value is not None}

    def sampling(self) -> "SamplingOptions":
        """Only the sampling settings, without the fields of a subclass."""
        return SamplingOptions(**self.given())


@dataclass(frozen=True)
class Sample(SamplingOptions):
    """The sampling settings of a recipe, which are saved with the model as its defaults."""

    steps: Whole = setting(20, at_least=1, below=MOST_STEPS + 1)
    """Number of sampler steps."""
    sampler: str = "heun"
    """Sampler, such as heun, ab4, dpmpp or ddpm; docs/sampling.md lists all."""
    guidance: float = setting(1.0, not_negative=True)
    """Classifier-free guidance scale (1 disables guidance)."""
    guidance_interval: Annotated[tuple[float, float], Parameter(negative="")] = setting(
        (0.0, 1.0), up_to=1, unused=WITHOUT_GUIDANCE
    )
    """Times between which guidance acts (0 is data, 1 is noise)."""
    guidance_channels: Whole | None = setting(None, at_least=1, unused=WITHOUT_GUIDANCE)
    """Guide only the first N channels; 3 reproduces the published DiT results."""
    schedule: str = "uniform"
    """Timestep schedule: uniform, cosine, log-snr, shifted, leading, sd3, flux, or a file written by `ditlab tune`."""

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Self:
        """Read the settings in a model's JSON file, in the present or the previous spelling."""
        values = modern(saved, SETTINGS)
        if "guidance_interval" in values:
            low, high = values["guidance_interval"]
            values["guidance_interval"] = (float(low), float(high))
        for name in ("skip_layers", "skip_interval"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)


GUIDANCE_ORIGIN = "guidance_origin"
"""Key in a model's config: the published script whose guidance is the model's default."""

NAMES = tuple(option.name for option in fields(SamplingOptions))

DIFFUSERS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "skip_guidance_layers": "skip_layers",
    "skip_layer_guidance_scale": "skip_guidance",
}
"""Names in diffusers' pipelines, accepted as aliases."""
SETTINGS = {"interval": "guidance_interval", "grid": "schedule", "quality": "preset"}
"""Names in version 0.1, accepted for one more release in Python, recipes and saved models."""
ALIASES = DIFFUSERS | SETTINGS
INSTEAD = {
    "cfg": 'give "guidance"',
    "cfg_scale": 'give "guidance"',
    "return_dict": "leave it out: the result has the attribute images",
    "scheduler": 'give "sampler"',
}
"""Names in other programs -> what to give here."""


def outdated(old: str, new: str, level: int = 4) -> None:
    """Warn of a name of version 0.1 in Python; the caller's line is `level` frames up."""
    warnings.warn(f"{old} is now called {new}; the old name works in this release only", FutureWarning, level)


def canonical(words: Mapping[str, Any], others: Iterable[str] = (), elsewhere: Iterable[str] = ()) -> dict[str, Any]:
    """Replace aliases of sampling settings by the settings' names, and leave out settings that are None.

    Args:
        words: any accepted name -> value.
        others: further names that the caller accepts, which are not changed.
        elsewhere: names of which a misspelling is proposed, but which are no settings.

    Raises:
        InputError: an unknown name, or one setting under two names.
    """
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    others = tuple(others)
    for word, value in words.items():
        name = ALIASES.get(word, word)
        if name not in NAMES and name not in others:
            instead = INSTEAD.get(word) or nearest(word, [*NAMES, *DIFFUSERS, *others, *elsewhere])
            raise InputError(f'unknown setting "{word}"; {instead}')
        if value is None:
            continue
        if name in values:
            raise InputError(f"{source[name]} and {word} are the same setting; give one of them")
        if word in SETTINGS:
            outdated(word, name)
        values[name], source[name] = value, word
    return values


def modern(table: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Replace previous names in a table of a recipe or saved model by the present ones.

    Args:
        table: key -> value.
        renamed: previous name -> present name.

    Raises:
        InputError: one setting in the previous and the present spelling.
    """
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = renamed.get(key, key)
        if name in values:
            old = next(previous for previous, present in renamed.items() if present == name)
            raise InputError(f"{old} and {name} are the same setting; give {name}")
        values[name] = value
    return values


def _preset(sampler: str, steps: int) -> SamplingOptions:
    return SamplingOptions(steps=steps, sampler=sampler, schedule="uniform")


# "path": models with continuous time, such as flow matching; "chain": models with discrete steps (DDPM). Guidance and
# its interval are the model's defaults. docs/benchmarks.md has the NFE and the quality of each preset.
_PUBLISHED = SamplingOptions(
    # The protocol of DiT-XL/2's published FID of 2.27 (Peebles & Xie 2023): 250 respaced ancestral steps with the
    # learned variance, no clipping, guidance on three of four channels.
    steps=250,
    sampler="ddpm",
    guidance=1.5,
    guidance_interval=(0.0, 1.0),
    guidance_channels=3,
    schedule="uniform",
)
PRESETS: dict[str, dict[str, SamplingOptions]] = {
    "draft": {"path": _preset("ab4", 5), "chain": _preset("dpmpp", 8)},
    "normal": {"path": _preset("ab4", 10), "chain": _preset("dpmpp", 16)},
    "best": {"path": _preset("ab4", 24), "chain": _preset("dpmpp", 50)},
    "reference": {"path": _preset("heun", 125), "chain": _preset("ddpm", 250)},
    "dit-published": {"path": _PUBLISHED, "chain": _PUBLISHED},
}
QUALITIES = ("draft", "normal", "best", "reference")
"""The presets that differ in NFE only and keep the model's guidance."""


def preset_options(name: str, *, chain: bool) -> SamplingOptions:
    """The settings of a preset.

    Args:
        name: a name in `PRESETS`.
        chain: whether the model was trained with discrete steps (DDPM).

    Raises:
        InputError: an unknown name.
    """
    return lookup(PRESETS, name, "preset")["chain" if chain else "path"]
