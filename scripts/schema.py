"""Writes docs/nlbfarm.schema.json, the JSON Schema of the configuration, from the models.

    python scripts/schema.py            # rewrites it
    python scripts/schema.py --check    # exit code 1 if it is not what the code says

``nlbfarm-node check --schema`` prints the same, wherever nlbfarm is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nlbfarm.config.schema import schema_text

FILE = Path(__file__).parent.parent / "docs" / "nlbfarm.schema.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes docs/nlbfarm.schema.json.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    parser.add_argument("--file", type=Path, default=FILE, help="another file")
    options = parser.parse_args(arguments)
    fresh = schema_text()
    if options.file.exists() and options.file.read_text(encoding="utf-8") == fresh:
        return 0
    if options.check:
        print(f"{options.file}: out of date; run python scripts/schema.py", file=sys.stderr)
        return 1
    options.file.write_text(fresh, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
