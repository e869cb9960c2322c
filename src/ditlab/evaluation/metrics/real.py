"""The real-vs-real distance: what two sets of real clips of one source are apart."""

from ditlab.evaluation.metrics.frechet import frechet_distance
from ditlab.evaluation.statistics import Statistics, result_name


def real_against_real(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Frechet distance between two disjoint parts of the reference, beside that of the generated clips.

    Each part has as many clips as were generated, or half of those of the reference, if these are fewer. The number is
    a result too, because the distance grows as the number falls.
    """
    assert reference.kept is not None
    count = len(reference.kept) // 2
    if generated.features.count is not None:
        count = min(count, generated.features.count)
    name = result_name("fd", generated.name)
    first, second = reference.kept[: 2 * count : 2], reference.kept[1 : 2 * count : 2]
    return {f"real_{name}": frechet_distance(first, second), f"real_{name}_clips": float(count)}
