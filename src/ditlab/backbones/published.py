"""The published form of a family: how its published weights are recognized, read and written."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ditlab.core.errors import InputError

IMAGENET = 1000  # classes
SIT_CLOCK = {"clock_rate": -1.0, "clock_start": 1.0}  # SiT's timestep input is 1 - t


def sit_objective(process: str = "linear") -> dict[str, Any]:
    """Return the objective, as in `config.json`, of networks that are trained as SiT on this process.

    SiT's velocity is the negative of ditlab's, see `negated`.
    """
    return {"process": {"name": process, **SIT_CLOCK}, "target": "velocity"}


def negated(tensors: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Change the sign of some tensors, such as the output layer of a network that predicts SiT's velocity."""
    return tensors | {name: -tensors[name] for name in names}


def count_of(tensors: dict[str, Tensor], prefix: str) -> int:
    """Return the number of modules in the list that has this prefix ("blocks.")."""
    start = len(prefix)
    return len({key[start:].split(".")[0] for key in tensors if key.startswith(prefix)})


class PublishedForm:
    """The part of `Backbone` that reads and writes published weights. By default there are none."""

    marks: tuple[str, ...] = ()
    """Keys that identify a published state dict of this family; if several families match, the one with most keys is
    used."""
    published: Mapping[str, Any] = {}
    """Option -> the only value that the published code supports."""
    computed: tuple[str, ...] = ()
    """Names of buffers that published files may lack, or have for another size; they are then computed."""
    diffusers_class: str = ""
    """Name of diffusers' class for this family, for `from_diffusers` and `to_diffusers`; empty if there is none."""
    diffusers_marks: tuple[str, ...] = ()
    """Keys that identify a state dict of diffusers that has no config.json; empty if it needs one."""

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict."""
        raise NotImplementedError

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """Return the objective, as in `config.json`, that published weights of these sizes were trained with.

        By default it is DiT's.
        """
        return {"process": {"name": "ddpm"}, "target": "eps"}

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a published state dict to ditlab's, without copying; by default they are the same."""
        return tensors

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a ditlab state dict to the published ones, the inverse of `from_published`."""
        return tensors

    @classmethod
    def check_published(cls, config: Mapping[str, Any]) -> None:
        """Check that the published code supports the options of a network, which `published` lists.

        Raises:
            InputError: it does not.
        """
        for key, value in cls.published.items():
            present = config.get(key)
            if present is not None and (present or False) != (value or False):
                raise InputError(
                    f"the official code of {config['name']} has {key} = {value} only, and this model {present}; "
                    "convert to ditlab instead"
                )

    @classmethod
    def from_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Convert a transformer of diffusers, with the content of its config.json.

        Returns:
            Tensors under published keys, and the arguments of `create` that they do not determine.
        """
        raise NotImplementedError

    @classmethod
    def to_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Convert a published state dict, with the `config` of its network, to diffusers' tensors and config.json."""
        raise NotImplementedError

    @staticmethod
    def count_classes(rows: int) -> int:
        """Return the number of classes of a published class-embedding table with this number of rows.

        A table of 1000 rows is ImageNet without a null class; in all other tables the last row is the null class.
        """
        return rows if rows == IMAGENET else rows - 1
