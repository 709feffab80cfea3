#!/usr/bin/env bash
# A study on a Ray cluster inside one Slurm allocation: one head, which drives and trains nothing, and every node's GPUs.
#
#   sbatch examples/cluster/slurm.sh study.yaml /shared/results
#
# The environment (here ~/manytune/.venv) must be the same on all nodes; the results lie where the head can write.
#SBATCH --job-name=manytune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

study=$1 out=$2
source "$HOME/manytune/.venv/bin/activate"
export RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=6379
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):$port

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --port="$port" --num-cpus=0 --num-gpus=0 --block &
sleep 10
for node in "${nodes[@]}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap \
    ray start --address="$address" --num-cpus=60 --num-gpus=8 --block &
done
sleep 20

# Two minutes before the time is up Slurm sends TERM: every pack keeps a checkpoint, and the same job, submitted again,
# goes on.
manytune run "$study" --out "$out" --executor ray --ray-address "$address" --pack-resources gpu=1,cpu=7 &
driver=$!
trap 'kill -TERM "$driver"' TERM
wait "$driver" || wait "$driver"
