"""How well a model follows prompts, see `ditlab.evaluation.prompts`."""

from ditlab.config.evaluation import Evaluation
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.evaluation.metrics.prompted import PROMPT_RESULTS
from ditlab.evaluation.prompts import evaluate_prompts, reader_of
from ditlab.study.measures.base import Measure, opened


def check(recipe: Recipe, settings: Evaluation) -> None:
    """Check that the truth of the data is known, and that the model reads text.

    Raises:
        InputError: one of them is not the case.
    """
    reader_of(opened(recipe.data, recipe.train.init_from)[0])
    if recipe.data.conditioner != "text":
        raise InputError('the metric prompts needs a model that reads text; set data.conditioner = "text"')


PROMPTS = Measure(evaluate_prompts, PROMPT_RESULTS, check)
