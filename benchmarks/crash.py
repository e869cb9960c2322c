"""Every command that writes files, killed at random moments, compared with an uninterrupted one.

    python benchmarks/crash.py [--kills 300] [--seed 0] [--only train sample] [--work DIR] [--out FILE]

Each command runs on small real inputs, in a process that is killed (SIGKILL, every fourth time SIGTERM) at a random
moment and started again, up to four times in a row, until it ends. After each kill, all files must be complete and no
checkpoint may be missing. In the end, all files must equal those of the uninterrupted command bit for bit, without
measured times. The program prints a table and exits with 1 if anything is torn, lost or different.
"""

import hashlib
import io
import json
import os
import pkgutil
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

import ditlab
from ditlab.cli import main as command_line
from ditlab.core.io import MANIFEST, damage
from ditlab.core.weights import checkpoints
from ditlab.data import open_dataset
from ditlab.study import demo

IN_A_ROW = 4  # most kills before a command may end
LONGEST = 600  # seconds after which a command that was not killed has failed
TEMPORARY = (".part", ".lock", ".tmp")  # the last one of safetensors
TIMES = ("second", "waited")  # keys with these words hold measured times
PAGES = (".html", ".svg", ".md")  # files that show measured times

TINY = (
    "--model.width 32 --model.depth 2 --model.heads 2 --model.patch 2 --train.batch 16 --train.precision float32 "
    "--train.compile never --train.device cpu --train.ema 0.9 --optim.warmup 64 --sample.sampler euler --sample.steps 2"
)
# Neither interval divides the other, so that checkpoints contain sums of metrics that are not yet logged.
OFTEN = "--train.images 960 --train.log-every 80 --train.save-every 48 --train.preview-every 96"
FAST = "--steps 2 --sampler euler --batch-size 16"
SAMPLING = f"{FAST} --precision float32 --compile never --device cpu"
DEMO = """
[model]
name = "DiT"
width = 32
depth = 2
heads = 2
patch = 2
[train]
images = 480
batch = 16
save_every = 96
keep = 1000
precision = "float32"
compile = "never"
device = "cpu"
[sample]
sampler = "euler"
steps = 2
"""
STUDY = """
title = "Small"
question = "Is it?"
recipe = "digits"
seeds = [0, 1]
sample_sets = 1
[budget]
images = 64
[settings]
model = {name = "DiT-S/4", width = 32, depth = 1, heads = 2}
optim = {lr = 1e-2, warmup = 0, schedule = "constant"}
train = {batch = 32, ema = 0.1, precision = "float32", compile = "never", device = "cpu"}
sample = {sampler = "euler", steps = 2}
[parts]
"a" = {}
"b" = {model.width = 48}
[evaluation]
count = 60
device = "cpu"
metrics = ["frechet"]
[[claims]]
says = "b is better"
paper = "always"
order = ["b", "a"]
"""
INPUTS = {
    "run": f"train digits --out run {TINY} --train.images 960 --train.save-every 240 --train.power-ema 0.1 0.2",
    "ddpm": f"train digits --out ddpm {TINY} --train.images 64 --diffusion.process ddpm --diffusion.target eps "
    "--model.qk-norm=false",
    "autoencoder": "train-autoencoder images --out autoencoder --width 8 --depth 1 --images 64 --batch 16 --device cpu",
}
COMMANDS = {
    "train": f"train digits --out OUT/run {TINY} {OFTEN} --train.keep 1000",
    "train-autoencoder": "train-autoencoder images --out OUT/autoencoder --width 8 --depth 1 --images 640 --batch 16 "
    "--log-every 96 --device cpu",
    "encode": "encode images --autoencoder autoencoder --out OUT/cache --shard 8 --batch-size 4 --device cpu",
    "reference": "reference images --out OUT/reference.npz --features digits --batch-size 8 --device cpu",
    "evaluate": f"evaluate run --out OUT/scores --reference digits-held-out --count 320 {FAST} --device cpu",
    "sample --npz": f"sample run --npz --out OUT/samples --count 320 {SAMPLING}",
    "sample": f"sample run --out OUT/samples --seeds 0-15 --trajectory {SAMPLING}",
    "convert": "convert run OUT/model --to ditlab",
    "convert --to official": "convert ddpm OUT/model.pt --to official",
    "export": "export run OUT/graphs --to torch",
    "data --export": "data images --export OUT/images",
    "data --sheet": "data images --sheet OUT/sheet.png",
    "tune": "tune run --out OUT/schedules.json --steps 2 --images 4 --sampler euler --device cpu",
    "memorization": f"memorization run --training images --held-out digits-held-out --features digits --count 60 "
    f"--out OUT/memorization.png {FAST} --device cpu",
    "sweep": f"sweep run --try-guidance 1 2 --repeats 2 --reference digits-held-out --count 60 --out OUT/scores {FAST} "
    "--device cpu",
    "average": "average run OUT/model --width 0.15",
    "study": "study small.toml --out OUT/study",
    "demo": "demo --out OUT/demo",
}
AGAIN = {"sample": "--overwrite"}  # command -> words that it needs to start again in its folder


