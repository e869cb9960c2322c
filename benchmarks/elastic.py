"""A run of two hosts with two processes each, of which one host is lost and returns.

    python benchmarks/elastic.py [--images N] [--out FILE]

The hosts are network namespaces of this machine, connected by two virtual interfaces (this needs root and `ip`), or
else two launchers on the loopback interface. All processes of the second host are killed with SIGKILL; the first host
goes on alone, and the second one is started again. The result is compared with a run of one process that nothing
disturbed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cyclopts
import psutil
import torch
from safetensors.torch import load_file

from ditlab.core.weights import checkpoints

BATCH, EVERY = 32, 10  # images of a step; steps between checkpoints
STEP = 0.25  # seconds that each step sleeps, so that the run lasts while hosts come and go
SETTINGS = (
    "--model.name=DiT --model.width=32 --model.depth=1 --model.heads=2 --model.patch=4 --optim.lr=2e-3 "
    f"--optim.warmup=64 --train.batch={BATCH} --train.ema=0.9 --train.precision=float32 --train.compile=never "
    f"--train.device=cpu --train.log-every={BATCH} --train.preview-every=1000000 --train.save-every={EVERY * BATCH} "
    "--train.keep=1000 --sample.sampler=euler --sample.steps=2 --parallel.timeout=60"
)
SLOW = """
import sys, time
from ditlab.training import loop
step = loop.take_step

def slow(state, rate):
    time.sleep(SECONDS)
    step(state, rate)

