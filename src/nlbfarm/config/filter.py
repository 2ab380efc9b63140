"""``[filter]``: what enforces the buckets on a node, and what brings the virtual IPs up."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, model_validator

from nlbfarm.config.plugged import installed
from nlbfarm.config.types import Duration, Name, Section, between, shown, whole, written
from nlbfarm.plugins import Kind

__all__ = ["AUTO", "MAX_QUEUES", "Filter"]

AUTO = "auto"
"""The word that leaves the choice to nlbfarm."""

MAX_QUEUES = 16
"""More processes than that wait for one another in the kernel."""

_KERNEL_HASHES = frozenset({"memory", "nftables"})
"""Backends that know no bucket function but the hash rule."""

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _reference(value: object) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise ValueError(f'{shown(value)} names no function; write "package.module:name"')
    return value


class Filter(Section):
    """``[filter]``.

    Attributes:
        backend: Name of a backend, or ``auto`` for the best one that works on the host. Which
            names there are is the host's business (``nlbfarm-node backends`` lists them).
        vip_manager: What brings the virtual IPs up: a name of what is installed, or ``auto``
            (``linux``; ``memory`` beside the memory backend).
        queues: Packet queues, with a process each; only the nfqueue backend has some.
        bucket_function: A bucket function of one's own, in a module that is installed on every node; only
            for backends that judge packets in a process. The same on every node. Empty: the hash rule.
        udp_idle: How long a UDP flow may be silent before a backend that remembers flows in a process
            forgets it.
    """

    backend: Name = AUTO
    vip_manager: Annotated[str, installed(Kind.VIP, AUTO)] = AUTO
    queues: Annotated[int, BeforeValidator(whole(1, MAX_QUEUES, "a number of queues"))] = 1
    bucket_function: Annotated[str, BeforeValidator(_reference), written(rf"(?:{_REFERENCE.pattern})?")] = ""
    udp_idle: Annotated[Duration, between(timedelta(seconds=1), timedelta(hours=1))] = timedelta(seconds=60)

    @model_validator(mode="after")
    def _no_virtual_ip_without_a_filter(self) -> Filter:
        if self.backend == "memory" and self.vip_manager == "linux":
            raise ValueError(
                'the backend "memory" filters no packet: with vip_manager = "linux" every node would answer '
                'every client; write vip_manager = "auto"'
            )
        return self

    @model_validator(mode="after")
    def _no_bucket_function_beside_a_hash_in_the_kernel(self) -> Filter:
        if self.bucket_function and self.backend in _KERNEL_HASHES:
            raise ValueError(
                f'the backend "{self.backend}" knows no bucket function but its own; write '
                'backend = "nfqueue" (Linux) or "windivert", or leave bucket_function out'
            )
        return self

    @property
    def vip_manager_name(self) -> str:
        """The name of the VIP manager, ``auto`` resolved."""
        if self.vip_manager != AUTO:
            return self.vip_manager
        return "memory" if self.backend == "memory" else "linux"
