"""From a configuration to a ``Runtime``; nothing on the host is changed yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nlbfarm import backends, plugins
from nlbfarm.assembly.supervised import CheckMaker, supervised
from nlbfarm.backends.bucketing import load_function
from nlbfarm.backends.windivert.removal import VipRemoval
from nlbfarm.config import FarmConfig, FarmKeys, derive
from nlbfarm.config.farm import LastNode
from nlbfarm.core.wire import Codec
from nlbfarm.interfaces import Heartbeat, VIPManager
from nlbfarm.parts import Parts, SystemClock
from nlbfarm.plugins import Kind
from nlbfarm.runtime import Runtime
from nlbfarm.sdnotify import Notifier

__all__ = ["build", "vip_manager"]


def vip_manager(config: FarmConfig, journal: Path) -> VIPManager:
    """Return what brings this farm's VIPs up, as ``filter.vip_manager`` says.

    Raises:
        PluginError: It cannot be loaded, or not be made from the VIPs and the journal.
    """
    name, what, specs = config.filter.vip_manager_name, "filter.vip_manager", derive.vip_specs(config)
    arguments = (specs,) if name == "memory" else (specs, journal)  # what is in memory needs no journal
    return plugins.make(Kind.VIP, name, VIPManager, what, *arguments)  # type: ignore[type-abstract]


async def build(
    config: FarmConfig,
    keys: FarmKeys,
    node_id: int,
    *,
    runtime_dir: Path,
    state_dir: Path,
    notifier: Notifier | None = None,
) -> Runtime:
    """Build the runtime of one node; nothing on the host is changed yet.

    Args:
        config, keys: What was loaded.
        node_id: Which of the nodes this is.
        runtime_dir, state_dir: Where this farm's volatile and lasting files go (without the farm's name).
        notifier: Whom to tell of every healthy turn.

    Raises:
        NlbfarmError: The backend cannot work here, or a plug-in is missing.
    """
    farm = config.farm.name
    filtering = config.filter
    journal = runtime_dir / farm / "journal.json"
    backend, why = await backends.choose(
        filtering.backend,
        backends.Options(
            queues=filtering.queues,
            bucket=filtering.bucket_function,
            udp_idle=filtering.udp_idle.total_seconds(),
            removal=VipRemoval(filtering.vip_manager_name, journal),
        ),
    )
    local, peers = derive.addresses(config, node_id)
    vips = vip_manager(config, journal)
    services = supervised(config, node_id, runtime_dir=runtime_dir, state_dir=state_dir)
    checks = CheckMaker(node_id, vips, services, runtime_dir)
    clock = SystemClock()
    return Runtime(
        Parts(
            settings=derive.settings(config, keys, node_id),
            policy=derive.policy(config, keys),
            codec=Codec(farm, derive.keyring(keys)),
            backend=backend,
            vips=vips,
            heartbeat=plugins.make(
                Kind.HEARTBEAT,
                config.heartbeat.transport,
                Heartbeat,  # type: ignore[type-abstract]
                "heartbeat.transport",
                local,
                peers,
                port=config.heartbeat.port,
                dscp=config.heartbeat.dscp,
                clock=clock,
            ),
            peers=peers,
            former_digest=derive.former_digest(config),
            peer_powers=derive.peer_powers(config, node_id),
            incarnation_file=state_dir / farm / "incarnation",
            admin_file=state_dir / farm / "admin.json",
            starts_file=state_dir / farm / "starts.json",
            restarts_file=state_dir / farm / "restarts.json",
            checks=[checks.make(config, entry) for entry in config.checkers],
            services=services,
            failover_rules=derive.failover_rules(config),
            last_stays=config.farm.last_node is LastNode.STAY,
            backend_detail=why,
            function=load_function(filtering.bucket_function) if filtering.bucket_function else None,
            delivery=", ".join(sorted({vip.delivery.value for vip in config.vips})),
            clock=clock,
            on_turn=_watchdog(notifier),
        )
    )


def _watchdog(notifier: Notifier | None) -> Callable[[], None]:
    """Return what tells systemd that the loop turns, at most as often as it wants to know."""
    if notifier is None or notifier.watchdog_interval is None:
        return lambda: None
    interval, last = notifier.watchdog_interval, [float("-inf")]
    clock = SystemClock()

    def turned() -> None:
        now = clock.monotonic()
        if now - last[0] >= interval:
            last[0] = now
            notifier.alive()

    return turned
