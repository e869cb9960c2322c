"""Damaged files of every type that ditlab reads: each must be read, or be refused in one line.

    python benchmarks/mutations.py [--count 10000] [--seed 0] [--workers 2] [--out FOLDER] [--case NUMBER] [--help]

The program makes small valid files, damages one of them at a time (a function of seed and number), and runs a command
that reads it, in a forked process with the command line's own entry. It counts commands that succeed, commands that
end with one line, internal errors, processes that crash, and processes that take more than 10 s. `--case` repeats one
number and prints the traceback. FOLDER receives results.json, which is written as the program goes, and the damaged
files of all failures. The exit code is 1 if there are internal errors, crashes or hangs.
"""

import importlib
import io
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

LIMIT = 10  # seconds of CPU time of a command
WAIT = 120.0  # seconds that a command may take on a busy machine
ROOM = 4 * 1024**3  # bytes that a command may allocate, so that the machine survives
SAMPLE = "--seeds 0 --steps 1 --sampler euler --guidance 1 --device cpu --precision float32 --compile never"
TINY = "--model.name DiT --model.width 32 --model.depth 1 --model.heads 2 --model.patch 2"
TRAIN = (
    f"{TINY} --train.batch 16 --train.precision float32 --train.compile never --train.device cpu --train.log-every 16 "
    "--train.save-every 32 --train.preview-every 32 --sample.sampler euler --sample.steps 1"
)


START = "--train.images 16 --init-from model"


@dataclass(frozen=True)
class Target:
    """Files that one command reads."""

    name: str
    files: tuple[str, ...]
    """Patterns of the files that are damaged, in the folder of all inputs."""
    command: str
    """The command, in which {out} is a new path; paths are relative to the folder of all inputs."""


STUDY = """
title = "Depth"
question = "How deep?"
recipe = "digits"
seeds = [0, 1]

[budget]
images = 1_280

[settings]
model = {name = "DiT", width = 32, heads = 2, patch = 2}
train = {batch = 16, precision = "float32", compile = "never", device = "cpu"}

[parts]
"shallow" = {model = {depth = 1}}
"deep" = {model = {depth = 2}}

[evaluation]
reference = "digits-held-out"
count = 100
guidance = 1.0
metrics = ["frechet"]

[[plots]]
x = "gmacs"
y = "fd"

[[claims]]
says = "The shallow one is best"
paper = "none"
order = ["shallow", "deep"]
"""

