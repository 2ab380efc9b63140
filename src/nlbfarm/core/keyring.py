"""The keys that sign what the nodes of a farm say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nlbfarm.errors import UsageError

__all__ = ["Keyring"]


@dataclass(frozen=True)
class Keyring:
    """The farm's heartbeat keys.

    Args:
        keys: Key id (0..65535) to key, at least 16 bytes each; every one of them is accepted.
        active: Id of the key that signs what this node sends.

    Raises:
        UsageError: An id or a key is out of range, or the active one is missing.
    """

    keys: Mapping[int, bytes] = field(repr=False)
    active: int

    def __post_init__(self) -> None:
        for key_id, key in self.keys.items():
            if not 0 <= key_id <= 0xFFFF:
                raise UsageError(f"heartbeat key id {key_id} is not in 0..65535")
            if len(key) < 16:
                raise UsageError(f"heartbeat key {key_id} has {len(key)} bytes; at least 16 are needed")
        if self.active not in self.keys:
            raise UsageError(f"the active heartbeat key {self.active} is not among the keys")
