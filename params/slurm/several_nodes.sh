#!/bin/bash
# A training on the GPUs of several machines, under SLURM: one task per GPU, started by srun, which Fabric finds.
#
#   sbatch params/slurm/several_nodes.sh params/cityscapes.yaml -p batch_size 1 --variant paper
#
# Two machines of four GPUs, one image each. Another number: change the lines that say 2 and 4, and batch_size, so that
# all GPUs × batch_size stays 8: with sync_bn (the recipes have it) that is the same training, and goes on where one was
# interrupted on other numbers. Data and runs/ lie where all machines see them.
# Two minutes before its time is over the job is signalled, saves a checkpoint, and is put back into the queue.
# A task that fails leaves the others waiting for it: ten minutes later srun ends them, and nothing is queued again.
#SBATCH --job-name=carb
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=10
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# --cpus-per-task: SLURM 22.05 and later does not tell its steps by itself.
srun --wait=600 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  carb train "$@" -p devices "$SLURM_NTASKS_PER_NODE" -p num_nodes "$SLURM_NNODES"
ended=$?
[ $ended -eq 130 ] && scontrol requeue "$SLURM_JOB_ID"
exit $ended
