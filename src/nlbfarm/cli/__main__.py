"""``python -m nlbfarm.cli`` is ``nlbfarm-node``."""

from nlbfarm.cli import main

main()