MODEL = ("config.json", "model.safetensors", "README.md")
TARGETS = (
    Target("model folder", ("model/*",), f"sample model {SAMPLE} {{out}}"),
    Target("model without manifest", tuple(f"bare/{name}" for name in MODEL), f"sample bare {SAMPLE} {{out}}"),
    Target("model, described", ("bare/config.json",), "info bare"),
    Target("latent model", ("latent/config.json", "latent/autoencoder.safetensors"), f"sample latent {SAMPLE} {{out}}"),
    Target("DiT, .pt", ("dit.pt",), f"sample dit.pt --heads 2 {SAMPLE} --npz --count 3 --batch-size 1 {{out}}"),
    Target("DiT, training checkpoint", ("training.pt",), "convert training.pt --heads 2 --to ditlab {file}"),
    Target("DiT, legacy .pt", ("legacy.pt",), "convert legacy.pt --heads 2 --to ditlab {file}"),
    Target("DiT, safetensors", ("dit.safetensors",), "convert dit.safetensors --heads 2 --to ditlab {file}"),
    Target("U-ViT", ("uvit.pt",), "convert uvit.pt --heads 2 --classes 3 --to ditlab {file}"),
    Target("U-DiT", ("udit.pt",), "convert udit.pt --heads 2 --size 8 --to ditlab {file}"),
    Target(
        "diffusers folder",
        ("diffusers/model_index.json", "diffusers/transformer/*", "diffusers/scheduler/*"),
        "convert diffusers --to ditlab {file}",
    ),
    Target("adapter", ("adapted/checkpoints/*/*",), f"sample adapted {SAMPLE} {{out}}"),
    Target("run, watched", ("run/metrics.jsonl", "run/recipe.toml", "run/previews/*.png"), "watch run --once"),
    Target(
        "run, resumed",
        ("run/*.json*", "run/images.npz", "run/recipe.toml", "run/checkpoints/*/*"),
        f"train digits {TRAIN} --train.images 64 --train.power-ema 0.1 --allow-changes --out run",
    ),
    Target("run, sampled", ("run/checkpoints/*/*",), f"sample run --weights model {SAMPLE} {{out}}"),
    Target("EMA snapshots", ("run/averages/*",), "average run {file} --width 0.1"),
    Target(
        "cache, trained on",
        ("cache/*.json", "cache/shards/*", "cache/autoencoder/*"),
        f"train digits {TRAIN} --train.images 16 --data.source cache {{out}}",
    ),
    Target(
        "cache, encoded again",
        ("cache/*.json", "cache/shards/*", "cache/autoencoder/*", "autoencoder/*"),
        "encode images --size 8 --autoencoder autoencoder --shard 8 --out cache",
    ),
    Target("autoencoder run", ("autoencoder/*",), "train-autoencoder images {ae} --images 32 --out autoencoder"),
    Target("images", ("images/*/*",), "data images"),
    Target("images, resized", ("images/*/*",), "data images --size 8 --sheet {file}.png"),
    Target("images, exported", ("images/*/*",), "data images --size 8 --export {file}"),
    Target("further formats", ("formats/*",), "data formats --size 8 --export {file}"),
    Target("CSV of a folder", ("csv/metadata.csv",), "data csv"),
    Target("JSON lines of a folder", ("lines/metadata.jsonl",), "data lines --caption-column text"),
    Target("table, TSV", ("labels.tsv",), "data images/a --labels labels.tsv"),
    Target("table, JSON lines", ("labels.jsonl",), "data images/a --labels labels.jsonl"),
    Target("tar shard", ("shard-0.tar",), "data shard-0.tar"),
    Target("tar shards, exported", ("shard-*.tar", "classes.txt"), "data shard-{0..1}.tar --size 8 --export {file}"),
    Target("samples, .npz", ("samples.npz",), "data samples.npz"),
    Target("samples, compressed .npz", ("small.npz",), "data small.npz --export {file}"),
    Target("Hugging Face folder", ("hf/*",), "data hf:hf"),
    Target("reference", ("reference.npz",), "evaluate samples.npz --reference reference.npz --features digits {eval}"),
    Target("evaluated samples", ("samples.npz",), "evaluate samples.npz --reference digits --features digits {eval}"),
    Target("result", ("evaluated/*/*", "evaluated/*"), "evaluate samples.npz --reference reference.npz {again}"),
    Target("schedules", ("schedules.json",), f"sample model {SAMPLE} --schedule schedules.json {{out}}"),
    Target("samples.json", ("sampled/samples.json",), "sample model --like sampled/samples.json {out}"),
    Target("PNG record", ("sampled/0-seed0.png",), "sample model --like sampled/0-seed0.png {out}"),
    Target("start image", ("start.png",), f"sample model {SAMPLE} --image start.png {{out}}"),
    Target("mask", ("mask.png",), f"sample model {SAMPLE} --image start.png --mask mask.png {{out}}"),
    Target("recipe", ("recipe.toml",), "plan recipe.toml --size 8 --channels 1 --classes 3"),
    Target("recipe, trained", ("recipe.toml",), f"train recipe.toml {TRAIN} --train.images 16 {{out}}"),
    Target("class map", ("map.toml",), f"train digits {TRAIN} {START} --class-map map.toml {{out}}"),
    Target("class map, JSON", ("map.json",), f"train digits {TRAIN} {START} --class-map map.json {{out}}"),
    Target("protocol", ("protocol.toml",), "evaluate samples.npz --recipe protocol.toml --features digits {eval}"),
    Target("study", ("study.toml",), "study study.toml --dry-run"),
)  # fmt: skip


