"""Rise and fall of a checker: how many results in a row it takes to change one's mind."""

from __future__ import annotations

from nlbfarm.errors import UsageError

__all__ = ["Health"]


class Health:
    """The state of one resource, from the results of looking at it.

    The first result decides at once: a node that starts does not guess for ``rise`` intervals. From then on
    it takes ``fall`` bad results in a row to become unhealthy, and ``rise`` good ones to become healthy.

    Args:
        rise: Good results in a row, 1 or more.
        fall: Bad results in a row, 1 or more.

    Raises:
        UsageError: One of them is below 1 or not a whole number.
    """

    __slots__ = ("_against", "_fall", "_healthy", "_rise")

    def __init__(self, rise: int, fall: int) -> None:
        for name, value in (("rise", rise), ("fall", fall)):
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} is {value!r}: write a whole number, 1 or more")
        self._rise = rise
        self._fall = fall
        self._healthy: bool | None = None
        self._against = 0

    @property
    def healthy(self) -> bool | None:
        """Whether the resource counts as healthy; ``None`` before the first result."""
        return self._healthy

    @property
    def against(self) -> int:
        """Results in a row that speak against the present state: below ``rise`` or ``fall``."""
        return self._against

    def observe(self, ok: bool) -> bool | None:
        """Take in one result.

        Args:
            ok: Whether the resource was found healthy.

        Returns:
            The new state if this result changed it (the first always does); ``None`` if not.

        Raises:
            UsageError: ``ok`` is neither ``True`` nor ``False``; nothing was changed.
        """
        if ok is not True and ok is not False:
            raise UsageError(f"the result of a check is True or False, not {ok!r}")
        if ok is self._healthy:
            self._against = 0
            return None
        self._against += 1
        if self._healthy is not None and self._against < (self._rise if ok else self._fall):
            return None
        self._healthy = ok
        self._against = 0
        return ok
