"""Training aids: extra losses and token routing. A new one is one file and a line in `AIDS`."""

from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.training.aids.alignment import LayerSync
from ditlab.training.aids.base import Aid
from ditlab.training.aids.budget import ComputeBudget
from ditlab.training.aids.direction import Direction
from ditlab.training.aids.representation import RepresentationAlignment
from ditlab.training.aids.routing import TokenRouting

AIDS: Registry[type[Aid]] = Registry(
    "training aid",
    {
        "routing": TokenRouting,
        "direction": Direction,
        "layer-sync": LayerSync,
        "budget": ComputeBudget,
        "repa": RepresentationAlignment,
    },
    base=Aid,
)
BUILT_IN = tuple(AIDS)  # aids that their own settings activate

__all__ = ["AIDS", "Aid", "active_aids"]


def active_aids(recipe: Recipe) -> tuple[Aid, ...]:
    """The aids that a recipe activates, by their own settings or by name in `train.aids`.

    Raises:
        InputError: a name is unknown, or the settings of the aid are missing.
    """
    aids = [aid for name in BUILT_IN if (aid := AIDS[name].from_recipe(recipe)) is not None]
    for name in recipe.train.aids:
        aid_class = AIDS.find(name)
        if any(type(aid) is aid_class for aid in aids):
            continue
        aid = aid_class.from_recipe(recipe)
        if aid is None:
            raise InputError(f'train.aids names "{name}", but its settings are missing; set them, or omit the name')
        aids.append(aid)
    return tuple(aids)
