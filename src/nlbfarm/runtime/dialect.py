"""What earlier wire versions say otherwise, so that a farm is upgraded node by node.

What is new in a version is left out in earlier ones (``nlbfarm.core.versions.spoken``). A node of version 1
compares a digest of the configuration that covers ``[[nodes]]``, too. It is told that one, and what it says
is understood as the present one; the core sees no difference.
"""

from __future__ import annotations

from dataclasses import replace

from nlbfarm.core.settings import Settings
from nlbfarm.core.versions import spoken
from nlbfarm.core.wire import AnyMessage, Heartbeat

__all__ = ["Dialect"]

FORMER = 1
"""The wire version with the former digest."""


class Dialect:
    """Translates what is said and heard.

    Args:
        settings: With the present digest.
        former: The digest as version 1 has it; empty: the same.
    """

    def __init__(self, settings: Settings, former: bytes) -> None:
        self._present = settings.config_digest
        self._former = former or settings.config_digest

    def spoken(self, message: AnyMessage, version: int) -> AnyMessage:
        """Return ``message`` as a node that is told it in ``version`` understands it."""
        return self._translated(spoken(message, version), version, self._present, self._former)

    def heard(self, message: AnyMessage, version: int) -> AnyMessage:
        """Return what a message that came in ``version`` means."""
        return self._translated(message, version, self._former, self._present)

    def _translated(self, message: AnyMessage, version: int, said: bytes, meant: bytes) -> AnyMessage:
        if version > FORMER or not isinstance(message, Heartbeat) or message.config_digest != said:
            return message
        return replace(message, config_digest=meant)
