#!/bin/bash
# Trains 'small'; written by moe-train, whose docs/slurm.md explains it line by line.
#SBATCH --job-name=small
#SBATCH --output=/shared/runs/small/jobs/%j.log
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

export MOE_TRAIN_WORKERS_PER_NODE=1
export MOE_TRAIN_STEP='{"srun": [], "prefix": ["apptainer", "exec", "--nv", "--bind", "/shared data", "image.sif"], "python": "python3"}'
export MOE_TRAIN_JOB="slurm:$SLURM_JOB_ID"
command=(/opt/moe/bin/python -P -m moe_train.cli run /shared/small.yaml --workers 2 --launcher slurm)

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
