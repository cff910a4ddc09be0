#!/usr/bin/env bash
# bash launch/test.sh [--slow] [PYTEST ARGUMENTS…]
# Makes .venv with the extra `test`, then runs all tests that are not slow; with --slow, the slow ones.
set -euo pipefail

marker="not slow"
if [ "${1:-}" = --slow ]; then
  marker="slow"
  shift
fi
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment test
# Nothing is left outside of the clone, and of what tests write only that of those that failed.
export PYTEST_DEBUG_TEMPROOT="$PWD/.cache"
python -m pytest -m "$marker" -n 2 --dist loadscope "$@"
