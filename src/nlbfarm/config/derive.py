"""From a configuration to the values that the core and the adapters are built from."""

from __future__ import annotations

from nlbfarm.config.digest import config_digest, former_digest, secret_digest
from nlbfarm.config.keys import FarmKeys
from nlbfarm.config.root import FarmConfig
from nlbfarm.config.rules import Failback
from nlbfarm.config.services import Service
from nlbfarm.config.vips import Uncovered
from nlbfarm.core.hashing import group_seed
from nlbfarm.core.policy import FilterPolicy, Group, IPAddress, Protocol, Rule, Vip
from nlbfarm.core.settings import Settings
from nlbfarm.core.supervision import Action, RuleSpec, ServiceSpec
from nlbfarm.core.wire import Keyring
from nlbfarm.interfaces import VipSpec

__all__ = [
    "addresses",
    "config_digest",
    "failover_rules",
    "former_digest",
    "keyring",
    "names",
    "peer_powers",
    "policy",
    "secret_digest",
    "service_of",
    "service_spec",
    "settings",
    "vip_specs",
]

_PROTOCOLS = {"tcp": Protocol.TCP}


def policy(config: FarmConfig, keys: FarmKeys) -> FilterPolicy:
    """Return what the filter has to enforce; groups are sorted by name: every node numbers them alike."""
    modes = {rule.group_name: rule.mode for rule in config.rules}
    return FilterPolicy(
        farm=config.farm.name,
        vips=tuple(
            Vip(vip.address, vip.interface, accept_uncovered=vip.uncovered is Uncovered.ACCEPT)
            for vip in config.vips
        ),
        groups=tuple(
            Group(name, group_seed(keys.hash_secret, config.farm.name, name), modes[name])
            for name in config.group_names()
        ),
        rules=tuple(
            Rule(
                name=rule.name,
                group=rule.group_name,
                vip=rule.vip,
                protocol=_PROTOCOLS[rule.protocol.value],
                ports=tuple(sorted(rule.ports)),
                affinity=rule.affinity,
            )
            for rule in config.rules
        ),
    )


def settings(config: FarmConfig, keys: FarmKeys, node_id: int) -> Settings:
    """Return what the state machine of node ``node_id`` is told; ``KeyError`` if there is no such node."""
    node = config.node(node_id)
    groups = config.group_names()
    modes = {rule.group_name: rule.mode for rule in config.rules}
    failbacks = {rule.group_name: rule.failback for rule in config.rules}
    heartbeat = config.heartbeat
    return Settings(
        node=node.id,
        nodes=names(config),
        groups=groups,
        modes=tuple(modes[group] for group in groups),
        powers=tuple(node.power_in(group) for group in groups),
        sticky=tuple(failbacks[group] is Failback.MANUAL for group in groups),
        config_digest=config_digest(config),
        secret_digest=secret_digest(keys),
        interval=heartbeat.interval.total_seconds(),
        lost_after=heartbeat.lost_after,
        lease=heartbeat.lease.total_seconds(),
        takeover_grace=config.handoff.takeover_grace.total_seconds(),
        restart_grace=config.handoff.restart_grace.total_seconds(),
        drain_timeout=config.handoff.drain_timeout.total_seconds(),
        partition=config.farm.partition,
    )


def service_of(config: FarmConfig, named: str | None, action: Action) -> str | None:
    """Return the service that a checker or a rule means: of one alone it need not be said."""
    alone = action is Action.RESTART and len(config.services) == 1
    return config.services[0].name if named is None and alone else named


def failover_rules(config: FarmConfig) -> tuple[RuleSpec, ...]:
    """Return what is done when several checkers say so."""
    return tuple(
        RuleSpec(
            rule.name,
            rule.when.expression,
            rule.action,
            service_of(config, rule.service, rule.action),
            rule.confirm.total_seconds(),
        )
        for rule in config.failover_rules
    )


def service_spec(entry: Service) -> ServiceSpec:
    """Return how a service is supervised."""
    return ServiceSpec(
        name=entry.name,
        after=entry.after,
        on_exit=entry.on_exit,
        start_timeout=entry.start_timeout.total_seconds(),
        hold=entry.hold.total_seconds(),
        max_restarts=entry.max_restarts,
        within=entry.within.total_seconds(),
        backoff=entry.backoff.total_seconds(),
        longest_backoff=entry.longest_backoff.total_seconds(),
    )


def peer_powers(config: FarmConfig, node_id: int) -> dict[int, dict[str, int]]:
    """Return, by id and group, which powers the configuration gives to the peers of node ``node_id``."""
    groups = config.group_names()
    return {
        node.id: {group: node.power_in(group) for group in groups}
        for node in config.nodes
        if node.id != node_id
    }


def names(config: FarmConfig) -> dict[int, str]:
    """Return the name of every node by id, in the order of the ids."""
    return {node.id: node.name for node in sorted(config.nodes, key=lambda node: node.id)}


def vip_specs(config: FarmConfig) -> tuple[VipSpec, ...]:
    """Return the virtual IPs to bring up."""
    return tuple(
        VipSpec(vip.address, vip.interface, vip.delivery.value, vip.group_mac) for vip in config.vips
    )


def addresses(config: FarmConfig, node_id: int) -> tuple[list[IPAddress], dict[int, list[IPAddress]]]:
    """Return the heartbeat addresses of node ``node_id`` and, by id, of its peers.

    Position n of every list is heartbeat network n. ``KeyError`` if there is no such node.
    """
    local = list(config.node(node_id).addresses)
    peers = {
        node.id: list(node.addresses)
        for node in sorted(config.nodes, key=lambda node: node.id)
        if node.id != node_id
    }
    return local, peers


def keyring(keys: FarmKeys) -> Keyring:
    """Return the keys that heartbeats are signed and verified with."""
    return Keyring(dict(keys.heartbeat), keys.active)
