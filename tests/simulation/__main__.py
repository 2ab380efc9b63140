"""More schedules than the tests take: ``python -m tests.simulation FIRST LAST``."""

from __future__ import annotations

import sys
import time

from tests.simulation.schedules import run_schedule

from nlbfarm.testing.farm import ViolationError


def main(first: int, last: int) -> int:
    """Run the schedules with seeds ``first`` to ``last - 1``; return how many broke an invariant."""
    begun = time.monotonic()
    broken = []
    for seed in range(first, last):
        try:
            run_schedule(seed)
        except ViolationError as violation:
            broken.append(seed)
            print(violation, file=sys.stderr)
    print(f"{last - first} schedules, {len(broken)} broken {broken[:20]}, {time.monotonic() - begun:.0f} s")
    return len(broken)


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]), int(sys.argv[2])), 1))
