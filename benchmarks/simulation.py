"""A simulation of long runs on 8 to 1,024 GPUs: stragglers, checkpoints, failures and restarts.

    python benchmarks/simulation.py

Nothing is measured here: the constants below are assumptions, and `docs/scale-out.md` lists them. Time passes in steps;
a step lasts as long as its slowest process. Failures come at random with a constant rate for each GPU.
"""

from dataclasses import dataclass

import numpy as np

PARAMETERS = 8.06e9  # of SD3.5-large
STATE = 16 * PARAMETERS  # bytes: weights, average and two moments
FLOP = 6 * 20e12 * 4  # of a GPU in a step: 4 images of about 20 TMAC each (1024 px), forward and backward pass
RATE = 330e12  # a third of the peak of an H100, per second
JITTER = 0.02  # standard deviation of the logarithm of the time of a step of a process
FAILURES = 419 / (54 * 24 * 16_384)  # per GPU and hour: unexpected interruptions of Llama 3 (arXiv 2407.21783, table 5)
HOST = 8  # GPUs
TO_HOST = 20e9  # bytes per second from a GPU to the memory of its host
GATHER = 20e9  # bytes per second into the first process, if it gathers the state
WRITE_HOST, WRITE_STORE = 2e9, 40e9  # bytes per second to a shared store: of a host, and of all hosts together
NOTICE, START = 60.0, 120.0  # seconds until a failure is noticed, and until new processes compute
REPAIR = 3600.0  # seconds until a lost host returns
DAYS, EVERY = 60, 600.0  # length of a run; seconds between checkpoints


@dataclass(frozen=True)
class Plan:
    """How a run is saved and continued."""

    name: str
    sharded: bool  # each process writes its part, beside the training
    elastic: bool  # the run continues on the hosts that are left


PLANS = (
    Plan("whole checkpoints, waits for the host", False, False),
    Plan("sharded checkpoints, waits for the host", True, False),
    Plan("sharded checkpoints, continues without the host", True, True),
)


def step_seconds(gpus: int, rng: np.random.Generator) -> float:
    """Mean seconds of a step, which the slowest of all processes decides."""
    slowest = np.exp(JITTER * rng.standard_normal((400, gpus))).max(axis=1)
    return float(FLOP / RATE * slowest.mean())


def checkpoint_seconds(plan: Plan, gpus: int) -> tuple[float, float]:
    """Seconds that training stands still for a checkpoint, and seconds until it is complete."""
    hosts = gpus // HOST
    if plan.sharded:
        stall = STATE / gpus / TO_HOST
        return stall, stall + max(STATE / hosts / WRITE_HOST, STATE / WRITE_STORE)
    stall = STATE / GATHER
    return stall, stall + STATE / WRITE_HOST


def load_seconds(gpus: int) -> float:
    """Seconds in which all hosts read a checkpoint."""
    return max(STATE / (gpus // HOST) / WRITE_HOST, STATE / WRITE_STORE)


@dataclass
class Outcome:
    """What a run has done."""

    useful: float  # share of the time that a run without failures and checkpoints would have needed for its steps
    failures: int
    lost: float  # seconds of work that are repeated after a failure, on average
    traffic: float  # bytes per second to the store, on average


def simulate(plan: Plan, gpus: int, rng: np.random.Generator) -> Outcome:
    """Simulate a run from failure to failure."""
    step, (stall, complete) = step_seconds(gpus, rng), checkpoint_seconds(plan, gpus)
    every = max(EVERY, complete)
    end, now, done, lost, failures, saved = DAYS * 86_400.0, 0.0, 0.0, 0.0, 0, 0
    speed = (every - stall) / every  # work in a second
    back = 0.0  # when the lost host returns
    while now < end:
        alive = (gpus - HOST) / gpus if now < back else 1.0
        until = min(end, now + rng.exponential(3600 / (FAILURES * gpus * alive)))
        if now < back < until:  # the host returns: the run saves, and starts again with all hosts
            saved += int((back - now) / every) + 1
            done += (back - now) * alive * speed
            now = back + stall + START + load_seconds(gpus)
            continue
        worked = until - now
        saved += int(worked / every)
        done += worked * alive * speed
        now = until
        if now < end:
            failures += 1
            gone = min(worked, rng.uniform(0, every) + complete)
            lost += gone
            done -= gone * alive * speed
            back = now + REPAIR
            wait = NOTICE + START + load_seconds(gpus)
            now += wait if plan.elastic and gpus > HOST else max(REPAIR, wait)
            if not plan.elastic or gpus == HOST:
                back = 0.0
    ideal = FLOP / RATE / step  # of a step without stragglers
    return Outcome(done / end * ideal, failures, lost / max(1, failures), saved * STATE / end)


def main() -> None:
    """Print the table."""
    print(
        "| GPUs | plan | useful time | failures in 60 days | repeated work | stand still | until complete | traffic |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for gpus in (8, 64, 256, 1024):
        for plan in PLANS:
            outcomes = [simulate(plan, gpus, np.random.default_rng(seed)) for seed in range(20)]
            useful = np.array([outcome.useful for outcome in outcomes])
            stall, complete = checkpoint_seconds(plan, gpus)
            print(
                f"| {gpus:,} | {plan.name} | {100 * useful.mean():.1f} ± {100 * useful.std():.1f} % | "
                f"{np.mean([outcome.failures for outcome in outcomes]):.1f} | "
                f"{np.mean([outcome.lost for outcome in outcomes]):.0f} s | {stall:.2f} s | {complete:.0f} s | "
                f"{np.mean([outcome.traffic for outcome in outcomes]) / 1e9:.2f} GB/s |"
            )


if __name__ == "__main__":
    main()
