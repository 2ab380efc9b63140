#!/usr/bin/env bash
# Checks the model of the handoff (docs/protocol/handoff.pml) with spin: the rules hold, and each rule is needed.
#   scripts/check_model.sh          every fault alone, and rules switched off in turn: about two minutes
#   scripts/check_model.sh --full   any two faults as well: some minutes, 5 GB of memory
# Needs spin and gcc (Debian, Ubuntu: apt-get install spin gcc libc6-dev).
set -euo pipefail

model=$(cd "$(dirname "$0")/../docs/protocol" && pwd)/handoff.pml
for tool in spin gcc; do
  command -v "$tool" >/dev/null || { echo "check_model: $tool is missing: apt-get install spin gcc libc6-dev" >&2; exit 4; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# run NAME EXPECTED(holds|fails) SWITCHES...: searches exhaustively, prints a line, counts what is not as expected.
wrong=0
run() {
  local name=$1 expected=$2
  shift 2
  spin -a "$@" "$model" >spin.log 2>&1 || { cat spin.log; exit 1; }
  gcc -O2 -DSAFETY -DCOLLAPSE -DMEMLIM="${MEMORY_MB:-8000}" -o pan pan.c 2>gcc.log || { cat gcc.log; exit 1; }
  ./pan -m400000 -w26 >pan.log 2>&1 || true
  local errors states seconds memory found
  errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
  states=$(awk '/states, stored/ { print $1 }' pan.log)
  seconds=$(sed -n 's/.*elapsed time \([0-9.]*\).*/\1/p' pan.log)
  memory=$(awk '/total actual memory usage/ { print $1 }' pan.log)
  found=holds
  [ "${errors:-1}" = 0 ] || found=fails
  grep -q "Search not completed\|max search depth too small\|memory limit" pan.log && [ "$found" = holds ] && found="was not searched to its end"
  printf '%-34s %-6s %10s states %8s s %8s MB\n' "$name" "$found" "$states" "$seconds" "$memory"
  [ "$found" = "$expected" ] || { wrong=$((wrong + 1)); echo "    expected: it $expected" >&2; }
}

run "one fault" holds -DFAULTS=1
run "one fault, partitions" holds -DFAULTS=1 -DPARTITION=1
run "the bucket can move" fails -DFAULTS=1 -DMOVED
if [ "${1:-}" = --full ]; then
  run "two faults" holds -DFAULTS=2
  run "without: KEEP_AFTER_LAPSE" holds -DFAULTS=2 -DKEEP_AFTER_LAPSE  # covered by the waking rule, if only two
fi
for rule in NO_EPOCH_ACK NO_WAIT NO_WAKING NO_FENCING LONG_LEASE LATE_WAKING MEMBERS_ONLY; do
  run "without: $rule" fails -DFAULTS=2 "-D$rule"
done
exit $((wrong > 0))
