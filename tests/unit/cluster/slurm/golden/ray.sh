#!/bin/bash
# Trains 'glam-64e'; written by moe-train, whose docs/slurm.md explains it line by line.
#SBATCH --job-name=glam-64e
#SBATCH --output="/shared/runs/glam 64e/jobs/%j.log"
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --nodes=6-8
#SBATCH --cpus-per-task=48
#SBATCH --gres=gpu:4
#SBATCH --mem=491520M
#SBATCH --time=720
#SBATCH --dependency=afterok:41:42_3
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --mail-type=END
#SBATCH --comment="two words"

export NCCL_SOCKET_IFNAME=ib0
export GREETING='it'"'"'s $HOME'
export MOE_TRAIN_WORKERS_PER_NODE=4
export MOE_TRAIN_RAY_SHARE='{"resources": {"CPU": 12.0, "GPU": 1.0}, "per_node": 4}'
export MOE_TRAIN_JOB="slurm:$SLURM_JOB_ID"

# Setup. The job ends at the first command that fails.
trap 'code=$?; echo "moe-train: setup: exit code $code of: $BASH_COMMAND" >&2; exit "$code"' ERR
set -eE
module load cuda/13
set +eE
trap - ERR

command=(/opt/moe/bin/python -P -m moe_cluster.ray.in_slurm '/shared/runs/glam 64e/jobs' /opt/moe/bin/python -P -m moe_train.cli run /shared/small.yaml --workers 2 --launcher ray)

# Slurm sends USR1 to this script alone when the time limit is near, and TERM when the job is preempted or cancelled.
# Either way the run saves, and ends with exit code 75: it can go on. While it starts it ignores signals, so it
# is told again and again.
told=
told_to_end=
trap 'told=${told:-USR1}' USR1
trap 'told=${told:-TERM}; told_to_end=yes' TERM INT
(trap '' USR1 TERM INT; exec "${command[@]}") &
run=$!
while kill -0 "$run" 2>/dev/null; do
  if [ -z "$told" ]; then wait "$run"; else kill -s "$told" "$run"; sleep 1; fi
done
wait "$run"
code=$?

# Nobody told it to end: it goes on where there is time. Where somebody did, Slurm decides what becomes of the job.
if [ "$code" = 75 ] && [ -z "$told_to_end" ]; then
  echo "job $SLURM_JOB_ID: queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
