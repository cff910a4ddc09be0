#!/usr/bin/env bash
# bash launch/tpu_vm.sh [--dry_run] NAME ZONE GENERATION CONFIG WORKDIR [FLAGS…]
# Trains on all workers of a Cloud TPU VM slice that exists, from ~/nrdm_jax there (git clone, then bash
# launch/local.sh --setup-only --extras=tpu). WORKDIR is what all workers see: a bucket, mounted. A job that was
# preempted and saved (75) is started again, and one that lost a process or hung (71) or met an error that is none
# of those known (1), up to MOST_RESTARTS (10) times. Processes find each other by the TPU's own metadata.
set -euo pipefail

dry_run=false
if [ "${1:-}" = --dry_run ]; then
  dry_run=true
  shift
fi
if [ $# -lt 5 ]; then
  echo "error: bash launch/tpu_vm.sh [--dry_run] NAME ZONE GENERATION CONFIG WORKDIR [FLAGS…]" >&2
  exit 2
fi
# shellcheck source=launch/accelerator_flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/accelerator_flags.sh"
accelerator_flags "$3"
printf -v job '%q ' .venv/bin/python -m nrdm_jax.train --config="$4" --workdir="$5" "${@:6}"
command=(gcloud compute tpus tpu-vm ssh "$1" --zone="$2" --worker=all
  --command="cd nrdm_jax && LIBTPU_INIT_ARGS='$LIBTPU_INIT_ARGS' $job")
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
lost=0
while true; do
  code=0
  "${command[@]}" || code=$?
  if [ "$code" -eq 75 ]; then
    echo "preempted and saved: starting again"
  elif { [ "$code" -eq 71 ] || [ "$code" -eq 1 ]; } && [ "$lost" -lt "${MOST_RESTARTS:-10}" ]; then
    lost=$((lost + 1))
    echo "ended with $code, as where a process was lost or hung: starting again, $lost"
  else
    exit "$code"
  fi
  sleep "${PAUSE:-30}"
done
