# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in the clone and enters it.
# make_environment EXTRAS: a comma-separated list of extras of setup.py, may be empty.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

find_python() {
  local name
  for name in "${PYTHON:-}" python3.12 python3.11 python3.13 python3; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed; set PYTHON to one" >&2
  exit 2
}

# The data of a Debian package, unpacked under .cache/debian; nothing of it is installed.
fetch_debian() {
  local package="$1" folder=".cache/debian/$1"
  if [ ! -d "$folder" ] && [ ! -d "/usr/share/doc/$package" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
      echo "error: $package is a package of Debian's; unpack it in $folder" >&2
      exit 2
    fi
    echo "fetching Debian's $package into $folder"
    rm -rf "$folder.partial"
    mkdir -p "$folder.partial"
    # As whoever runs this: apt's own user may not write there, and warns of it.
    (cd "$folder.partial" && apt-get --quiet=2 -o APT::Sandbox::User="$(id -un)" download "$package" && dpkg -x ./*.deb . && rm ./*.deb) || exit 1
    mv "$folder.partial" "$folder"
  fi
}

make_environment() {
  local extras="$1" wanted stamp=.venv/.installed python
  # What was asked for before stays installed: extras add up.
  if [ -f "$stamp" ]; then
    # shellcheck disable=SC2046,SC2086  # words are wanted
    extras=$(printf '%s\n' ${extras//,/ } $(sed -n 's/^extras //p' "$stamp") | sort -u | xargs)
  fi
  extras=$(printf '%s' "${extras//,/ }" | xargs)
  wanted="extras $extras
$(cat setup.py launch/no_deps.txt | cksum)"
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    if [ ! -x .venv/bin/python ]; then
      python=$(find_python) || exit 2
      echo "making .venv with $python"
      "$python" -m venv .venv || exit 1
    fi
    echo "installing nrdm_jax${extras:+ with extras $extras} and what it needs into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
      -e ".${extras:+[${extras// /,}]}" || exit 1
    # Lines `EXTRA REQUIREMENT`: packages whose own requirements are wrong or far too large here.
    while read -r extra requirement; do
      case " base $extras " in
        *" $extra "*)
          echo "installing $requirement without its dependencies"
          .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
            "$requirement" || exit 1
          ;;
      esac
    done < <(grep -v '^#' launch/no_deps.txt)
    printf '%s' "$wanted" >"$stamp"
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
  mkdir -p .cache
  # Buffers on huge pages: more images a second on a CPU (python -m benchmarks.huge_pages).
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
}
