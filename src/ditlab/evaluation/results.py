"""The result of an evaluation: the metrics, and everything that determined them, in result.json."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ditlab.config.evaluation import Expectation
from ditlab.core.formats import check_types, interpreting, read_object
from ditlab.core.io import replace_text, replacing
from ditlab.inference.samples import Samples
from ditlab.report.sheets import contact_sheet, thumbnails

SHOWN = 40  # images in the contact sheet


@dataclass(frozen=True)
class Result:
    """The result of an evaluation; the fields are the keys of result.json."""

    metrics: dict[str, float]
    protocol: dict[str, Any]
    notes: list[str]
    seconds: float
    version: str
    hardware: dict[str, Any]
    folder: Path
    expected: dict[str, Any] | None = None
    """`metric`, `value`, `within` and `met`; None if no value was expected."""

    def as_json(self) -> dict[str, Any]:
        """The content of result.json: the metrics first, then everything else."""
        others = {key: value for key, value in vars(self).items() if key != "metrics"}
        return {**self.metrics, **others, "folder": str(self.folder)}

    def table(self) -> Table:
        """The metrics as a table for the terminal."""
        table = Table("metric", "value")
        table.columns[1].justify = "right"
        for name, value in self.metrics.items():
            table.add_row(name, f"{value:,.4f}")
        return table


def write_result(result: Result) -> None:
    """Write result.json."""
    result.folder.mkdir(parents=True, exist_ok=True)
    replace_text(result.folder / "result.json", json.dumps(result.as_json(), indent=2) + "\n")


def read_result(folder: Path) -> Result:
    """Read the result of an earlier call.

    Raises:
        InputError: the file is damaged.
    """
    file = folder / "result.json"
    with interpreting(file, "remove it and evaluate again"):
        metrics = read_object(file)
        others = {part.name: metrics.pop(part.name) for part in fields(Result) if part.name != "metrics"}
        result = Result(metrics, **others | {"folder": folder, "expected": None})
        check_types(vars(result), {"metrics": dict, "notes": list, "seconds": (int, float)})
        check_types(result.metrics, dict.fromkeys(result.metrics, (int, float)))
        if not all(isinstance(note, str) for note in result.notes):
            raise TypeError("a note is not a text")
        return result


def with_expectation(result: Result, settings: Expectation) -> Result:
    """Add to a result whether its first metric has the expected value."""
    if settings.expect is None:
        return result
    name, value = next(iter(result.metrics.items()))
    within = 0.02 * abs(settings.expect) if settings.within is None else settings.within
    met = abs(value - settings.expect) <= within
    expected = {"metric": name, "value": settings.expect, "within": within, "met": met}
    return replace(result, expected=expected)


def show_samples(samples: Samples, folder: Path) -> None:
    """Write a contact sheet of the first samples, and the prompt of each sample of a model that reads text."""
    if samples.prompts:
        lines = [next(iter(samples.captions(i)), "") for i in range(len(samples))]
        replace_text(folder / "prompts.txt", "\n".join(lines) + "\n")
    shown = samples.fetch(torch.arange(min(SHOWN, len(samples)))).x
    images = thumbnails(samples.values.displayed(shown))
    with replacing(folder / "grid.png") as draft:
        contact_sheet([images[i : i + 10] for i in range(0, len(images), 10)]).save(draft, format="PNG")
