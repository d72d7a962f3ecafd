#!/bin/bash
# Train on several nodes under SLURM: sbatch docs/launch/slurm.sh
#
# One task a GPU. JAX finds the tasks by itself, and each takes the GPU of its number on the node,
# so all of a node's GPUs must be visible to its tasks: no --gpus-per-task, no --gpu-bind.
# The workdir and the data are on a file system that all nodes share.
#
#SBATCH --job-name=imagenet64_ot
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# The log of all starts is one file.
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
# Two to three minutes before the time is over the tasks get SIGTERM: training saves a checkpoint
# and ends. "TERM@120", not "B:TERM@120": that would reach this script and not the tasks.
#SBATCH --signal=TERM@120
# A job that is preempted or loses a node starts again. One whose time is over does not: below.
#SBATCH --requeue

RESTARTS=100 # at most, so that a run that fails at once does not come back for ever

# srun does not take these from sbatch. A task that fails ends the others.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    python main.py --config=configs/imagenet64_ot.py \
    --workdir="$HOME/runs/imagenet64_ot" --config.data.data_dir="$HOME/data"
code=$? # the highest of the tasks'

# 2, a mistake in the config or the flags, would come again. Else (1: a checkpoint was saved after a
# signal; 143: the signal came after training) the same command goes on from the newest checkpoint.
if [[ $code -ne 0 && $code -ne 2 && ${SLURM_RESTART_COUNT:-0} -lt $RESTARTS ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
