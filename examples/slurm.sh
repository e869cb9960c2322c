#!/bin/bash
#SBATCH --job-name=ditlab
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue

# sbatch examples/slurm.sh RECIPE OUT [--section.key=value ...]
# Five minutes before the time is up Slurm sends SIGTERM to the steps: the run saves and ends with 0. What is not
# trained to its end is queued again, and goes on from its newest checkpoint.
set -euo pipefail
recipe=$1 out=$2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" --max-restarts 3 \
    -m ditlab train "$recipe" --out "$out" "${@:3}"

images=$(sed -n 's/^images = //p' "$out/recipe.toml" | tr -d _)
newest=$(find "$out/checkpoints" -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort | tail -n 1)
if ((10#${newest:-0} < images)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
