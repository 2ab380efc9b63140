#!/usr/bin/env bash
# Writes constraints/requirements-*.txt anew: every package pinned, with the hashes of all its files
# (every architecture and Python version), naming no index.
#
#   requirements-dev.txt    base, extras, tools, and what builds the project
#   requirements-linux.txt  what a vendor ships on Linux: base and the extra `linux`; the same versions
#   requirements-nfqueue.txt  the extra `nfqueue` alone: there is only source, so it needs a compiler and headers
#   requirements-windows.txt  for scripts/test_windows.sh: a Windows CPython, base, the extra `windivert`, pytest; the same versions
#
# Usage: scripts/pin.sh [--upgrade]   (made with the oldest Python that is supported)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.11}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pip-tools

# Local wheels and further indexes of this machine must not decide what everybody gets.
export PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND='scripts/pin.sh'
unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL

compile() {
  "$work/venv/bin/pip-compile" --quiet --no-config --generate-hashes --strip-extras --allow-unsafe --annotation-style=line \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options "$@"
}

compile "${@:1:1}" --extra=linux --extra=lab --extra=diagnosis --extra=dev \
  --output-file=constraints/requirements-dev.txt pyproject.toml constraints/build.in
sed -n '/^[a-z]/s/ .*//p' constraints/requirements-dev.txt >"$work/versions.txt"
compile --constraint="$work/versions.txt" --extra=linux --output-file=constraints/requirements-linux.txt pyproject.toml
compile --constraint="$work/versions.txt" --extra=linux --extra=nfqueue --output-file="$work/nfqueue.txt" pyproject.toml
sed -n '/^#/p; /^netfilterqueue/,/# via/p' "$work/nfqueue.txt" >constraints/requirements-nfqueue.txt
compile --constraint="$work/versions.txt" --extra=windivert --output-file=constraints/requirements-windows.txt \
  pyproject.toml constraints/windows.in
sed -i "s|-c $work/versions.txt, ||" constraints/requirements-*.txt

if grep -nE '://|/tmp|/opt|/home|/root|@ file' constraints/requirements-*.txt; then
  echo "pin.sh: a place of this machine or a host has got into the pins (above)" >&2
  exit 1
fi
