#!/bin/bash
#SBATCH --job-name=ditlab
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# sbatch examples/launch/slurm.sh RECIPE OUT [--section.key=value ...]
# Five minutes before the time is up Slurm sends SIGUSR1 to this script, and SIGTERM if the job is preempted. The script
# sends SIGTERM to the run, which saves and ends. A run that is not finished is queued again and resumes from its newest
# checkpoint; if there is no newer checkpoint than before, the job has failed and ends.
set -uo pipefail
recipe=$1 out=$2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=280 # seconds that torchrun leaves its processes to save; 30 if not set

newest() {
    find "$out/checkpoints" -maxdepth 1 -name '[0-9]*' -printf '%f\n' 2>/dev/null | sort | tail -n 1 | sed 's/^0*//'
}

before=$(newest)
srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --max-restarts 3 -m ditlab train "$recipe" --out "$out" "${@:3}" &
step=$!
trap 'kill -TERM "$step"' USR1 TERM # srun passes it on to all nodes
wait "$step"
status=$? # after a signal to this script: above 128, while the run still saves
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    status=$? # 1 after SIGTERM too: torchrun reports that it was stopped
done

images=$(sed -n 's/^images = //p' "$out/recipe.toml" | tr -d _)
after=$(newest)
if ((${after:-0} >= ${images:-0} && status == 0)); then
    exit 0
fi
if ((${after:-0} > ${before:-0})); then
    scontrol requeue "$SLURM_JOB_ID"
else
    exit "$status"
fi