loop.take_step = slow
from ditlab.cli import main
sys.argv[0] = "ditlab"
main()
"""
HOSTS = ("ditlab-a", "ditlab-b")  # network namespaces
PATIENCE = 300  # seconds


@dataclass
class Result:
    """What happened to the run."""

    network: str
    seconds_to_continue: float = 0.0  # from the loss of a host to the next line of metrics
    seconds_to_return: float = 0.0  # from the start of the lost host to a line of metrics with both hosts
    lost_steps: int = 0  # between the last line of metrics before the loss and the checkpoint that the run went back to
    difference: float = 0.0  # of all weights together, relative to the undisturbed run
    effective_difference: float = 0.0  # the same without the biases of keys, which change no output
    largest_tensor_difference: float = 0.0  # of the tensor that differs most, without the biases of keys
    largest_loss_difference: float = 0.0  # of a line of metrics, relative
    lines: int = 0


class Network:
    """Two hosts."""

    def __init__(self) -> None:
        self.apart = os.geteuid() == 0 and shutil.which("ip") is not None and self.connect()
        self.name = "two network namespaces" if self.apart else "loopback"

    def connect(self) -> bool:
        """Create the namespaces and connect them; returns whether that is possible here."""
        self.remove()
        commands = [f"ip netns add {host}" for host in HOSTS]
        commands.append(f"ip link add veth0 netns {HOSTS[0]} type veth peer name veth0 netns {HOSTS[1]}")
        for i, host in enumerate(HOSTS):
            commands += [f"ip -n {host} addr add {self.address(i)}/24 dev veth0"]
            commands += [f"ip -n {host} link set {name} up" for name in ("veth0", "lo")]
        return all(subprocess.run(command.split(), capture_output=True).returncode == 0 for command in commands)

    def address(self, host: int) -> str:
        """The address of a host."""
        return f"10.77.0.{host + 1}"

    def remove(self) -> None:
        """Remove the namespaces."""
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)

    def start(self, host: int, port: int, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a launcher of two processes on a host."""
        address = [self.address(i) if self.apart else "127.0.0.1" for i in range(2)]
        command = ["ip", "netns", "exec", HOSTS[host]] if self.apart else []
        command += [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=2"]
        command += [
            "--max-restarts=5",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={address[0]}:{port}",
            "--rdzv-id=elastic",
        ]
        command += [
            f"--rdzv-conf=is_host={int(host == 0)},last_call_timeout=5,keep_alive_interval=2",
            f"--local-addr={address[host]}",
            *words,
        ]
        place = {"GLOO_SOCKET_IFNAME": "veth0" if self.apart else "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with log.open("ab") as file:
            return subprocess.Popen(
                command, env=os.environ | place | {"OMP_NUM_THREADS": "1"}, stdout=file, stderr=file
            )


def kill(launcher: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and all its processes, as a power cut does."""
    process = psutil.Process(launcher.pid)
    for victim in [*process.children(recursive=True), process]:
        victim.kill()
    launcher.wait()


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """Wait until a condition holds; returns the seconds."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() > started + PATIENCE:
            raise TimeoutError(what)
        time.sleep(0.1)
    return time.monotonic() - started


def metrics(run: Path) -> list[dict[str, float]]:
    """The complete lines of metrics of a run."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []


def last(run: Path) -> float:
    """The images of the last line of metrics."""
    return max((line["images"] for line in metrics(run)), default=0)


def disturbed(run: Path, words: list[str], network: Network, log: Path, result: Result) -> None:
    """Run on two hosts, of which the second one is lost and returns."""
    launchers: list[subprocess.Popen[bytes]] = []
    try:
        launchers = [network.start(host, 29511, words, log) for host in range(2)]
        wait_for(lambda: len(checkpoints(run)) >= 2 and last(run) > int(checkpoints(run)[-1].name), "first checkpoints")
        kill(launchers[1])
        seen = last(run)
        resumed = int(checkpoints(run)[-1].name)
        result.lost_steps = int(seen - resumed) // BATCH
        result.seconds_to_continue = wait_for(
            lambda: "2 of 4 processes are left" in log.read_text() and last(run) > seen, "the first host alone"
        )
        wait_for(lambda: int(checkpoints(run)[-1].name) > resumed, "a checkpoint of the first host alone")
        launchers[1] = network.start(1, 29511, words, log)
        result.seconds_to_return = wait_for(
            lambda: log.read_text().count("float32, 4 processes") == 2, "both hosts again"
        )
        for launcher in launchers:
            assert launcher.wait(PATIENCE) == 0, log.read_text()[-3000:]
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                kill(launcher)


def compare(run: Path, whole: Path, result: Result) -> None:
    """Compare weights and all lines of metrics with those of the undisturbed run."""
    ours, theirs = (load_file(checkpoints(folder)[-1] / "raw.safetensors") for folder in (run, whole))
    result.difference = relative(*([tensors[name] for name in theirs] for tensors in (ours, theirs)))
    a, b = (dict(sorted(without_key_biases(tensors).items())) for tensors in (ours, theirs))
    result.effective_difference = relative(list(a.values()), list(b.values()))
    result.largest_tensor_difference = max(relative([a[name]], [b[name]]) for name in b)
    lines = [{line["images"]: line["loss"] for line in metrics(folder)} for folder in (run, whole)]
    assert lines[0].keys() == lines[1].keys(), "steps are missing or repeated"
    result.lines = len(lines[0])
    result.largest_loss_difference = max(abs(lines[0][seen] / loss - 1) for seen, loss in lines[1].items())


def without_key_biases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the biases of keys: they add one number to all scores of a query, which softmax ignores."""
    return {
        name: torch.cat([value.chunk(3)[0], value.chunk(3)[2]]) if name.endswith("qkv.bias") else value
        for name, value in tensors.items()
    }


def relative(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The norm of the difference of some tensors, relative to that of `theirs`, which is at least 0.01."""
    a, b = (torch.cat([value.flatten() for value in values]) for values in (ours, theirs))
    return float((a - b).norm() / b.norm().clamp(min=0.01))


def main(*, images: int = 300 * BATCH, out: Path | None = None) -> None:
    """Run all, and print the result.

    Args:
        images: length of the run.
        out: JSON file for the result.
    """
    network = Network()
    result = Result(network.name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            program = place / "slow.py"
            program.write_text(SLOW.replace("SECONDS", str(STEP)), encoding="utf-8")
            words = ["train", "digits", *SETTINGS.split(), f"--train.images={images}", "--out"]
            disturbed(place / "run", [str(program), *words, str(place / "run")], network, place / "log", result)
            alone = [sys.executable, "-m", "ditlab", *words, str(place / "whole")]
            subprocess.run(alone, check=True, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
            compare(place / "run", place / "whole", result)
    finally:
        if network.apart:
            network.remove()
    print(json.dumps(asdict(result), indent=1))
    if out is not None:
        out.write_text(json.dumps(asdict(result)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app = cyclopts.App()
    app.default(main)
    app()