def main(
    *,
    count: int = 10_000,
    seed: int = 0,
    workers: int = 2,
    out: Path = Path("mutations"),
    case: int | None = None,
    only: str = "",
    inputs: Path | None = None,
) -> None:
    """Damage files, run commands, and count the outcomes.

    Args:
        count: damaged files.
        seed: of the damage.
        workers: commands that run at the same time.
        out: folder for the results and for the damaged files of failures.
        case: repeat only this number, and print what the command prints with --debug.
        only: damage only files of targets whose name contains this.
        inputs: folder of the valid files; they are made if it does not exist.
    """
    torch.set_num_threads(1)
    targets = [target for target in TARGETS if only in target.name]
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs" if inputs is None else inputs.absolute()
        os.environ |= {"XDG_CACHE_HOME": f"{inputs}.cache", "HF_HUB_OFFLINE": "1"}
        preload()
        if not inputs.exists():
            make_inputs(inputs)
        for target in targets:
            check_valid(inputs, target)
        if case is not None:
            outcome = run_case(inputs, targets, seed, case, None, debug=True)
            print(json.dumps(outcome, indent=1))
            return
        results = run_all(inputs, targets, seed, count, workers, out)
    print(json.dumps(results, indent=1))
    sys.exit(1 if results["failures"] else 0)


def run_all(inputs: Path, targets: list[Target], seed: int, count: int, workers: int, out: Path) -> dict[str, Any]:
    """Run all cases, and write the results every 200 cases."""
    out.mkdir(parents=True, exist_ok=True)
    totals: Counter[str] = Counter()
    table: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
    failures: dict[str, dict[str, Any]] = {}
    largest, slowest, done = (0.0, ""), (0.0, ""), 0
    started = time.monotonic()

    def results() -> dict[str, Any]:
        return {
            "cases": done, "seed": seed, "totals": totals, "minutes": round((time.monotonic() - started) / 60, 1),
            "most_memory_mib": largest, "slowest_s": slowest, "failures": failures, "targets": table,
        }  # fmt: skip

    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        numbers = iter(range(count))
        tasks = {pool.submit(run_case, inputs, targets, seed, n, out) for n in islice(numbers, 2 * workers)}
        while tasks:
            finished = next(as_completed(tasks))
            tasks.remove(finished)
            if (number := next(numbers, None)) is not None:
                tasks.add(pool.submit(run_case, inputs, targets, seed, number, out))
            outcome, done = finished.result(), done + 1
            kind = outcome["outcome"]
            totals[kind] += 1
            table[outcome["target"]][kind] += 1
            label = f"{outcome['target']}, case {outcome['case']}"
            largest = max(largest, (outcome["memory_mib"], label))
            slowest = max(slowest, (outcome["seconds"], label))
            if kind not in ("ok", "one line"):
                entry = failures.setdefault(outcome["line"], outcome | {"count": 0})
                entry["count"] += 1
            if done % 200 == 0 or done == count:
                (out / "results.json").write_text(json.dumps(results(), indent=1) + "\n")
                print(f"{done:,} of {count:,}: {dict(totals)}", file=sys.stderr, flush=True)
    return results()


