"""The command that distills a model into a student of one or a few steps."""

from typing import Annotated, Any

from cyclopts import Parameter

from ditlab.cli.prompts import sampling
from ditlab.cli.terminal import app, say, screen
from ditlab.config.fields import Amount, Positive
from ditlab.config.sampling import Interval
from ditlab.config.values import Folder, Location
from ditlab.core.device import process_place


@app.command(group="Train")
def distill(
    run: Location,
    out: Folder,
    /,
    *,
    steps: Positive = 1,
    guidance: Annotated[tuple[Amount, ...] | None, Parameter(negative="")] = None,
    guidance_interval: Interval = None,
    images: Positive | None = None,
    correction: Positive | None = None,
) -> None:
    """Train a student that generates images in one or a few steps. Run the same command again to resume.

    First the student learns that one step equals two steps of half its length, then the teacher's trajectories. A third
    part corrects the distribution of its images. A step is one function evaluation, with guidance too.

    Parameters
    ----------
    run
        The teacher: a run folder, or a model that was saved from one.
    out
        The run folder of the student; any other command takes it as a model.
    steps
        Number of sampler steps of the student, 1 to 8.
    guidance
        Guidance scale that is built into the student (default: that of the teacher); or the lowest and the highest
        scale of a range, in which it stays free at sampling.
    guidance_interval
        Times between which guidance acts, 0 is data and 1 is noise (default: those of the teacher).
    images
        Length of the second part (default: both parts cost about as much as the training of the teacher).
    correction
        Length of a third part (default: none).
    """
    from ditlab.training import distill

    scales: dict[str, Any] = {"guidance": guidance, "guidance_interval": guidance_interval}
    distill(run, out, steps=steps, images=images, correction=correction or 0, console=screen, **scales)
    if process_place()[0] == 0:
        say(f"model, recipe and report are in {out}; try: {sampling(out)}")
