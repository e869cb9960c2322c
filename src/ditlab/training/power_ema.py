"""Power-function EMA of the weights, whose length can be chosen after training.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024, section 3 and appendix C.
After n steps, a power-function EMA gives the weights of step m the profile m^gamma, so that its length grows with the
run. The EMA length is the standard deviation of the profile as a share of the run. From snapshots of two lengths, an
average of any length can be rebuilt at any time, as the linear combination of snapshots with the nearest profile.

    run/averages/000000128000.safetensors    LENGTH/NAME -> float16, with the number of steps
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError, nothing_at
from ditlab.core.formats import interpreting
from ditlab.core.weights import read_tensors
from ditlab.training.parallel import local

STEPS = "steps"  # key of the metadata


class PowerAverages:
    """Power-function averages of a network's weights, one for each EMA length."""

    def __init__(self, net: Backbone, widths: Sequence[float]) -> None:
        self.steps = 0
        named = list(net.named_parameters())
        self.values = {f"{width}/{name}": value.detach().clone() for width in widths for name, value in named}
        self.exponents = {width: exponent(width) for width in widths}

    @torch.no_grad()
    def update(self, net: Backbone) -> None:
        """Add the weights of a step to all averages."""
        self.steps += 1
        weights = local(net.parameters())
        for width, gamma in self.exponents.items():
            averages = local(value for key, value in self.values.items() if key.startswith(f"{width}/"))
            torch._foreach_lerp_(averages, weights, 1 - (1 - 1 / self.steps) ** (gamma + 1))


def exponent(width: float) -> float:
    """The exponent gamma that belongs to an EMA length (Karras et al. 2024, equation 2 solved for gamma).

    Raises:
        InputError: the length is not between 0 and that of the uniform average.
    """
    if not 0 < width < 0.288:  # the length of the uniform average
        raise InputError(f"an EMA length of {width}; give a share of the run above 0 and below 0.288, such as 0.1")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots[np.isclose(roots.imag, 0)].real.max())


def rebuild(run: Path, width: float, images: int | None = None) -> dict[str, Tensor]:
    """Rebuild the average of an EMA length from the snapshots of a run: name -> float32 weights.

    Args:
        run: the run folder.
        width: EMA length: standard deviation of the profile, as a share of the run until `images`.
        images: images seen at the end of the profile (default: at the newest snapshot).

    Raises:
        InputError: the run has no snapshots, or `images` is before the first snapshot.
    """
    if not run.exists():
        raise nothing_at(run, "run", "give the folder of a run")
    files = sorted((run / "averages").glob("*.safetensors"))
    files = [file for file in files if images is None or int(file.stem) <= images]
    if not files:
        raise InputError(
            f"{run} has no averages to rebuild one from; set train.power_ema, such as 0.05 0.1, and train again"
        )
    profiles = [(steps, gamma, file, length) for file in files for steps, gamma, length in snapshots(file)]
    end = max(steps for steps, *_ in profiles)
    shares = combination([(steps, gamma) for steps, gamma, *_ in profiles], (end, exponent(width)))
    total: dict[str, Tensor] = {}
    for share, (_, _, file, length) in zip(shares, profiles, strict=True):
        with interpreting(file, "remove it to average the others"):
            for key, value in read_tensors(file).items():
                key_length, _, name = key.partition("/")
                if key_length == length:
                    part = value.double() * float(share)
                    total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in total.items()}


def snapshots(file: Path) -> list[tuple[float, float, str]]:
    """Number of steps, exponent and EMA length of each average in a file.

    Raises:
        InputError: the file is damaged.
    """
    with interpreting(file, "remove it to average the others"), safe_open(file, "pt") as opened:
        widths = sorted({key.split("/")[0] for key in opened.keys()})  # noqa: SIM118 - it is no dict
        steps = float(opened.metadata()[STEPS])
        if not 0 < steps < math.inf:
            raise ValueError(f"an average of {steps:g} steps")
        return [(steps, exponent(float(width)), width) for width in widths]


def combination(profiles: Sequence[tuple[float, float]], target: tuple[float, float]) -> NDArray[np.float64]:
    """Coefficients of the linear combination of profiles (steps, gamma) that is nearest to a target profile.

    Least squares (Karras et al. 2024, appendix C.2).
    """
    profiles_and_target = [*profiles, target]
    products = np.array([[product(a, b) for b in profiles_and_target] for a in profiles_and_target])
    shares, *_ = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=1e-12)
    return np.asarray(shares, dtype=np.float64)


def product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Inner product of two profiles (gamma + 1) m^gamma / n^(gamma + 1) on 0..n."""
    (n, gamma), (m, delta) = a, b
    end = min(n, m)
    # Relative to the smaller end, so that no power overflows.
    scale = (end / n) ** (gamma + 1) * (end / m) ** (delta + 1) / end
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * scale


def as_float16(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the precision of snapshots, which halves their size; the rounding errors average out."""
    return {key: value.half() for key, value in values.items()}