def run_case(
    inputs: Path, targets: list[Target], seed: int, number: int, out: Path | None, *, debug: bool = False
) -> dict[str, Any]:
    """Damage one file, and run the command that reads it; see the module for the outcomes."""
    rng = random.Random(f"{seed} {number}")
    target = targets[number % len(targets)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        shutil.copytree(inputs, work, copy_function=os.link)  # links: only the damaged file is written
        files = sorted(file for pattern in target.files for file in work.glob(pattern) if file.is_file())
        file = rng.choice(files)
        content, how = damaged(file.read_bytes(), rng)
        unlink_writable(work)
        file.unlink()
        file.write_bytes(content)
        outcome = run_command(work, target.command, debug=debug)
        outcome = {"case": number, "target": target.name, "file": str(file.relative_to(work)), "damage": how} | outcome
        if out is not None and outcome["outcome"] not in ("ok", "one line"):
            kept = out / f"{number}-{file.name}"
            kept.write_bytes(content)
    return outcome


def unlink_writable(work: Path) -> None:
    """Replace links to files that commands append to by copies."""
    for name in ("run", "cache", "autoencoder", "evaluated"):
        copied = work / f"{name}.copy"
        shutil.copytree(work / name, copied)
        shutil.rmtree(work / name)
        copied.rename(work / name)


PLACES = {
    "{out}": "--out out",
    "{file}": "out",
    "{eval}": "--count 20 --metrics frechet --device cpu --out out",
    "{again}": "--features digits --count 20 --metrics frechet --device cpu --out evaluated",
    "{ae}": "--size 8 --width 8 --depth 1 --stride 2 --latent-channels 2 --batch 8 --log-every 16 --device cpu",
}


def arguments(command: str) -> list[str]:
    """The words of a command with its places filled in."""
    for place, text in PLACES.items():
        command = command.replace(place, text)
    return command.split()


def preload() -> None:
    """Import everything, so that forked processes need not, and no time of theirs is spent on it."""
    import ditlab

    for module in pkgutil.walk_packages(ditlab.__path__, "ditlab."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    torch.optim.AdamW([torch.zeros(1)])
    importlib.import_module("datasets")
    ditlab.data.open_dataset("digits")


def run_command(work: Path, command: str, *, limit: int = LIMIT, debug: bool = False) -> dict[str, Any]:
    """Run a command in a forked process; returns outcome, seconds, memory and the last line on standard error."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    printed = work / "printed"
    process = os.fork()
    if process == 0:
        enter(work, arguments(command) + ["--debug"] * debug, printed, limit)
    status, usage, hung = None, None, False
    while status is None:
        ended, ended_status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            status = ended_status
        elif time.monotonic() - started > WAIT and not hung:
            os.kill(process, signal.SIGKILL)
            hung = True
        else:
            time.sleep(0.002)
    text = printed.read_text(errors="replace") if printed.exists() else ""
    if debug:
        print(text, file=sys.stderr)
    line = (text.strip().splitlines() or [""])[-1]
    assert usage is not None
    seconds, memory = usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss - before) / 1024
    hung = hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
    text = line if debug else text  # with --debug, a traceback comes before any line
    return {
        "outcome": "hang" if hung else judged(status, text, line), "line": line[:500], "seconds": round(seconds, 2),
        "memory_mib": round(memory), "command": f"ditlab {' '.join(arguments(command))}",
    }  # fmt: skip


def judged(status: int, text: str, line: str) -> str:
    """The outcome of a process that ended by itself."""
    if os.WIFSIGNALED(status):
        return "crash"
    code = os.waitstatus_to_exitcode(status)
    if "internal error" in line or "Traceback (most recent" in text:
        return "internal error"
    if code not in (0, 1, 2) or (code and not line.startswith("ditlab: ")):
        return "crash"
    return "one line" if code else "ok"


def enter(work: Path, words: list[str], printed: Path, limit: int) -> None:
    """Run the command line in this forked process, and end it."""
    code = 3
    try:
        os.chdir(work)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_DATA, (ROOM, ROOM))
        with printed.open("w", errors="backslashreplace") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["ditlab", *words]
            from ditlab.cli import main as run

            with redirect_stderr(file), redirect_stdout(io.StringIO()):
                try:
                    run()
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 0
                file.flush()
    finally:
        os._exit(code)


def check_valid(inputs: Path, target: Target) -> None:
    """Check that the command succeeds on undamaged files; also loads what it imports."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        shutil.copytree(inputs, work)
        for pattern in target.files:
            assert list(work.glob(pattern)) or "class-0" in pattern or "left-out" in pattern, (
                f"{target.name}: no file {pattern}"
            )
        outcome = run_command(work, target.command)
        if outcome["outcome"] != "ok":
            print(f"{target.name}: {outcome}", file=sys.stderr)


def damaged(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damage the content of a file, as text or as bytes; returns the content and what was done."""
    text = is_text(content)
    changes: list[Callable[[bytes, random.Random], bytes]] = [*BYTES, *(TEXTS * 2 if text else HEADERS)]
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change = rng.choice(changes)
        content = change(content, rng)
        names.append(change.__name__)
    return content, ", ".join(names)


def is_text(content: bytes) -> bool:
    """Whether a file is a text."""
    try:
        return "\x00" not in content.decode()
    except UnicodeDecodeError:
        return False


def place(content: bytes, rng: random.Random) -> int:
    """A position, often near the start or the end of the content, where headers are."""
    size = len(content)
    near = min(size, 200)
    return rng.choice((rng.randrange(size + 1), rng.randrange(near + 1), size - rng.randrange(near + 1)))


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """Flip some bits."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20)) if content else 0):
        changed[min(place(content, rng), len(content) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def random_bytes(content: bytes, rng: random.Random) -> bytes:
    """Replace some bytes by random ones."""
    start, length = place(content, rng), rng.choice((1, 4, 16, 200))
    return content[:start] + rng.randbytes(length) + content[start + length :]


def cut(content: bytes, rng: random.Random) -> bytes:
    """Remove the end."""
    return content[: place(content, rng)]


def cut_start(content: bytes, rng: random.Random) -> bytes:
    """Remove the start."""
    return content[place(content, rng) :]


def drop(content: bytes, rng: random.Random) -> bytes:
    """Remove some bytes."""
    start = place(content, rng)
    return content[:start] + content[start + rng.choice((1, 2, 8, 64, 1000)) :]


def repeat(content: bytes, rng: random.Random) -> bytes:
    """Repeat a range."""
    start, length = place(content, rng), rng.choice((1, 4, 40, 1000))
    return content[: start + length] + content[start:]


def swap(content: bytes, rng: random.Random) -> bytes:
    """Exchange two ranges."""
    first, second, third = sorted(place(content, rng) for _ in range(3))
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def empty(content: bytes, rng: random.Random) -> bytes:
    """Remove everything."""
    return b""


def other_type(content: bytes, rng: random.Random) -> bytes:
    """Replace the content by that of another type of file."""
    return rng.choice(
        (b"[]", b"{}", b"null", b"0", b'"text"', b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02}.", bytes(512))
    )  # fmt: skip


def nested(content: bytes, rng: random.Random) -> bytes:
    """Replace the content by deep nesting."""
    return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"a = " + b"[" * 100_000, b"a = " + b"{a=" * 50_000))


def zeros(content: bytes, rng: random.Random) -> bytes:
    """Overwrite a range by zeros."""
    start, length = place(content, rng), rng.choice((8, 100, 1000))
    return content[:start] + bytes(length) + content[start + length :]


BYTES = (flip_bits, flip_bits, random_bytes, cut, cut_start, drop, repeat, swap, empty, other_type, nested, zeros)

NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][+-]?\d+)?")
STRING = re.compile(rb'"[^"\n]*"')
VALUE = re.compile(rb'(?<=[:=])\s*("[^"\n]*"|-?[\d.eE+-]+|true|false|null|\[[^\]\n]*\])')
NUMBERS = (
    b"0", b"-1", b"1", b"2", b"3", b"1.5", b"7", b"1e400", b"-1e400", b"NaN", b"nan", b"inf", b"Infinity", b"9" * 20,
    b"9" * 400, b"9" * 5000, b"4294967296", b"9223372036854775808", b"1e-300", b"true", b"null", b'"1"',
)  # fmt: skip
VALUES = (
    *NUMBERS,
    b'"x"',
    b'""',
    b"[]",
    b"{}",
    b"[[1]]",
    b'{"a": 1}',
    b"[1, 2, 3]",
    b'["x"]',
    b"[null]",
    b'"\\ud800"',
    b'"\\u0000"',
)
DEEP = (b"[" * 3000 + b"]" * 3000, b"[" * 100_000, b'{"a":' * 100_000)


def replaced(pattern: re.Pattern[bytes], values: tuple[bytes, ...], content: bytes, rng: random.Random) -> bytes:
    """The content with one match of a pattern replaced."""
    if not (matches := list(pattern.finditer(content[:200_000]))):
        return content
    match = rng.choice(matches)
    return content[: match.start()] + rng.choice(values) + content[match.end() :]


def change_number(content: bytes, rng: random.Random) -> bytes:
    """Replace a number."""
    return replaced(NUMBER, NUMBERS, content, rng)


def change_value(content: bytes, rng: random.Random) -> bytes:
    """Replace a value after a colon or an equals sign."""
    return replaced(VALUE, VALUES, content, rng)


def change_key(content: bytes, rng: random.Random) -> bytes:
    """Replace a text."""
    return replaced(STRING, (b'"x"', b'""', b'"__class__"', b'"\xff"', b'"a\\nb"'), content, rng)


def nest_value(content: bytes, rng: random.Random) -> bytes:
    """Replace a value by deep nesting."""
    return replaced(VALUE, DEEP, content, rng)


def swap_numbers(content: bytes, rng: random.Random) -> bytes:
    """Exchange two numbers."""
    matches = list(NUMBER.finditer(content[:200_000]))
    if len(matches) < 2:
        return content
    first, second = sorted(rng.sample(matches, 2), key=lambda match: match.start())
    middle = content[first.end() : second.start()]
    return content[: first.start()] + second[0] + middle + first[0] + content[second.end() :]


def drop_line(content: bytes, rng: random.Random) -> bytes:
    """Remove a line."""
    lines = content.split(b"\n")
    lines.pop(rng.randrange(len(lines)))
    return b"\n".join(lines)


def repeat_line(content: bytes, rng: random.Random) -> bytes:
    """Repeat a line somewhere else."""
    lines = content.split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)


