"""Starts the keeper: ``python -I -S boot.py farm/service``, with the node's connection as standard input.

The packages above are put in place empty, not imported: what they bring would cost the keeper a tenth of a
second and most of its memory, and it uses none of it. The argument is for people who look at ``ps``.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path


def main() -> None:
    """Become the keeper."""
    here = Path(__file__).resolve().parent
    for name, place in (("nlbfarm", here.parent.parent), ("nlbfarm.services", here.parent)):
        package = types.ModuleType(name)
        package.__path__ = [str(place)]
        sys.modules[name] = package
    from nlbfarm.services.keeper.process import main as keep

    keep()


if __name__ == "__main__":
    main()
