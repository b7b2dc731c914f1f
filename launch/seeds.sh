#!/usr/bin/env bash
# Several seeds of one config, one after the other; every run resumes where it stopped.
#   launch/seeds.sh runs/leaves16 "0 1 2" --config=configs/scienceworld.py --config.tree.leaves=16
set -euo pipefail
folder=$1 seeds=$2
shift 2
for seed in $seeds; do
  python -m spark_jax.main --workdir="$folder/seed$seed" --config.seed="$seed" "$@"
  python -m spark_jax.report "$folder/seed$seed"
done
