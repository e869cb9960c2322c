"""The command `tune`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ditlab.cli.options import Base, Tuning
from ditlab.cli.terminal import Json, app, command, print_json, say, say_note, screen
from ditlab.config.values import File, Location
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline
    from ditlab.inference.tune import Tuned
    from ditlab.inference.tune_budget import Candidate

STEPS = (4, 6, 8)  # for which schedules are tuned


@app.command(group="Generate")
def tune(
    model: Location,
    /,
    *,
    tuning: Annotated[Tuning | None, Parameter(name="*")] = None,
    base: Base = None,
    out: File = Path("schedules.json"),
    device: str = "auto",
    json: Json = False,
) -> None:
    """Tune timestep schedules so that few steps give nearly the same images as many, for `sample --schedule FILE`.

    Parameters
    ----------
    model
        A model or run folder, an external checkpoint, or a hub id.
    out
        The file to write.
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON object.
    """
    wanted = tuning or Tuning()
    check_options(wanted, out)
    from ditlab.checkpoints import load
    from ditlab.inference.tune import check_target, write_schedules

    check_target(out)
    pipe = load(model, device=pick_device(device), base=base)
    say_note(pipe.config)
    tuned, found = tuned_schedules(pipe, wanted)
    write_schedules(out, pipe, wanted.sampler, tuned, found[0].reuse if found else None)
    if json:
        tried = {"candidates": list(map(dataclasses.asdict, found))} if found else {}
        times = {count: dataclasses.asdict(each) for count, each in tuned.items()}
        print_json({"file": out, "found": times, **tried})
    else:
        report_tuning(model, wanted, out, tuned, found)


def check_options(wanted: Tuning, out: Path) -> None:
    """Check that the numbers of steps follow from one option, and the name of the file."""
    if out.suffix != ".json":
        raise InputError(f"--out {out}; give a name that ends in .json")
    if sum(value is not None for value in (wanted.steps, wanted.budget, wanted.budget_ms)) > 1:
        raise InputError("--steps, --budget and --budget-ms each say how many steps are tuned; give one of them")


def tuned_schedules(pipe: "Pipeline", wanted: Tuning) -> "tuple[dict[int, Tuned], list[Candidate]]":
    """Return the schedules to write by their numbers of steps, and what a budget allows, the best candidate first."""
    from ditlab.inference.tune import tune
    from ditlab.inference.tune_budget import search

    options = (wanted.sampler, wanted.images, screen, wanted.guidance, wanted.guidance_interval)
    if wanted.budget is None and wanted.budget_ms is None:
        return tune(pipe, list(wanted.steps or STEPS), *options), []
    unit, budget = ("evaluations", wanted.budget) if wanted.budget is not None else ("ms", wanted.budget_ms)
    found = search(pipe, budget or 0.0, unit, *options)
    return {found[0].steps: found[0].tuned}, found


def report_tuning(model: str, wanted: Tuning, out: Path, tuned: "dict[int, Tuned]", found: "list[Candidate]") -> None:
    """Print the errors before and after tuning, and a command that uses the file."""
    unit = "evaluations" if wanted.budget_ms is None else "ms"
    for candidate in found:
        caching = "reuse off" if candidate.reuse is None else f"reuse {candidate.reuse}"
        say(
            f"{candidate.steps} steps, {caching}: error {candidate.tuned.after:.2%} of the spread, "
            f"{candidate.cost:.3g} {unit} for an image"
        )
    for count, schedule in () if found else tuned.items():
        say(f"{count} steps: error {schedule.after:.2%} of the spread; with the uniform schedule {schedule.before:.2%}")
    words = f"--sampler {wanted.sampler} --steps {next(iter(tuned))} --schedule {out}"
    words += f" --reuse {found[0].reuse}" if found and found[0].reuse is not None else ""
    words += "" if wanted.guidance is None else f" --guidance {wanted.guidance:g}"
    if wanted.guidance_interval is not None:
        words += " --guidance-interval {:g} {:g}".format(*wanted.guidance_interval)
    say(f"try: {command()} sample {model} {words}")
