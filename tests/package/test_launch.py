"""The launchers: a scheduler that stops a Slurm job and requeues it, and manifests that agree with themselves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import posix_only

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
COMMANDS = {  # stand-ins for the commands of Slurm
    "scontrol": 'case $1 in show) echo "$3" ;; requeue) echo "$2" >>"$STATE/requeued" ;; esac',
    "srun": 'exec "$@"',
}
TORCHRUN = """
while [ "$1" != --out ]; do shift; done
mkdir -p "$2/checkpoints"
echo 'images = 3_00' >"$2/recipe.toml"
save() { mkdir -p "$2/checkpoints/$1"; }
trap 'save 000000000200 "$2"; exit 1' TERM
if [ -n "${BROKEN:-}" ]; then exit 7; fi
if [ "${SLURM_RESTART_COUNT:-0}" = 1 ]; then save 000000000300 "$2"; exit 0; fi
touch "$STATE/running"
while true; do sleep 0.02; done
"""  # a run of 300 images, which trains until it is stopped, and to its end after a restart


class Scheduler:
    """Runs the job as Slurm does."""

    def __init__(self, folder, commands):
        self.folder, self.out = folder, folder / "run"
        (folder / "bin").mkdir()
        for name, text in commands.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / "bin" / name).chmod(0o755)

    def start(self, restarts, arguments=("my.toml",), **environment):
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables = {
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": "1",
            "SLURM_GPUS_ON_NODE": "1",
            "SLURM_JOB_ID": "5",
        }
        variables |= {"SLURM_RESTART_COUNT": str(restarts), "STATE": str(self.folder), "PATH": path} | environment
        command = ["bash", LAUNCH / "slurm.sh", arguments[0], self.out, *arguments[1:]]
        return subprocess.Popen(command, env=os.environ | variables, start_new_session=True)

    def stop(self, job, number, sign):
        """Send a signal to the script when the run has begun."""
        end = time.monotonic() + 300
        while not sign() and time.monotonic() < end:
            time.sleep(0.01)
        job.send_signal(number)
        return job.wait(300)

    @property
    def requeued(self):
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []


@posix_only
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_stopped_job_saves_and_is_requeued_until_the_run_is_complete(tmp_path, number):
    slurm = Scheduler(tmp_path, COMMANDS | {"torchrun": TORCHRUN})
    assert slurm.stop(slurm.start(0), number, (tmp_path / "running").exists) == 0
    assert slurm.requeued == ["5"]
    assert slurm.start(1).wait(60) == 0
    assert slurm.requeued == ["5"]
    assert sorted(path.name for path in (slurm.out / "checkpoints").iterdir()) == ["000000000200", "000000000300"]


@posix_only
def test_a_job_without_a_newer_checkpoint_ends(tmp_path):
    slurm = Scheduler(tmp_path, COMMANDS | {"torchrun": TORCHRUN})
    assert slurm.start(0, BROKEN="1").wait(60) == 7
    assert slurm.requeued == []


@posix_only
@pytest.mark.slow
def test_a_real_run_under_the_script(tmp_path):
    slurm = Scheduler(tmp_path, COMMANDS | {"torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"'})
    (tmp_path / "my.toml").write_text(
        '[model]\nname = "DiT-S/4"\nwidth = 32\ndepth = 1\nheads = 2\n[sample]\nsampler = "euler"\nsteps = 1\n'
        "[train]\nimages = 200_000\nbatch = 32\nlog_every = 32\nsave_every = 100_000\n"
        'device = "cpu"\ncompile = "never"\n'
    )
    begun = lambda: (slurm.out / "metrics.jsonl").exists() and (slurm.out / "metrics.jsonl").stat().st_size  # noqa: E731
    assert slurm.stop(slurm.start(0, (tmp_path / "my.toml",)), signal.SIGUSR1, begun) == 0
    assert slurm.requeued == ["5"]
    (seen,) = (int(path.name) for path in (slurm.out / "checkpoints").iterdir())
    length = f"--train.images={seen + 320}"
    assert slurm.start(1, (tmp_path / "my.toml", length)).wait(300) == 0
    assert slurm.requeued == ["5"]
    assert max(int(path.name) for path in (slurm.out / "checkpoints").iterdir()) == seen + 320


def manifests(name):
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def option(container, name):
    return next(text.partition("=")[2] for text in container["args"] if text.startswith(f"--{name}="))


def check_pods(job, address):
    """The nodes of torchrun are the pods, and its endpoint is the first of them."""
    container = job["template"]["spec"]["containers"][0]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(option(container, "nnodes"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(option(container, "nproc-per-node"))
    assert option(container, "rdzv-endpoint") == f"{address}:29500"
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    grace = job["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(container["env"][0]["value"]) < grace


def test_the_indexed_job():
    service, job = manifests("kubernetes.yaml")
    name, subdomain = job["metadata"]["name"], job["spec"]["template"]["spec"]["subdomain"]
    check_pods(job["spec"], f"{name}-0.{subdomain}")
    assert (service["metadata"]["name"], service["spec"]["selector"]) == (subdomain, {"job-name": name})


def test_the_job_set():
    (jobs,) = manifests("jobset.yaml")
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (group,) = jobs["spec"]["replicatedJobs"]
    name = jobs["metadata"]["name"]
    check_pods(group["template"]["spec"], f"{name}-{group['name']}-0-0.{name}")
    assert group["template"]["spec"]["backoffLimit"] == 0


@posix_only
def test_the_task_of_skypilot():
    (task,) = manifests("sky.yaml")
    assert {"name", "resources", "num_nodes", "envs", "setup", "run"} <= task.keys()
    assert "--train.upload" in task["run"]
    for key in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[key]], check=True)
