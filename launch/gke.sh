#!/usr/bin/env bash
# bash launch/gke.sh [--dry_run] [--slices=N] [--claim=NAME] NAME IMAGE GENERATION TOPOLOGY CONFIG WORKDIR [FLAGS…]
# Starts launch/gke_jobset.yaml, filled in, with kubectl: training on N (1) TPU slices, such as v5p 4x4x4. IMAGE has
# this repository in /nrdm_jax, installed with the extra tpu. WORKDIR is below /runs, which is the volume of the
# persistent volume claim NAME (nrdm-runs): one that many nodes may write, as of Filestore. --dry_run prints the YAML.
set -euo pipefail

dry_run=false slices=1 claim=nrdm-runs
while [ $# -gt 0 ]; do
  case "$1" in
    --dry_run) dry_run=true ;;
    --slices=*) slices="${1#*=}" ;;
    --claim=*) claim="${1#*=}" ;;
    *) break ;;
  esac
  shift
done
if [ $# -lt 6 ]; then
  echo "error: bash launch/gke.sh [--dry_run] [--slices=N] [--claim=NAME] NAME IMAGE GENERATION TOPOLOGY CONFIG WORKDIR" >&2
  exit 2
fi
case "$6" in
  /runs/*) ;;
  *)
    echo "error: WORKDIR $6 is not below /runs, the volume that outlives the pods and that all of them see" >&2
    exit 2
    ;;
esac
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/accelerator_flags.sh
source "$here/accelerator_flags.sh"
accelerator_flags "$3"
name="$1" image="$2" topology="$4"
# GKE's names of the generations; a host has four chips.
case "$3" in
  v4) accelerator="tpu-v4-podslice" ;;
  v5e) accelerator="tpu-v5-lite-podslice" ;;
  v5p) accelerator="tpu-v5p-slice" ;;
  v6e) accelerator="tpu-v6e-slice" ;;
  tpu7x) accelerator="tpu7x" ;;
  *)
    echo "error: $3 is no TPU" >&2
    exit 2
    ;;
esac
chips=$((${topology//x/*}))
arguments="[\"--config=$5\", \"--workdir=$6\""
for flag in "${@:7}"; do
  arguments+=", \"${flag//\"/\\\"}\""
done
text=$(<"$here/gke_jobset.yaml")
fill() { text="${text//"\${$1}"/$2}"; }
fill NAME "$name"
fill IMAGE "$image"
fill CLAIM "$claim"
fill SLICES "$slices"
fill HOSTS "$(((chips + 3) / 4))"
fill CHIPS "$((chips < 4 ? chips : 4))"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill LIBTPU_INIT_ARGS "$LIBTPU_INIT_ARGS"
fill ARGUMENTS "$arguments]"
if $dry_run; then
  echo "$text"
else
  kubectl apply -f - <<<"$text"
fi
