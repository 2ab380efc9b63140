"""The tables of the NFQUEUE backend in the kernel. The methods block: for a worker thread."""

from __future__ import annotations

import json
from collections.abc import Mapping

from nlbfarm.backends.marks import Marks
from nlbfarm.backends.nfqueue.marks import QueueMarks
from nlbfarm.backends.nfqueue.queueing import MISSING, has_statement, has_target, target_rule
from nlbfarm.backends.nfqueue.render import (
    GENERATION,
    Queueing,
    generation_changes,
    map_changes,
    map_elements,
    open_script,
    remembered,
)
from nlbfarm.backends.table import Table, diagnose
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError
from nlbfarm.nft import Nft

__all__ = ["FAMILIES", "QueueTable", "can_hash", "missing", "remove_tables"]

FAMILIES = {"ip": 2, "ip6": 10}
"""By family of the tables beside ``inet``, its number (``NFPROTO_*``)."""


class QueueTable(Table):
    """The farm's tables, and what was last put into them.

    Args:
        policy: What they enforce.
        asking: The marks of the queued packets.
        queueing: How packets are queued.
    """

    def __init__(self, policy: FilterPolicy, asking: QueueMarks, queueing: Queueing) -> None:
        super().__init__(policy)
        self._asking = asking
        self._queueing = queueing
        self._generation = 0
        self._remembering |= {GENERATION, *remembered(policy, hashing=queueing.hashing)}

    @property
    def hashing(self) -> bool:
        """Whether the kernel computes the bucket."""
        return self._queueing.hashing

    @property
    def statement(self) -> bool:
        """Whether packets are queued by nft's own statement."""
        return self._queueing.statement

    def ask_by(self, asking: QueueMarks, queueing: Queueing) -> None:
        """Go by other marks and queues from the next ``build`` on."""
        self._asking, self._queueing = asking, queueing

    def apply(self, states: Mapping[str, BucketStates]) -> None:
        self.require_groups(states)
        changed = []
        if self._queueing.hashing:
            changed = map_changes(self._policy, self._asking, self._states, states)
        generation = self._generation + 1
        self._netlink.change(self._name, changed, generation_changes(generation))
        self._generation = generation
        self._states = dict(states)

    def remove(self) -> None:
        try:
            remove_tables(self._nft, self._name)
        finally:
            self._nft.close()
            self._netlink.close()

    def _put(self, marks: Marks) -> None:
        script = open_script(
            self._policy,
            self._states,
            marks,
            self._asking,
            self._queueing,
            socket_match=self._socket_match(),
        )
        try:
            # The inet table the script removes by itself.
            gone = [family for family in _present(self._nft, self._name) if family != "inet"]
            self._generation = 0
            self._nft.run("".join(f"delete table {family} {self._name}\n" for family in gone) + script)
            if not self._queueing.statement:
                rule = target_rule(self._name, "ask", self._queueing.first, self._queueing.queues)
                for version in sorted({vip.address.version for vip in self._policy.vips}):
                    self._netlink.insert_rule(FAMILIES["ip" if version == 4 else "ip6"], rule)
        except HostError as error:
            raise HostError(missing(self._nft) or str(error)) from error

    def _read_shape(self) -> list[str]:
        shape = super()._read_shape()
        if not self._queueing.statement:
            for family in _present(self._nft, self._name):
                if family != "inet":
                    found = self._nft.read(f"list table {family} {self._name}")
                    shape += [json.dumps(item, sort_keys=True) for item in found if "metainfo" not in item]
        return sorted(shape)

    def _elements(self, index: int, states: BucketStates) -> dict[int, str]:
        return map_elements(self._asking, index, states)


def can_hash(nft: Nft) -> bool:
    """Whether the kernel computes the hash; changes nothing."""
    return not diagnose(nft)


def missing(nft: Nft) -> str:
    """Return what keeps packets from being queued here, as one sentence, or an empty one; changes nothing.

    Raises:
        HostError: The kernel did not answer.
    """
    if problem := diagnose(nft, hashing=False):
        return problem
    return "" if has_statement(nft) or has_target() else MISSING


def remove_tables(nft: Nft, name: str) -> list[str]:
    """Remove the tables of that name, whichever are there; returns their families.

    Raises:
        NftError: The kernel refused.
    """
    found = _present(nft, name)
    if found:
        nft.run("".join(f"delete table {family} {name}\n" for family in found))
    return found


def _present(nft: Nft, name: str) -> list[str]:
    tables = [item["table"] for item in nft.read("list tables") if "table" in item]
    return [
        table["family"]
        for table in tables
        if table["name"] == name and table["family"] in (*FAMILIES, "inet")
    ]
