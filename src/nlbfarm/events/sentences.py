"""Every name of an event that a node logs, as a sentence for a person.

Names are part of the interface, sentences are not: a program goes by names and fields. A test sees to it that
no event is logged that has no sentence here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nlbfarm.events.model import Severity

__all__ = ["EVENTS", "Kind", "sentence", "severity"]

LONGEST = 500
"""Characters of a sentence: it has to fit into a subject line, a text message, a page."""

Words = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of the events of one name.

    Args:
        text: The sentence. ``{field}`` stands for a field; what is in brackets is left out if a field in it
            has no value.
        least: Its severity, if whoever logs it does not think it worse.
        bad: The sentence if the field ``ok`` is false; the event is a warning then.
    """

    text: str | Words
    least: Severity = Severity.INFO
    bad: str | Words | None = None


def sentence(name: str, fields: Mapping[str, Any]) -> str:
    """Return what an event means, in one line; for a name that nobody knows, the name and the fields.

    Args:
        name: The event's name.
        fields: Its fields.
    """
    kind = EVENTS.get(name)
    if kind is None:
        particulars = ", ".join(f"{key} {_shown(value)}".rstrip() for key, value in fields.items())
        text = f"{name}: {particulars}" if particulars else name
    else:
        chosen = kind.bad if kind.bad is not None and fields.get("ok") is False else kind.text
        text = _filled(chosen, fields) if isinstance(chosen, str) else chosen(fields)
    # What a program or a peer said may have line ends in it, or commands to a terminal.
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def severity(name: str, fields: Mapping[str, Any]) -> Severity:
    """Return how severe an event is at least, whoever logs it. Arguments as for ``sentence``."""
    kind = EVENTS.get(name)
    if kind is None:
        return Severity.INFO
    if kind.bad is not None and fields.get("ok") is False and kind.least is Severity.INFO:
        return Severity.WARNING
    return kind.least


_OPTIONAL = re.compile(r"\[([^\]]*)\]")
_FIELD = re.compile(r"\{(\w+)\}")


def _filled(text: str, fields: Mapping[str, Any]) -> str:
    def optional(match: re.Match[str]) -> str:
        names = _FIELD.findall(match[1])
        return match[1] if all(_has_value(fields.get(name)) for name in names) else ""

    def field(match: re.Match[str]) -> str:
        value = fields.get(match[1])
        if not _has_value(value):
            return "?"
        if match[1].endswith("_s") and isinstance(value, int | float):
            return _span(value)
        return _shown(value)

    return _FIELD.sub(field, _OPTIONAL.sub(optional, text))


def _has_value(value: object) -> bool:
    return value is not None and value is not False and value not in ("", [], {}, ())


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return "" if value is None else str(value)


