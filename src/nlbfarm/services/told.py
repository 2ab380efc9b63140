"""What an application is told of its node: in its environment."""

from __future__ import annotations

from nlbfarm.interfaces import ServiceContext

__all__ = ["told"]


def told(context: ServiceContext, reason: str, action: str = "") -> dict[str, str]:
    """Return the variables for a program of this service.

    Args:
        context: Where it runs.
        reason: Why it is run.
        action: What a script is to do; empty for an application.
    """
    variables = {
        "NLBFARM_FARM": context.farm,
        "NLBFARM_NODE": context.node,
        "NLBFARM_SERVICE": context.service,
        "NLBFARM_VIPS": " ".join(str(vip) for vip in context.vips),
        "NLBFARM_REASON": reason.replace("\0", " ")[:1000],
    }
    if action:
        variables["NLBFARM_ACTION"] = action
    return variables
