#!/usr/bin/env bash
# bash launch/local.sh [--setup-only] [--extras=a,b] [CONFIG [FLAGS…]]
# Makes .venv in the clone, then runs the whole job of CONFIG (configs/openmoji32.py): train, checkpoint,
# sample, score. The run is in runs/<name of the config>; the same command goes on with it.
set -euo pipefail

setup_only=false
extras=""
while [ $# -gt 0 ]; do
  case "$1" in
    --setup-only) setup_only=true ;;
    --extras=*) extras="${1#--extras=}" ;;
    --help | -h)
      sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    -*)
      echo "error: unknown flag $1; bash launch/local.sh [--setup-only] [--extras=a,b] [CONFIG]" >&2
      exit 2
      ;;
    *) break ;;
  esac
  shift
done

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
config="${1:-configs/openmoji32.py}"
[ $# -gt 0 ] && shift
if ! $setup_only && [ -f "${config%%:*}" ]; then
  # What a config needs beside the base it says in lines of its own.
  extras="$extras,$(sed -n 's/^# extras: //p' "${config%%:*}")"
fi
make_environment "$extras"
if $setup_only; then
  echo "environment ready: .venv"
  exit 0
fi
# Lines `# debian: PACKAGE VARIABLE`: data that VARIABLE says the place of, where it is set.
while read -r package variable; do
  [ -n "${!variable:-}" ] || fetch_debian "$package"
done < <(sed -n 's/^# debian: //p' "${config%%:*}" 2>/dev/null)
name=$(basename "${config%%:*}" .py)
case "$config" in *:*) name="$name-${config##*:}" ;; esac
# What the run must reach, over the loss of the best linear denoiser; other configs have no such bar.
limit=()
case "$config" in
  configs/openmoji32.py) limit=(--at_most=0.85) ;;
  # Of an autoencoder: its square error over that of the best linear projection.
  configs/autoencoder32.py) limit=(--at_most=1) ;;
  configs/volume_smoke.py) limit=(--at_most=1) ;;
  configs/moving_emoji.py | configs/weizmann_video.py | configs/hippocampus.py | \
    configs/mask_to_mri.py | configs/shapes_text.py | configs/text_emoji64.py) limit=(--at_most=0.9) ;;
esac
python -m nrdm_jax.job --config="$config" --workdir="runs/$name" "${limit[@]}" "$@"