def drop_entry(content: bytes, rng: random.Random) -> bytes:
    """Remove one value of a JSON file, wherever it is nested."""
    return edited(content, rng, lambda parent, key: parent.pop(key))


def change_entry(content: bytes, rng: random.Random) -> bytes:
    """Replace one value of a JSON file by another one, wherever it is nested."""
    values: tuple[Any, ...] = (
        None, 0, -1, 1, 2, 2.5, 10**18, 10**400, 1e308, float("nan"), "", "x", "3", True, [], {}, [1], [None], ["x"],
        [[1, 2]], {"a": 1}, "\x00", "../x", "a\nb",
    )  # fmt: skip

    def change(parent: Any, key: Any) -> None:
        parent[key] = rng.choice(values)

    return edited(content, rng, change)


def edited(content: bytes, rng: random.Random, edit: Callable[[Any, Any], Any]) -> bytes:
    """The content with one value of its JSON, or of one of its lines, edited; unchanged if it is not JSON."""
    lines = [content] if content.strip().startswith(b"{\n") or content.count(b"\n") < 2 else content.split(b"\n")
    number = rng.randrange(len(lines))
    try:
        tree = json.loads(lines[number])
        edit(*rng.choice(list(entries(tree))))
        lines[number] = json.dumps(tree).encode()
    except (ValueError, IndexError, RecursionError):
        return content
    return b"\n".join(lines)


