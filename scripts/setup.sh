#!/usr/bin/env bash
# Makes everything that `make demo`, `make test` and `make lint` need. Safe to run again: it looks
# first, and does nothing (in well under a second) when nothing has changed.
#
#   1. As root on Debian or Ubuntu it installs the system packages that are missing. It starts no
#      service and leaves none enabled. Otherwise it says what is missing and carries on.
#   2. It creates .venv and installs the pinned packages (constraints/requirements-dev.txt, by hash)
#      and this project in it, editable. NetfilterQueue comes as source only: where it cannot be built,
#      it is left out, and what needs it is skipped.
#
# Environment: PYTHON  the interpreter to use (3.11 or newer) instead of looking for one.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PINS=constraints/requirements-dev.txt QUEUE_PINS=constraints/requirements-nfqueue.txt
readonly STAMP=.venv/.setup-done STILL_MISSING=.venv/.setup-missing
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # an ordinary user's PATH lacks these; `ip` and `nft` live there

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
has_apt() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3}; do
    if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

# What the lab, the tests and the demo run, and the package that brings it. Looked for by what it
# provides, not by name: a host with another build of nginx or Apache is left as it is.
missing_packages() {
  command -v ip >/dev/null || echo iproute2
  command -v ping >/dev/null || echo iputils-ping
  command -v nft >/dev/null || echo nftables
  ldconfig -p 2>/dev/null | grep 'libnftables\.so\.1 ' >/dev/null || echo libnftables1
  command -v apache2 >/dev/null || command -v httpd >/dev/null || echo apache2-bin
  command -v nginx >/dev/null || echo nginx-light
  command -v iptables >/dev/null || echo iptables
  command -v trafgen >/dev/null || echo netsniff-ng
  command -v dbus-daemon >/dev/null || echo dbus-daemon
  # To build NetfilterQueue.
  command -v gcc >/dev/null || echo gcc libc6-dev
  [ -e /usr/include/libnetfilter_queue/libnetfilter_queue.h ] || echo libnetfilter-queue-dev
  local python
  python=$(find_python)
  [ -z "$python" ] || [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    case $("$python" -c 'import sys; print(sys.base_prefix)') in
      /usr) echo "$(readlink -f "$(command -v "$python")" | xargs basename)-dev" ;;
    esac
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@" </dev/null >/dev/null; }

# Installs packages without starting or enabling what they bring: the lab starts its own servers, in
# its own network namespaces, and a web server on port 80 is not ours to give to a host.
install_packages() {
  local policy=/usr/sbin/policy-rc.d ours='' failed='' nginx_is_new=''
  say "installing: $*"
  command -v nginx >/dev/null || nginx_is_new=yes
  apt update || say "apt-get update failed; trying with the package lists that are here"
  if [ ! -e "$policy" ]; then
    ours=yes
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  if ! apt install --no-install-recommends -y "$@"; then
    failed=yes # all at once did not work: take what can be had
    local package
    for package in "$@"; do apt install --no-install-recommends -y "$package" || say "could not install $package"; done
  fi
  if [ -n "$ours" ]; then
    rm -f "$policy"
    trap - EXIT
  fi
  if [ -n "$nginx_is_new" ]; then
    if [ -d /run/systemd/system ]; then systemctl disable --now nginx.service; fi >/dev/null 2>&1 || true
    deb-systemd-helper disable nginx.service >/dev/null 2>&1 || true
    update-rc.d nginx disable >/dev/null 2>&1 || true
  fi
  [ -z "$failed" ]
}

system_packages() {
  local missing
  missing=$(missing_packages | xargs)
  if [ -z "$missing" ]; then
    return
  fi
  # A root run that could not install something is not repeated for the same thing every time.
  if is_root && has_apt && [ "$missing" != "$(cat "$STILL_MISSING" 2>/dev/null)" ]; then
    # shellcheck disable=SC2086 # a list of words
    install_packages $missing || true
    missing=$(missing_packages | xargs)
  fi
  if [ -n "$missing" ]; then
    say "not here: $missing. What needs them is skipped, with the reason; the demo can use --server builtin."
    is_root || say "as root, '$0' installs them (or: apt-get install --no-install-recommends $missing)"
  fi
  still_missing=$missing
}

require_python() {
  python=$(find_python)
  if [ -z "$python" ] && [ -z "${PYTHON:-}" ] && is_root && has_apt; then
    apt update || true
    local version
    for version in 3.13 3.12 3.11; do
      if apt-cache show "python$version-venv" >/dev/null 2>&1 && install_packages "python$version" "python$version-venv"; then
        break
      fi
    done
    python=$(find_python)
  fi
  [ -n "$python" ] || die "Python 3.11 or newer is needed and was not found${PYTHON:+ as $PYTHON}; install it, or name it: PYTHON=/path/to/python3.11 $0"
  if ! can_make_venv "$python"; then
    local package
    package="$(basename "$python")-venv"
    if is_root && has_apt; then install_packages "$package" || true; fi
    can_make_venv "$python" || die "$python cannot make virtual environments; install the package $package, then run this again"
  fi
}

# The environment is made anew when a pin, the project's metadata, this script or its place changes.
fingerprint() {
  { pwd; cat "$PINS" "$QUEUE_PINS" pyproject.toml scripts/setup.sh; } | sha256sum | cut -d' ' -f1
}

python_environment() {
  local wanted
  wanted=$(fingerprint)
  if [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c 'import nlbfarm' 2>/dev/null; then
    return
  fi
  if ! { [ "$(.venv/bin/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" = "$PWD/.venv" ] && new_enough .venv/bin/python; }; then
    require_python
    say "making .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
  fi
  say "installing the pinned packages"
  local pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input --quiet install)
  "${pip[@]}" --require-hashes -r "$PINS"
  "${pip[@]}" --no-deps --no-build-isolation --editable .
  if ! "${pip[@]}" --require-hashes --no-deps --no-build-isolation -r "$QUEUE_PINS" 2>.venv/nfqueue.log; then
    say "NetfilterQueue could not be built (.venv/nfqueue.log): the nfqueue backend is not tested"
  fi
  echo "$wanted" >"$STAMP"
  say "ready: .venv/bin/nlbfarm-node"
}

still_missing=''
system_packages
python_environment
if is_root; then echo "$still_missing" >"$STILL_MISSING"; fi
