"""Power-function averages (EMA) of the weights, whose length is chosen after training.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024, section 3 and appendix C:
a power-function average after n steps weighs the weights of step m by m^gamma, so its length grows with the run. Its
EMA length is the standard deviation of these weights, as a share of the run. Snapshots of two lengths are enough to
rebuild any length, at any time, as the linear combination of snapshots whose weights are nearest.

    run/averages/000000128000.safetensors    LENGTH/NAME -> float16, with the count of steps
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError
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
        """Add the weights of another step."""
        self.steps += 1
        weights = local(net.parameters())
        for width, gamma in self.exponents.items():
            mine = local(value for key, value in self.values.items() if key.startswith(f"{width}/"))
            torch._foreach_lerp_(mine, weights, 1 - (1 - 1 / self.steps) ** (gamma + 1))


def exponent(width: float) -> float:
    """gamma of the average of this EMA length (Karras et al. 2024, equation 2 solved for gamma).

    Raises:
        InputError: a length that no average has.
    """
    if not 0 < width < 0.288:  # the length of the uniform average
        raise InputError(f"an EMA length of {width}; give a share of the run above 0 and below 0.288, such as 0.1")
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots[np.isclose(roots.imag, 0)].real.max())


def rebuild(run: Path, width: float, images: int | None = None) -> dict[str, Tensor]:
    """The average of that width, float32, from the snapshots of a run.

    Args:
        run: its folder.
        width: standard deviation of the profile, as a share of the run so far.
        images: the end of the profile; the newest snapshot's if left out.

    Raises:
        InputError: a run without snapshots, or an end before the first of them.
    """
    files = sorted((run / "averages").glob("*.safetensors"))
    files = [file for file in files if images is None or int(file.stem) <= images]
    if not files:
        raise InputError(
            f"{run} has no averages to rebuild one from; set train.power_ema, such as 0.05 0.1, and train again"
        )
    profiles = [(steps, exponent(float(own)), file, own) for file in files for steps, own in snapshots(file)]
    end = max(steps for steps, *_ in profiles)
    shares = combination([(steps, gamma) for steps, gamma, *_ in profiles], (end, exponent(width)))
    total: dict[str, Tensor] = {}
    for share, (_, _, file, own) in zip(shares, profiles, strict=True):
        for key, value in load_file(file).items():
            which, _, name = key.partition("/")
            if which == own:
                part = value.double() * float(share)
                total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in total.items()}


def snapshots(file: Path) -> list[tuple[float, str]]:
    """Steps and width of each average in a file."""
    with safe_open(file, "pt") as opened:
        widths = sorted({key.split("/")[0] for key in opened.keys()})  # noqa: SIM118 - it is no dict
        return [(float(opened.metadata()[STEPS]), width) for width in widths]


def combination(profiles: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> NDArray[np.float64]:
    """Shares of profiles (steps, gamma) whose sum comes nearest to the wanted one, in the mean square."""
    every = [*profiles, wanted]
    products = np.array([[product(a, b) for b in every] for a in every])
    shares, *_ = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=1e-12)
    return np.asarray(shares, dtype=np.float64)


def product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Inner product of two profiles (gamma + 1) m^gamma / n^(gamma + 1) on 0..n."""
    (n, gamma), (m, delta) = a, b
    least = min(n, m)
    # In shares of the smaller end, so that no power overflows.
    scale = (least / n) ** (gamma + 1) * (least / m) ** (delta + 1) / least
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * scale


def as_float16(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How snapshots are kept: half the bytes, and their rounding averages out."""
    return {key: value.half() for key, value in values.items()}
