#!/usr/bin/env bash
# bash launch/local_multiprocess.sh [--dry_run] [--processes=N] [--devices=M] CONFIG [FLAGS…]
# Trains CONFIG by N (2) processes of M (4) simulated CPU devices each on this machine, over loopback: what a
# cluster does, small. The run is in runs/<name of the config>-N-processes, the output of process I in its
# process_I.log. Ends with the exit code of the first process that fails. --dry_run prints the commands.
set -euo pipefail

processes=2 devices=4 dry_run=false
while [ $# -gt 0 ]; do
  case "$1" in
    --processes=*) processes="${1#*=}" ;;
    --devices=*) devices="${1#*=}" ;;
    --dry_run) dry_run=true ;;
    --help | -h)
      sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    -*)
      echo "error: unknown flag $1; see --help" >&2
      exit 2
      ;;
    *) break ;;
  esac
  shift
done
if [ $# -eq 0 ]; then
  echo "error: no CONFIG given, such as configs/openmoji32.py:smoke; see --help" >&2
  exit 2
fi
config="$1"
shift

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
name=$(basename "${config%%:*}" .py)
case "$config" in *:*) name="$name-${config##*:}" ;; esac
workdir="runs/$name-$processes-processes"
port=$((20000 + $$ % 20000))
train=(python -m nrdm_jax.train --config="$config" --workdir="$workdir"
  --coordinator="127.0.0.1:$port" --num_processes="$processes" "$@")

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
if $dry_run; then
  for ((i = 0; i < processes; i++)); do
    echo "JAX_PLATFORMS=cpu XLA_FLAGS='$XLA_FLAGS' ${train[*]} --process_id=$i > $workdir/process_$i.log"
  done
  exit 0
fi
make_environment ""
mkdir -p "$workdir"
for ((i = 0; i < processes; i++)); do
  "${train[@]}" --process_id="$i" >"$workdir/process_$i.log" 2>&1 &
done
left=$processes
stopping=false
# Ctrl-C has come to the processes as well: another signal would be their second, at which they save nothing.
trap 'stopping=true' INT
trap 'stopping=true; kill -TERM $(jobs -p) 2>/dev/null || true' TERM
echo "$processes processes of $devices devices: $workdir/process_0.log"
code=0
while [ "$left" -gt 0 ]; do
  one=0
  wait -n || one=$?
  # A signal to this script interrupts the wait: the processes go on to their end.
  if $stopping; then
    stopping=false
    continue
  fi
  [ "$one" -ne 127 ] || break # none is left
  left=$((left - 1))
  if [ "$one" -ne 0 ] && [ "$code" -eq 0 ]; then
    code=$one
    # The others would wait for it in vain.
    # shellcheck disable=SC2046  # words are wanted
    [ "$code" -eq 75 ] || kill -KILL $(jobs -rp) 2>/dev/null || true
  fi
done
tail -n 2 "$workdir/process_0.log"
exit "$code"
