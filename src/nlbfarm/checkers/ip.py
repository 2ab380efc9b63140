"""Is the virtual IP on this host, and nobody else's?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from nlbfarm.checkers.view import HostView
from nlbfarm.checkers.words import seconds, series
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import NlbfarmError, UsageError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["IpChecker"]


class IpChecker(Checker):
    """Looks at virtual IPs: healthy if each is configured here, and no machine outside the farm has it.

    Args:
        addresses: The virtual IPs.
        present: Whether one is on this host now.
        claimed: Asks the network who answers for the farm's VIPs (RFC 5227 probe); the MAC of a stranger for
            each that has one.
        timeout: Seconds after which a look has failed.

    Raises:
        UsageError: There is no address.
    """

    def __init__(
        self,
        addresses: Collection[IPAddress],
        *,
        present: Callable[[IPAddress], bool],
        claimed: Callable[[], Awaitable[Mapping[IPAddress, str]]],
        timeout: float = 5.0,
    ) -> None:
        if not addresses:
            raise UsageError("ip: names no virtual IP to look at")
        self._addresses = tuple(addresses)
        self._present = present
        self._claimed = claimed
        self._timeout = timeout

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> IpChecker:
        """Return the checker for an entry of type ``ip``; without an address, for every VIP of the farm."""
        return cls(
            host.vips if config.address is None else (config.address,),
            present=host.vip_present,
            claimed=host.vip_claimed,
            timeout=config.timeout.total_seconds(),
        )

    async def check(self) -> CheckResult:
        missing = [address for address in self._addresses if not self._present(address)]
        wrong = [f"{_are(missing)} not on this host"] if missing else []
        try:
            async with asyncio.timeout(self._timeout):
                claims = await self._claimed()
        except TimeoutError:
            wrong.append(f"the network could not be asked who else has it within {seconds(self._timeout)}")
        except NlbfarmError as error:
            wrong.append(f"the network cannot be asked who else has it: {error}")
        else:
            wrong += [
                f"{address} is in use by {claims[address]}, not a node of this farm: give that machine "
                "another address"
                for address in self._addresses
                if address in claims
            ]
        if wrong:
            return CheckResult(False, "; ".join(wrong))
        it = "it" if len(self._addresses) == 1 else "them"
        return CheckResult(True, f"{_are(self._addresses)} on this host, and nobody else answers for {it}")


def _are(addresses: Sequence[IPAddress]) -> str:
    return f"{series(addresses)} {'is' if len(addresses) == 1 else 'are'}"
