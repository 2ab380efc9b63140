"""``[control]``: who may talk to the running node. Each host may have its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from nlbfarm.config.types import Section, shown

__all__ = ["Control"]


def _group(value: object) -> str:
    if not isinstance(value, str) or any(c in value for c in ":/\0\n \t") or len(value) > 64:
        raise ValueError(f"{shown(value)} is not the name of a user group")
    return value


class Control(Section):
    """``[control]``.

    Attributes:
        group: Members of this group of the host may use the control socket, beside root and the
            node's own user; empty: nobody else.
    """

    group: Annotated[str, BeforeValidator(_group)] = ""
