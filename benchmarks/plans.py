"""The cheapest settings of memory for large networks on several machines, as the table of docs/scale-out.md.

python benchmarks/plans.py
"""

from ditlab.config.reader import parse_recipe
from ditlab.core.units import GIB
from ditlab.evaluation import measure
from ditlab.profiling.plan import machine_of, question_of, subject_of
from ditlab.profiling.settings import Fit, cheapest
from ditlab.training.memory import held_in_training, sizes_of

NETWORKS = {  # name -> network; channels, size and classes; batch
    "DiT-XL/2, 512 px": ("DiT-XL/2", (4, (64, 64), 1000), 256),
    "SD3-medium, 1024 px": ("MMDiT-SD3-medium", (16, (128, 128), 0), 256),
    "SD3.5-large, 1024 px": ("MMDiT-SD3.5-large", (16, (128, 128), 0), 256),
    "DiT-XL/2, 4,096 tokens": ("DiT-XL/2", (16, (128, 128), 0), 64),  # those of a video of 16 x 32 x 32 latents
}
MACHINES = {"1 x 24 GB": ("rtx4090", 1), "1 x 80 GB": ("h100", 1), "8 x 80 GB": ("h100", 8), "64 x 80 GB": ("h100", 64)}


def main() -> None:
    """Print the table."""
    print("| network | parameters | batch | " + " | ".join(MACHINES) + " |")
    print("|---" * (3 + len(MACHINES)) + "|")
    for name, (network, shape, batch) in NETWORKS.items():
        recipe = parse_recipe({"model": {"name": network}, "train": {"batch": batch, "precision": "bfloat16"}})
        subject = subject_of(recipe, shape)
        cost, held = measure(subject.make), held_in_training(subject.make, subject.recipe)
        sizes, cells = sizes_of(subject.make, subject.recipe, "cuda", True), []
        for device, devices in MACHINES.values():
            machine = machine_of(subject.recipe, device, devices)
            cells.append(cell(cheapest(question_of(subject, machine, cost.gmacs, held), sizes)))
        print(f"| {name} | {cost.parameters_unfused / 1e9:.2f} B | {batch} | {' | '.join(cells)} |", flush=True)


def cell(fit: Fit | None) -> str:
    """The settings that fit, in a cell of the table."""
    if fit is None:
        return "does not fit"
    words = f"`{fit.words()}`" if fit.settings else "defaults"
    return f"{words}: {fit.peak / GIB:.0f} GiB, host {fit.host / GIB:.0f} GiB"


if __name__ == "__main__":
    main()
