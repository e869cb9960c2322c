"""The motion of digits: the measured values of generated clips beside those of real ones."""

from ditlab.evaluation.statistics import Statistics

MOTION = ("speed", "acceleration", "bounces", "same_digit")
"""The features of `ditlab.evaluation.features.motion`, in their order."""
COMPARED = MOTION[:2]


def motion(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Mean of each value over the generated clips, and over the real ones ("real_speed").

    "speed_deviation" and "acceleration_deviation" are the deviations from the real values, as shares of them.
    """
    values, real = (dict(zip(MOTION, part.features.mean.tolist(), strict=True)) for part in (generated, reference))
    deviations = {f"{name}_deviation": abs(values[name] / real[name] - 1) for name in COMPARED if real[name]}
    return values | deviations | {f"real_{name}": value for name, value in real.items()}