@dataclass
class Tally:
    """The results of one command."""

    command: str
    seconds: float  # of the uninterrupted command
    kills: int = 0
    ended: int = 0  # commands that were killed and then ran to their end
    equal: int = 0
    different: int = 0
    torn: int = 0
    lost: int = 0
    problems: tuple[str, ...] = ()

    def note(self, kind: str, problem: str) -> None:
        """Count a problem."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.problems += (f"{kind}: {problem}",)

    @property
    def sound(self) -> bool:
        """Whether nothing is torn, lost or different."""
        return not self.torn and not self.lost and self.equal == self.ended


def main(
    *,
    kills: int = 300,
    seed: int = 0,
    only: tuple[str, ...] = (),
    work: Path | None = None,
    out: Path | None = None,
) -> None:
    """Kill all commands in turn, and print what survived.

    Args:
        kills: of all commands together.
        seed: of the moments and signals.
        only: names of commands, such as train or "sample --npz".
        work: folder for the files (default: a temporary one).
        out: JSON file for the results.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = (work or Path(folder)).resolve()
        prepare(place)
        names = [name for name in COMMANDS if not only or name in only]
        tallies = []
        for i, name in enumerate(names):
            share = kills * (i + 1) // len(names) - kills * i // len(names)
            tallies.append(crash(name, share, random.Random(f"{seed} {name}"), place))
            print(json.dumps(asdict(tallies[-1])), flush=True)
    show(tallies)
    if out is not None:
        out.write_text(json.dumps([asdict(tally) for tally in tallies], indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(tally.sound for tally in tallies) else 1)


def show(tallies: list[Tally]) -> None:
    """Print the results as a table."""
    table = Table("command", "seconds", *COUNTS)
    for tally in tallies:
        table.add_row(tally.command, f"{tally.seconds:.1f}", *(str(getattr(tally, key)) for key in COUNTS))
    table.add_row("all", "", *(str(sum(getattr(tally, key) for tally in tallies)) for key in COUNTS))
    Console(width=100).print(table)
    for tally in tallies:
        for problem in dict.fromkeys(tally.problems):
            print(f"{tally.command}: {problem}")


COUNTS = ("kills", "ended", "equal", "different", "torn", "lost")


def prepare(place: Path) -> None:
    """Write the inputs of all commands, and import everything that the processes need."""
    for module in pkgutil.walk_packages(ditlab.__path__, "ditlab."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # imports more
    digits = open_dataset("digits").fetch(torch.arange(96)).x
    os.makedirs(place, exist_ok=True)
    os.chdir(place)
    for i, image in enumerate(digits):
        file = Path("images", "ab"[i % 2], f"{i:03d}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(file)
    Path("demo.toml").write_text(DEMO, encoding="utf-8")
    Path("small.toml").write_text(STUDY, encoding="utf-8")
    for name, words in INPUTS.items():
        if finish(words, f"{name}.log") != 0:
            sys.exit(f"{words}\n{Path(f'{name}.log').read_text(encoding='utf-8')}")


def crash(name: str, kills: int, rng: random.Random, place: Path) -> Tally:
    """Kill one command again and again, and compare its files with those of an uninterrupted one."""
    out, log = place / "out", str(place / "command.log")
    started = time.monotonic()
    whole, code = run_whole(name, out, log)
    tally = Tally(name, time.monotonic() - started)
    if code != 0:
        tally.note("lost", f"the uninterrupted command failed: {last_line(log)}")
    while code == 0 and tally.kills < kills:
        shutil.rmtree(out, ignore_errors=True)
        before = tally.kills
        for _ in range(min(rng.randint(1, IN_A_ROW), kills - tally.kills)):
            if not kill(name, out, rng, tally, log):
                break
        again = finish(words_of(name, again=tally.kills > before), log)
        tally.ended += 1
        differing = differences(whole, contents(out))
        tally.equal += not differing
        if differing:
            reason = f"; the command failed: {last_line(log)}" * (again != 0)
            tally.note("lost" if again else "different", f"{', '.join(differing[:4])}{reason}")
    return tally


def run_whole(name: str, out: Path, log: str) -> tuple[dict[str, str], int]:
    """Run a command without interruption; returns the content of its files, and its exit status."""
    shutil.rmtree(out, ignore_errors=True)
    code = finish(words_of(name), log)
    return contents(out), code


def words_of(name: str, *, again: bool = False) -> str:
    """The command line of a command."""
    return f"{COMMANDS[name].replace('OUT', 'out')} {AGAIN.get(name, '') if again else ''}"


def kill(name: str, out: Path, rng: random.Random, tally: Tally, log: str) -> bool:
    """Start a command and kill it at a random moment; returns whether it was still running."""
    again = out.exists()
    newest = newest_of(out)
    process = start(words_of(name, again=again), log)
    time.sleep(rng.uniform(0, tally.seconds))
    if os.waitpid(process, os.WNOHANG)[0]:
        return False
    os.kill(process, signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL)
    os.waitpid(process, 0)
    tally.kills += 1
    if torn := sorted(str(file) for file in all_files(out) if (problem_of(file)))[:4]:
        tally.note("torn", ", ".join(torn))
    if missing := [folder for folder, number in newest.items() if newest_of(out).get(folder, -1) < number]:
        tally.note("lost", f"checkpoints of {', '.join(missing)}")
    return True


def start(words: str, log: str) -> int:
    """Start a command in a forked process, which need not import PyTorch again; returns its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        demo.find_recipe, demo.SAMPLES = lambda name: Path("demo.toml"), 200  # type: ignore[assignment]
        sys.argv = ["ditlab", *shlex.split(words)]
        command_line()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def finish(words: str, log: str) -> int:
    """Run a command to its end; returns its exit status, 1 if it takes too long."""
    process, limit = start(words, log), time.monotonic() + LONGEST
    while time.monotonic() < limit:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 1


def last_line(log: str) -> str:
    """The last line that a command printed."""
    return (Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]


def newest_of(out: Path) -> dict[str, int]:
    """The number of the newest checkpoint of each run in a folder."""
    runs = {folder.parent for folder in out.rglob("checkpoints")}
    return {str(run.relative_to(out)): int(found[-1].name) for run in runs if (found := checkpoints(run))}


def all_files(out: Path) -> list[Path]:
    """All files in a folder but temporary ones."""
    files = [path for path in out.rglob("*") if path.is_file()]
    return [file for file in files if not any(word in part for part in file.parts for word in TEMPORARY)]


def problem_of(file: Path) -> str:
    """What is wrong with a file; empty if it is complete."""
    try:
        if file.name == MANIFEST:
            return damage(file.parent, hashes=True) or ""
        read(file)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def contents(out: Path) -> dict[str, str]:
    """A hash of each file in a folder, without measured times."""
    return {
        str(file.relative_to(out)): hashlib.sha256(repr(read(file)).encode()).hexdigest()
        for file in all_files(out)
        if file.suffix not in PAGES
    }


def differences(whole: dict[str, str], ours: dict[str, str]) -> list[str]:
    """The files that differ; a run that gets SIGTERM saves one more checkpoint."""
    more = {
        name
        for name in ours.keys() - whole.keys()
        if "/checkpoints/" in name and name.rpartition("/")[0] not in folders(whole)
    }
    return sorted(name for name in whole.keys() | ours.keys() - more if whole.get(name) != ours.get(name))


def folders(names: dict[str, str]) -> set[str]:
    """The folders of files."""
    return {name.rpartition("/")[0] for name in names}


def read(file: Path) -> Any:
    """The content of a file as plain values.

    Raises:
        Exception: it is not complete.
    """
    content = file.read_bytes()
    match file.suffix:
        case ".json" if file.name == MANIFEST:  # the other files hold measured times
            return {key: value for key, value in json.loads(content).items() if key.endswith(".safetensors")}
        case ".json":
            return timeless(json.loads(content))
        case ".jsonl":  # a line may be incomplete; the next process removes it
            return [timeless(json.loads(line)) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        case ".png" | ".gif":
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return image.size, image.tobytes(), timeless(dict(getattr(image, "text", {})))
        case ".npz":
            with np.load(io.BytesIO(content)) as arrays:
                return {key: (arrays[key].dtype, arrays[key].shape, arrays[key].tobytes()) for key in arrays.files}
        case ".safetensors":
            return plain(load_file(file))
        case ".pt":
            return plain(timeless(torch.load(io.BytesIO(content), weights_only=True)))
        case ".pt2":
            return plain(dict(torch.export.load(io.BytesIO(content)).state_dict))
        case _:
            return content


def plain(value: Any) -> Any:
    """Tensors as bytes, in any nesting."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return (value.shape, value.dtype, value.detach().numpy().tobytes()) if isinstance(value, torch.Tensor) else value


def timeless(value: Any) -> Any:
    """Values of JSON without measured times, and without hashes of files that hold some."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: timeless(item) for key, item in value.items() if not any(word in str(key) for word in TIMES)}


if __name__ == "__main__":
    app = cyclopts.App(default_parameter=cyclopts.Parameter(consume_multiple=True))
    app.default(main)
    app()