def _span(seconds: float) -> str:
    """Return a length of time in the largest unit that keeps it a whole number."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and not seconds % size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _by(field: str, texts: Mapping[str, str], otherwise: str) -> Words:
    """Return what chooses a text by the value of a field."""

    def words(fields: Mapping[str, Any]) -> str:
        return _filled(texts.get(str(fields.get(field)), otherwise), fields)

    return words


def _nodes(fields: Mapping[str, Any], key: str) -> str:
    known = fields.get(key) or []
    listed = [known] if isinstance(known, int | str) else list(known)
    return f"node{'' if len(listed) == 1 else 's'} {_shown(listed) or '?'}"


def _view_entered(fields: Mapping[str, Any]) -> str:
    counter = (fields.get("epoch") or ["?"])[0]
    return f"This node is in view {counter}, with {_nodes(fields, 'members')}"


_LEFT = {
    "stopping": "it stops",
    "new_incarnation": "it begins a new life",
    "left_out": "the leader leaves it out",
    "greater_view": "there is a greater one",
    "unacknowledged": "nobody answers it",
    "deaf": "it hears nobody that is there",
    "links_broken": "links between the nodes are broken",
    "cannot_serve": "it cannot serve",
}


def _view_left(fields: Mapping[str, Any]) -> str:
    counter, reason = (fields.get("epoch") or ["?"])[0], str(fields.get("reason", ""))
    return f"This node is no longer in view {counter}: {_LEFT.get(reason, reason or '?')}"


def _deaf(fields: Mapping[str, Any]) -> str:
    verb = "is" if len(fields.get("peers") or ()) == 1 else "are"
    return (
        f"This node hears no heartbeats, yet {_nodes(fields, 'peers')} {verb} still there: it does not "
        "serve. Look for a firewall that drops UDP between the nodes"
    )


_W, _E = Severity.WARNING, Severity.ERROR

EVENTS: Mapping[str, Kind] = {
    # The node itself.
    "node.started": Kind(
        _by(
            "admin",
            {
                "drain": "This node has started, and stays drained until nlbfarm-node start",
                "stop": "This node has started, and stays stopped until nlbfarm-node start",
            },
            "This node has started",
        )
    ),
    "node.state": Kind("This node is {state}[: {reason}]"),
    "node.fitness": Kind(
        _by(
            "fitness",
            {
                "sound": "This node is sound again",
                "suspect": "Something may be wrong with this node[: {reason}]",
                "degraded": "This node is degraded: it serves only while nobody is better[: {reason}]",
                "down": "The application of this node is down[: {reason}]",
            },
            "The fitness of this node is {fitness}[: {reason}]",
        )
    ),
    "node.taken_out": Kind(
        _by(
            "action",
            {
                "drain": "This node gives its clients away, until nlbfarm-node start: {reason}",
                "stop": "This node leaves the farm, until nlbfarm-node start: {reason}",
            },
            "This node takes itself out ({action}), until nlbfarm-node start: {reason}",
        ),
        _E,
    ),
    "node.paused": Kind("Maintenance: checkers look, and nothing is done about what they find", _W),
    "node.resumed": Kind("The maintenance is over: what checkers find is acted on again"),
    "node.admin": Kind(
        _by(
            "admin",
            {
                "run": "This node shall serve[: {reason}]",
                "drain": "This node shall give its clients away[: {reason}]",
                "stop": "This node shall give its clients away and leave[: {reason}]",
            },
            "This node shall {admin}[: {reason}]",
        )
    ),
    "node.powers": Kind("The powers of this node are: {powers}"),
    "node.late": Kind(
        "This node was {late_ms} ms late: the host is overloaded, or the process stood still", _W
    ),
    "node.deaf": Kind(_deaf, _E),
    "node.hears_again": Kind(lambda fields: f"This node hears {_nodes(fields, 'peers')} again"),
    "node.incarnation_raised": Kind(
        "This node begins a new life ({incarnation}): its clock went back, or a file in its state directory "
        "was lost",
        _W,
    ),
    "node.failed": Kind("This node fails over an error in nlbfarm[ ({event_kind})][: {error}]", _E),
    "node.close_failed": Kind("Something on this host was not put back: {error}", _E),
    "node.hurried": Kind("This node ends without waiting any longer: {reason}", _W),
    "node.interrupted": Kind("This node does not start: {reason}"),
    "node.stopped": Kind(
        _by("replaced", {"True": "This process ends, and a new one takes over"}, "This node has ended")
    ),
    "node.reloaded": Kind("The configuration {file} was reloaded[: {changed}]"),
    "node.reload_failed": Kind("The configuration was not reloaded: {error}", _E),
    "node.reload_refused": Kind("The configuration was not reloaded[: {problems}][: {refused}]", _E),
    "node.removed": Kind("This node is no longer in the configuration: it drains and stops", _W),
    # Other nodes.
    "peer.heard": Kind("Node {name} is heard"),
    "peer.left": Kind("Node {name} has left in good order"),
    "peer.lost": Kind("Node {name} is lost: it is not heard on any network", _W),
    "peer.network_lost": Kind("Node {name} is not heard any more on heartbeat network {network}", _W),
    "peer.network_back": Kind("Node {name} is heard again on heartbeat network {network}"),
    "peer.configured_otherwise": Kind(
        "Node {name} is configured otherwise than this one: they do not serve together", _W
    ),
    "peer.old_life": Kind("Node {peer} speaks as in an earlier life ({incarnation}): it is corrected", _W),
    "peer.unbelievable": Kind(
        "Node {peer} names an impossible incarnation ({incarnation}): it is ignored", _W
    ),
    "plan.unreadable": Kind("The plan of node {peer} cannot be read: {error}", _W),
    "view.entered": Kind(_view_entered),
    "view.left": Kind(_view_left),
    "heartbeat.note": Kind("Heartbeats: {note}"),
    "heartbeat.rejected": Kind("Heartbeats are refused: {detail}", _W),
    "heartbeat.failed": Kind("Heartbeats cannot be received[: {error}]", _E),
    "order.given": Kind("Node {name} is told: {verb}[ {argument}]"),
    "order.carried_out": Kind("Node {peer} told this node: {verb}[ {argument}]. {detail}"),
    "order.failed": Kind("Node {peer} told this node: {verb}[ {argument}], and that failed: {error}", _W),
    "failback.requested": Kind("Groups that shall go back to the node with the highest power: {groups}"),
    # The application.
    "checker.changed": Kind(
        "Checker {checker} is up[: {detail}]", bad="Checker {checker} is down[: {detail}]"
    ),
    "checker.not_yet": Kind("Checker {checker} does not find its service up yet[: {detail}]"),
    "checker.failed": Kind("Checker {checker} itself fails[: {error}]", _E),
    "rule.changed": Kind(
        "Failover rule {rule} does not apply any more[: {detail}]",
        bad="Failover rule {rule} applies[: {detail}]",
    ),
    "service.starting": Kind("Service {service} is being started[: {reason}]"),
    "service.started": Kind("Service {service} is up[: {reason}]"),
    "service.stopping": Kind("Service {service} is being stopped[: {reason}]"),
    "service.stopped": Kind("Service {service} is stopped[: {reason}]"),
    "service.ended": Kind("Service {service} has ended by itself[: {reason}]", _W),
    "service.failed": Kind("Service {service} cannot be started[: {reason}]", _W),
    "service.restarting": Kind(
        "Service {service} is being restarted[ ({attempt} of {of} times in {within_s})][: {reason}]", _W
    ),
    "service.fault": Kind("Service {service} fails over an error in what starts and stops it[: {error}]", _E),
    "service.not_stopped": Kind("Service {service} cannot be stopped[: {reason}]", _E),
    "service.script_failed": Kind("The script {script} of service {service} failed[: {detail}]", _W),
    "service.dependent": Kind(
        "Service {service} is up, but {name}, which depends on it, is not[: {error}]", _W
    ),
    "service.killed": Kind("Service {service} left processes behind, which were killed[: {processes}]", _W),
    "service.given_up": Kind("Service {service} is given up[: {reason}]", _E),
    # The packet filter, the virtual IPs, this host.
    "filter.opened": Kind("The packet filter is {backend}[ ({detail})]"),
    "filter.damaged": Kind(
        "The packet filter was damaged: {reason}. The virtual IPs go until it is repaired", _E
    ),
    "filter.repaired": Kind("The packet filter is repaired"),
    "filter.repair_failed": Kind("The packet filter cannot be repaired: {error}", _E),
    "filter.flows_unknown": Kind("Connections cannot be counted: {error}[; {detail}]", _W),
    "drain.ended": Kind("Everything that was given away has been handed over"),
    "drain.cut_short": Kind("{connections} connections were cut: they outlasted handoff.drain_timeout", _W),
    "vip.vanished": Kind("The virtual IP {addresses} was taken from this host; it is put back", _W),
    "vip.probe_failed": Kind("It cannot be found out who is there on the virtual IPs' network: {error}", _W),
    "vip.not_removed": Kind("A virtual IP cannot be taken away: {error}", _E),
    "vip.announce_failed": Kind("The virtual IPs cannot be announced on {interface}: {error}", _W),
    "vip.left_alone": Kind("{kind} {name} on {interface} was changed by somebody else, and is left alone"),
    "host.restored": Kind("Left by a killed process, and put back: {what}"),
    "host.note": Kind("This host: {note}"),
    "config.warning": Kind("The configuration, {path}: {message}", _W),
    "admin.unreadable": Kind("{file}: {detail}", _E),
    "admin.not_saved": Kind("It cannot be saved what this node shall do: {error}. A restart forgets it", _E),
    "restarts.unreadable": Kind("{file} cannot be read: {detail}", _W),
    "restarts.not_saved": Kind("It cannot be saved how often services were restarted: {error}", _W),
    "starts.unreadable": Kind("{file} cannot be read: {detail}", _W),
    "starts.not_saved": Kind("It cannot be saved how often this node failed: {error}", _W),
    "incarnation.unreadable": Kind("{file}: {detail}", _W),
    # Whoever asks, and whoever is told.
    "control.denied": Kind("User {uid} (process {pid}) may not control this node, and tried to", _W),
    "control.fault": Kind("The command {verb} failed over an error in nlbfarm[: {error}]", _E),
    "events.dropped": Kind("{count} events are missing here: whoever reads them was too slow", _W),
    "events.not_saved": Kind("Events cannot be saved in {file}: {error}. They wait in memory", _W),
    "events.saved_again": Kind("Events are saved again in {file}"),
    "notify.failed": Kind("{target} cannot be notified: {error}[; tried again in {retry_s}]", _W),
    "notify.dropped": Kind("{target} was not notified of {events} events", _W),
    "notify.recovered": Kind("{target} is notified again"),
    "library.message": Kind("{library}: {message}"),
}
"""Every event, by its name."""
