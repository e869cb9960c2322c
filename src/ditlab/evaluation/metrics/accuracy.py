"""Classifier accuracy: the share of generated images that are classified as the class they were conditioned on."""

from ditlab.evaluation.statistics import Statistics


def accuracy(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Of the classifier whose features are used, where its classes are those of the images."""
    assert generated.accuracy is not None
    return {"accuracy": generated.accuracy}
