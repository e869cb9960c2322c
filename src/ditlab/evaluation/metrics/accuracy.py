"""Classifier accuracy: the share of generated images that are classified as the class they were conditioned on."""

from ditlab.evaluation.statistics import Statistics


def accuracy(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """The accuracy that was gathered, which needs a feature network with the same classes as the images."""
    assert generated.accuracy is not None
    return {"accuracy": generated.accuracy}
