"""``[filter]``: which packet filter enforces the buckets on a node."""

from __future__ import annotations

from nlbfarm.config.types import Name, Section

__all__ = ["Filter"]


class Filter(Section):
    """``[filter]``.

    Attributes:
        backend: Name of a backend, or ``auto`` for the best one that works on the host. Which
            names there are is the host's business (``nlbfarm-node backends`` lists them).
    """

    backend: Name = "auto"