def entries(tree: Any) -> Iterator[tuple[Any, Any]]:
    """All (parent, key) of a JSON value."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from entries(value)


TEXTS = (
    change_number, change_value, change_key, nest_value, swap_numbers, drop_line, repeat_line, drop_entry, change_entry,
    change_entry, change_entry, drop_entry,
)  # fmt: skip


def header_number(content: bytes, rng: random.Random) -> bytes:
    """Change a number of the texts in a binary file, such as the shapes in the header of safetensors and .npy."""
    return replaced(NUMBER, tuple(value for value in NUMBERS if len(value) < 30), content[:4000], rng) + content[4000:]


def header_digit(content: bytes, rng: random.Random) -> bytes:
    """Change a digit of the texts in a binary file; all lengths stay."""
    return replaced(re.compile(rb"\d"), (b"0", b"1", b"9", b"-"), content[:4000], rng) + content[4000:]


def header_value(content: bytes, rng: random.Random) -> bytes:
    """Change a value of the texts in a binary file."""
    return replaced(VALUE, VALUES, content[:4000], rng) + content[4000:]


def json_header(content: bytes, rng: random.Random) -> bytes:
    """Edit the header of a safetensors file, with the right length."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length < len(content):
        return header_digit(content, rng)
    header = rng.choice((change_entry, drop_entry, change_entry, nest_value))(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


HEADERS = (header_number, header_digit, header_value, json_header, json_header, header_digit)


def make_inputs(folder: Path) -> None:
    """Make small valid files of every type."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    make_data(folder)
    make_tables(folder)
    make_models(folder)
    make_runs(folder)
    make_records(folder)


def ditlab(folder: Path, command: str) -> None:
    """Run a command that must succeed."""
    outcome = run_command(folder, command, limit=300)
    (folder / "printed").unlink()
    assert outcome["outcome"] == "ok", outcome


def pixels(count: int, side: int, channels: int, dtype: Any = np.uint8) -> Any:
    """Random images (N, H, W, C)."""
    high = 256 if dtype == np.uint8 else 4096
    return np.random.default_rng(0).integers(0, high, (count, side, side, channels)).astype(dtype)


def make_data(folder: Path) -> None:
    """Make images of many formats, arrays, shards and a Hugging Face folder."""
    rgb, gray = pixels(16, 12, 3), pixels(16, 12, 1)
    for i, (array, kind) in enumerate(zip(rgb, ("png", "jpg", "webp", "bmp") * 4, strict=True)):
        file = folder / "images" / "ab"[i // 8] / f"{i}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)
    formats = folder / "formats"
    formats.mkdir()
    for kind in ("gif", "tif", "tga", "ppm", "png", "jpg", "webp", "jp2"):
        Image.fromarray(rgb[0]).save(formats / f"rgb-{kind}.{kind}")
    np.save(formats / "array.npy", rgb[1])
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(rgb[2]).save(formats / "turned.jpg", exif=exif, comment=b"x")
    Image.fromarray(rgb[2]).quantize(16).save(formats / "palette.png", transparency=3)
    Image.fromarray(rgb[3]).save(formats / "lzw.tif", compression="tiff_lzw")
    sixteen = folder / "sixteen"
    sixteen.mkdir()
    Image.fromarray(pixels(1, 12, 1, np.uint16)[0, ..., 0]).save(formats / "sixteen.png")
    labels = np.arange(40) % 10
    digits = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    np.savez(folder / "samples.npz", arr_0=digits, arr_1=labels)
    np.savez_compressed(folder / "small.npz", arr_0=digits, arr_1=labels)
    Image.fromarray(gray[0, :8, :8, 0]).save(folder / "start.png")
    Image.fromarray((gray[1, :8, :8, 0] > 127).astype(np.uint8) * 255).save(folder / "mask.png")
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for i in range(4):
                members = {"png": (folder / "images/a/0.png").read_bytes(), "cls": str(i % 2).encode(), "txt": b"a cat"}
                if i % 2:
                    members["json"] = json.dumps({"label": i % 2, "caption": "a dog"}).encode()
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{shard}{i}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (folder / "classes.txt").write_text("cat\ndog\n")
    import datasets

    rows = {"image": [Image.fromarray(array) for array in rgb[:4]], "label": [0, 1, 0, 1]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(folder / "hf"))


def make_tables(folder: Path) -> None:
    """Make tables of labels and captions."""
    names = sorted(file.name for file in (folder / "images/a").iterdir())
    rows = [(name, f"class {i % 2}", f"text {i}") for i, name in enumerate(names)]
    for kind in ("csv", "lines"):
        shutil.copytree(folder / "images/a", folder / kind)
    table = "file_name,label,text\n" + "".join(",".join(row) + "\n" for row in rows)
    (folder / "csv/metadata.csv").write_text(table)
    (folder / "labels.tsv").write_text(table.replace(",", "\t"))
    lines = "".join(json.dumps(dict(zip(("file_name", "label", "text"), row, strict=True))) + "\n" for row in rows)
    for name in ("lines/metadata.jsonl", "labels.jsonl"):
        (folder / name).write_text(lines)


def make_models(folder: Path) -> None:
    """Make model folders, published checkpoints and a diffusers folder."""
    import argparse

    from ditlab.autoencoders import Patch
    from ditlab.backbones import create
    from ditlab.checkpoints import convert
    from ditlab.checkpoints.published import to_official
    from ditlab.diffusion.objective import Objective
    from ditlab.diffusion.process import DDPM, Linear
    from ditlab.inference.pipeline import Pipeline

    tiny: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2}
    sizes: dict[str, Any] = {"size": 8, "channels": 1, "classes": 3}
    plain = create("DiT", patch=2, learn_variance=False, **sizes, **tiny)
    pipe = Pipeline(plain.eval(), Objective(Linear(), "velocity"), PIXEL(), config={})
    pipe.save(folder / "model")
    shutil.copytree(folder / "model", folder / "bare")
    (folder / "bare/manifest.json").unlink()
    latent = create("DiT", patch=2, learn_variance=False, size=4, channels=2, classes=3, **tiny)
    Pipeline(latent.eval(), Objective(Linear(), "velocity"), Patch(1, 2, 2, 8, 1), config={}).save(folder / "latent")
    (folder / "latent/manifest.json").unlink()
    chain = Objective(DDPM(), "eps", learn_variance=True)
    dit = create("DiT", patch=2, learn_variance=True, size=8, channels=4, classes=3, **tiny)
    pipe = Pipeline(dit.eval(), chain, ABSENT(), config={})
    pixel = Pipeline(create("DiT", patch=2, learn_variance=True, **sizes, **tiny).eval(), chain, PIXEL(), config={})
    convert(pixel, folder / "dit.pt", "official")
    convert(pipe, folder / "diffusers", "diffusers")
    state = to_official(pipe)
    torch.save({"model": state, "ema": state, "args": argparse.Namespace(model="DiT-S/2")}, folder / "training.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / "dit.safetensors")
    for file, name, options in (("uvit", "U-ViT-S/2", {"depth": 3}), ("udit", "U-DiT-S", {"depths": (1, 1, 1, 1, 1)})):
        sizes |= {"channels": 4, "learn_variance": file == "udit"}
        net = create(name, width=32, heads=2, **sizes, **options)
        torch.save(type(net).to_published(dict(net.state_dict())), folder / f"{file}.pt")


def PIXEL() -> Any:  # noqa: N802
    """The autoencoder of models of pixels."""
    from ditlab.autoencoders import Pixel

    return Pixel()


def ABSENT() -> Any:  # noqa: N802
    """The place of an autoencoder that a checkpoint does not contain."""
    from ditlab.autoencoders import Absent

    return Absent()


def make_runs(folder: Path) -> None:
    """Train a model, one with low-rank updates apart, and an autoencoder; encode a cache."""
    ditlab(folder, f"train digits {TRAIN} --train.images 48 --train.power-ema 0.1 --out run")
    ditlab(
        folder,
        f"train digits {TRAIN} --train.images 32 --init-from run --train.lora 2 --train.lora-apart --out adapted",
    )
    ditlab(folder, "train-autoencoder images {ae} --images 32 --out autoencoder")
    ditlab(folder, "encode images --size 8 --autoencoder autoencoder --shard 8 --out cache")


def make_records(folder: Path) -> None:
    """Make samples with records, references, schedules, recipes, protocols and studies."""
    ditlab(folder, f"sample model {SAMPLE} --out sampled")
    ditlab(folder, "reference samples.npz --features digits --count 20 --keep 20 --device cpu --out reference.npz")
    ditlab(folder, "evaluate samples.npz --reference reference.npz {again}")
    times = {"process": {"name": "linear"}, "sampler": "euler", "grids": {"1": [1.0, 0.0], "2": [1.0, 0.5, 0.0]}}
    (folder / "schedules.json").write_text(json.dumps(times))
    shutil.copy(folder / "run/recipe.toml", folder / "recipe.toml")
    (folder / "map.toml").write_text('0 = "0"\n1 = 1\n')
    (folder / "map.json").write_text('{"0": "0", "1": 1}')
    (folder / "protocol.toml").write_text(
        'reference = "reference.npz"\ncount = 20\nmetrics = ["frechet"]\nseed = 0\ndevice = "cpu"\n'
    )
    (folder / "study.toml").write_text(STUDY)


if __name__ == "__main__":
    cyclopts.run(main)
