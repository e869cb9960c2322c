"""Training aids: extra losses and token routing. A new one is one file and one line in `AIDS`."""

from typing import Any

from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.training.aids.alignment import LayerSync
from ditlab.training.aids.base import Aid
from ditlab.training.aids.direction import Direction
from ditlab.training.aids.routing import TokenRouting


def check(name: str, kind: Any) -> None:
    """Refuse what is no training aid.

    Raises:
        InputError: something else than a subclass of `Aid`.
    """
    if not (isinstance(kind, type) and issubclass(kind, Aid)):
        raise InputError(f'the training aid "{name}" is no subclass of ditlab.training.aids.Aid; make it one')


AIDS: Registry[type[Aid]] = Registry(
    "training aid", {"routing": TokenRouting, "direction": Direction, "layer-sync": LayerSync}, check
)
BUILT_IN = tuple(AIDS)  # these are active when their own settings say so

__all__ = ["AIDS", "Aid", "active_aids"]


def active_aids(recipe: Recipe) -> tuple[Aid, ...]:
    """The aids that a recipe asks for, by their own settings or by name.

    Raises:
        InputError: an unknown name, or one whose settings are left out.
    """
    aids = [aid for name in BUILT_IN if (aid := AIDS[name].from_recipe(recipe)) is not None]
    for name in recipe.train.aids:
        kind = AIDS.find(name)
        if any(type(aid) is kind for aid in aids):
            continue
        aid = kind.from_recipe(recipe)
        if aid is None:
            raise InputError(f'train.aids names "{name}", but its settings are left out; set them, or leave it out')
        aids.append(aid)
    return tuple(aids)
