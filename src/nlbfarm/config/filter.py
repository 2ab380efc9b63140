"""``[filter]``: what enforces the buckets on a node, and what brings the virtual IPs up."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from nlbfarm.config.plugged import installed
from nlbfarm.config.types import Name, Section
from nlbfarm.plugins import Kind

__all__ = ["AUTO", "Filter"]

AUTO = "auto"
"""The word that leaves the choice to nlbfarm."""


class Filter(Section):
    """``[filter]``.

    Attributes:
        backend: Name of a backend, or ``auto`` for the best one that works on the host. Which
            names there are is the host's business (``nlbfarm-node backends`` lists them).
        vip_manager: What brings the virtual IPs up: a name of what is installed, or ``auto``
            (``linux``; ``memory`` beside the memory backend).
    """

    backend: Name = AUTO
    vip_manager: Annotated[str, installed(Kind.VIP, AUTO)] = AUTO

    @model_validator(mode="after")
    def _no_virtual_ip_without_a_filter(self) -> Filter:
        if self.backend == "memory" and self.vip_manager == "linux":
            raise ValueError(
                'the backend "memory" filters no packet: with vip_manager = "linux" every node would answer '
                'every client; write vip_manager = "auto"'
            )
        return self

    @property
    def vip_manager_name(self) -> str:
        """The name of the VIP manager, ``auto`` resolved."""
        if self.vip_manager != AUTO:
            return self.vip_manager
        return "memory" if self.backend == "memory" else "linux"
