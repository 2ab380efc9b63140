"""From a configuration to checkers and services."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nlbfarm import checkers, services
from nlbfarm.checkers import HostView
from nlbfarm.config import FarmConfig, derive
from nlbfarm.config.checkers import Checker as CheckerEntry
from nlbfarm.config.host import read_host
from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import ServiceContext, VIPManager
from nlbfarm.parts import Check, Supervised

__all__ = ["CheckMaker", "supervised"]


def supervised(
    config: FarmConfig, node_id: int, *, runtime_dir: Path, state_dir: Path
) -> tuple[Supervised, ...]:
    """Return the services of ``config``.

    Raises:
        NlbfarmError: This host lacks something that one needs, or a plug-in is missing.
    """
    farm = config.farm.name
    vips = tuple(vip.address for vip in config.vips)
    found = []
    for entry in config.services:
        context = ServiceContext(
            farm=farm,
            node=config.node(node_id).name,
            vips=vips,
            service=entry.name,
            runtime_dir=runtime_dir / farm,
            state_dir=state_dir / farm,
        )
        service = services.build(entry, context)
        patience = entry.stop_timeout.total_seconds()
        found.append(Supervised(entry.kind, service, derive.service_spec(entry), patience))
    return tuple(found)


class CheckMaker:
    """Makes the checkers of one node.

    Args:
        node_id: Which node.
        vips: Its VIP manager.
        services: Its services.
        runtime_dir: Where the farms of this host have their directories.
    """

    def __init__(
        self, node_id: int, vips: VIPManager, services: Sequence[Supervised], runtime_dir: Path
    ) -> None:
        self._node_id = node_id
        self._vips = vips
        self._services = {one.spec.name: one.service for one in services}
        self._runtime_dir = runtime_dir

    def make(self, config: FarmConfig, entry: CheckerEntry) -> Check:
        """Return the checker that ``entry`` of ``config`` describes.

        Raises:
            NlbfarmError: Nothing is installed for its type, it does not accept the options, or the host
                lacks something.
        """
        service = derive.service_of(config, entry.service, entry.on_failure)
        return Check(
            name=entry.name,
            kind=entry.type,
            checker=checkers.build(entry, self._view(config)),
            interval=entry.interval.total_seconds(),
            timeout=entry.timeout.total_seconds(),
            rise=entry.rise,
            fall=entry.fall,
            initial_delay=entry.initial_delay.total_seconds(),
            action=entry.on_failure,
            service=service,
            confirm=entry.confirm_s,
        )

    def _view(self, config: FarmConfig) -> HostView:
        return HostView(
            farm=config.farm.name,
            node=config.node(self._node_id).name,
            vips=tuple(vip.address for vip in config.vips),
            interfaces=_interfaces(config, self._node_id),
            vip_present=lambda address: self._vips.present().get(address, False),
            vip_claimed=self._vips.claimed,
            runtime_dir=self._runtime_dir,
            pids_of_service=self._pids,
        )

    async def _pids(self, name: str) -> Sequence[int]:
        pids = getattr(self._services.get(name), "pids", None)
        if pids is None:
            raise NlbfarmError(f"which processes the service {name} has is not known here: name them")
        found: Sequence[int] = await pids()
        return found


def _interfaces(config: FarmConfig, node_id: int) -> tuple[str, ...]:
    """Return the interfaces of VIPs and heartbeats."""
    addresses = set(config.node(node_id).addresses)
    beats = [name for name, one in read_host().interfaces.items() if addresses.intersection(one.addresses)]
    return tuple(dict.fromkeys([*(vip.interface for vip in config.vips), *beats]))
