"""The results of prompts, which studies compare. They are read from images and not computed from features."""

from collections.abc import Mapping

from ditlab.evaluation.statistics import Direction, Statistics

PROMPT_RESULTS: Mapping[str, Direction] = {
    "prompts_seen": "higher",
    "prompts_held_out": "higher",
    "binding_errors": "lower",
    "relation_errors": "lower",
}
"""Shares of images: everything right for pairs seen in training and for held-out pairs; and for held-out pairs, colors
exchanged, and both things right in wrong places."""


def read_apart(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Never called, because no features provide what this metric needs; see `ditlab.evaluation.prompts`."""
    raise NotImplementedError
