"""The command `bench`."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ditlab.cli.options import Base, Benchmark, RandomNetwork
from ditlab.cli.terminal import Json, app, print_json, screen, show
from ditlab.config.reader import parse_sides
from ditlab.config.values import Location
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError
from ditlab.core.terminal import make_console

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline


@app.command(group="Generate")
def bench(
    model: Location,
    /,
    *,
    settings: Annotated[Benchmark | None, Parameter(name="*")] = None,
    network: Annotated[RandomNetwork | None, Parameter(name="*")] = None,
    base: Base = None,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Measure the speed of a model on this machine: forward pass, training step, presets, and the bottleneck.

    Parameters
    ----------
    model
        A model or run folder, an external checkpoint, a hub id, or a name such as DiT-S/2 (random weights).
    device
        auto, cpu, cuda or mps.
    json
        Print one JSON object.
    """
    settings, network = settings or Benchmark(), network or RandomNetwork()
    from ditlab.profiling import bench as benchmark

    pipe = open_network(model, network, device, base)
    if settings.cache:
        rows = benchmark.drift(pipe, settings.batch, {})
        if json:
            print_json({"drift": rows})
        else:
            make_console().print(benchmark.drift_table(rows))
        return
    report_bench(pipe, settings, json)


def open_network(model: str, network: RandomNetwork, device: str, base: str | None) -> "Pipeline":
    """Load a model, or build a network with random weights by name.

    Raises:
        InputError: the model cannot be loaded, or `base` is given for a name.
    """
    from ditlab.backbones import names
    from ditlab.checkpoints import load
    from ditlab.profiling.bench import random_model

    target = pick_device(device)
    if model in names():
        if base is not None:
            raise InputError(f"{model} has random weights and needs no base; leave --base out")
        return random_model(model, parse_sides(network.size), network.channels, network.classes, target)
    return load(model, device=target, base=base)


def report_bench(pipe: "Pipeline", settings: Benchmark, json: bool) -> None:
    """Measure, and print the tables."""
    from ditlab.profiling import bench as benchmark

    result = benchmark.bench(
        pipe, screen, batch=settings.batch, rounds=settings.rounds, precision=settings.precision,
        compile=settings.compile, training=settings.training, against=settings.against,
    )  # fmt: skip
    if json:
        print_json(dataclasses.asdict(result))
        return
    out = make_console()
    about = result.machine
    show(f"{about['processor']}, {about['cores']} cores, {about['device']}, torch {about['torch']}")
    peaks = ", ".join(f"{name} {peak:,.0f} GFLOP/s" for name, peak in result.peaks.items())
    show(f"matrix products: {peaks}; copies: {result.bandwidth:.0f} GB/s")
    for table in benchmark.tables(result):
        out.print(table)
    show(f"limited by {result.limit}")
