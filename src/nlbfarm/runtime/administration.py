"""What the administrator wants of this node: carried out, remembered, and told when it is done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nlbfarm.admin import AdminFile, AdminState
from nlbfarm.core.events import AdminChanged, Event, FailbackRequested, PowersChanged, ResourceChanged
from nlbfarm.core.policy import Mode
from nlbfarm.core.settings import Admin, Settings
from nlbfarm.core.supervision import Action
from nlbfarm.damping import Starts
from nlbfarm.errors import HostError, NlbfarmError, UsageError
from nlbfarm.events import EventLog
from nlbfarm.interfaces import Clock
from nlbfarm.runtime.vips import VipKeeper

if TYPE_CHECKING:
    from nlbfarm.core.node import Node
    from nlbfarm.runtime.supervising import Supervising

__all__ = ["Administration", "Verb"]

DAMPING = "restarts"
"""Name of the resource that is missing while a node that fails again and again waits."""

_WANTED = {"start": Admin.RUN, "drain": Admin.DRAIN, "stop": Admin.STOP, "restart": Admin.RUN}

_TAKES = {
    "power": ("power", "group"),
    "failback": ("group",),
    "restart": ("now", "process"),
    "start": (),
    "pause": (),
}
"""What each command takes; the others: whether to wait for connections."""

_LOOK_S = 0.2
_LARGEST_POWER = 65535


@dataclass(frozen=True, slots=True)
class Verb:
    """One command of an administrator for one node.

    Args:
        name: ``start``, ``stop``, ``drain``, ``restart``, ``pause``, ``power`` or ``failback``.
        now: Without waiting for established connections (``stop``, ``drain``, ``restart``).
        process: Replace the node's process by a new one (``restart``).
        power: The new power, 0..65535; ``None``: that of the configuration (``power``).
        group: For which group; ``None``: for all (``power``, ``failback``).
    """

    NAMES = ("start", "stop", "drain", "restart", "pause", "power", "failback")

    name: str
    now: bool = False
    process: bool = False
    power: int | None = None
    group: str | None = None

    @classmethod
    def of(cls, name: str, args: Mapping[str, Any]) -> Verb:
        """Return the command that a caller means.

        Raises:
            UsageError: It cannot be meant.
        """
        if name not in cls.NAMES:
            raise UsageError(f'this node does not know the command "{name[:40]}"; is it of another version?')
        known = _TAKES.get(name, ("now",))
        unknown = sorted(args.keys() - set(known))
        if unknown:
            raise UsageError(f'{name} takes {", ".join(known) or "nothing"}, but not "{unknown[0][:40]}"')
        for key in ("now", "process"):
            if not isinstance(args.get(key, False), bool):
                raise UsageError(f'"{key}" of {name} must be true or false')
        power, group = args.get("power"), args.get("group")
        if power is not None and (isinstance(power, bool) or not isinstance(power, int)):
            raise UsageError('"power" must be a whole number, or null for that of the configuration')
        if power is not None and not 0 <= power <= _LARGEST_POWER:
            raise UsageError(f"power {power} is not in 0..{_LARGEST_POWER}")
        if group is not None and not isinstance(group, str):
            raise UsageError('"group" must be the name of a group, or null for all')
        return cls(name, **args)

    @classmethod
    def read(cls, name: str, argument: str) -> Verb:
        """Return the command that ``argument``, of an order from another node, stands for.

        Raises:
            UsageError: It cannot be meant.
        """
        try:
            args = json.loads(argument) if argument else {}
        except (ValueError, RecursionError):
            args = None
        if not isinstance(args, dict):
            raise UsageError(f"the argument of {name} is not understood; is it of another version?")
        return cls.of(name, args)

    def argument(self) -> str:
        """Return the argument of the order that carries this command to another node."""
        args: dict[str, Any] = {key: True for key in ("now", "process") if getattr(self, key)}
        if self.name == "power":
            args |= {"power": self.power, "group": self.group}
        elif self.name == "failback" and self.group is not None:
            args |= {"group": self.group}
        return json.dumps(args, separators=(",", ":"))


class Administration:
    """Carries out commands on this node.

    Args:
        settings: The configuration's.
        file: Where what is wanted is kept.
        starts: Counts failures.
        vips: They go while the node is stopped.
        services: Told of starts, stops and maintenance.
        node: Returns the state machine.
        clock: For the wait of a node that fails again and again.
        handle: Where events go.
        spawn: Starts a task of the node.
        log: Of the node.
    """

    def __init__(
        self,
        settings: Settings,
        file: AdminFile,
        starts: Starts,
        vips: VipKeeper,
        services: Supervising,
        node: Callable[[], Node],
        clock: Clock,
        handle: Callable[[Event], None],
        spawn: Callable[[Coroutine[None, None, None]], object],
        log: EventLog,
    ) -> None:
        self._settings = settings
        self._file = file
        self._starts = starts
        self._vips = vips
        self._services = services
        self._node = node
        self._clock = clock
        self._handle = handle
        self._spawn = spawn
        self._log = log
        self.state = AdminState()
        self.restart_process: Callable[[], None] | None = None
        """Replaces the process; ``None`` where the node is part of another program."""
        self.ending = False
        """Whether the process is about to end: what is wanted then holds for the next one."""
        self.cut = 0
        """Connections that drains did not wait for any longer."""
        self.removed = False
        """Whether the configuration no longer names this node: then it stops, whatever was wanted."""
        self._carrying_out = asyncio.Lock()
        self._commands = 0
        """Rises with every command, so that a wait for an earlier one can see that it was overtaken."""
        self._restarting = False
        self._halted = False
        self._waits_until = float("-inf")

    # -- what is wanted --------------------------------------------------------------------

    def open(self) -> Admin:
        """Read what was wanted last, and begin a life; return what is wanted.

        Raises:
            HostError: A file cannot be read or written.
        """
        self.state = self._file.read()
        wait = self._starts.begin(self._clock.wall())
        self._waits_until = self._clock.monotonic() + wait if wait else float("-inf")
        stopped = self.state.admin is Admin.STOP
        if stopped:
            self._vips.halt()
        self._services.open(paused=self.state.paused, run=not stopped)
        return self.state.admin

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of the resources that the core waits for."""
        return (DAMPING,) if self.waits_s > 0 else ()

    @property
    def waits_s(self) -> float:
        """For how many seconds a node that failed again and again still waits."""
        return max(0.0, self._waits_until - self._clock.monotonic())

    @property
    def failures(self) -> int:
        """How often in a row this node's process failed soon after its start."""
        return self._starts.failures

    @property
    def wanted(self) -> Admin:
        """What is wanted of this node now."""
        return Admin.STOP if self.removed else self.state.admin

    @property
    def warnings(self) -> list[str]:
        """What an administrator should know, a sentence each."""
        found = [self._file.problem] if self._file.problem else []
        if self.state.paused:
            found.append(
                "maintenance: checkers are looked at, and nothing is done about them (start ends that)"
            )
        if self.removed:
            found.append("this node is no longer in the configuration: it was drained and stopped")
        return found

    def powers(self, settings: Settings) -> tuple[int, ...]:
        """Return the powers that this node announces under ``settings``."""
        own = self.state.powers
        return tuple(
            own.get(group, power) for group, power in zip(settings.groups, settings.powers, strict=True)
        )

    def configure(self, settings: Settings) -> None:
        """Take these settings as the configuration's."""
        self._settings = settings

    async def damp(self) -> None:
        """Let a node that failed again and again wait; does nothing for any other."""
        if self.waits_s <= 0:
            return
        reason = (
            # Other nodes see 80 characters of it.
            f"failed {self.failures} times in a row: waits up to {self.waits_s:.0f} s (start ends that)"
        )
        self._handle(ResourceChanged(DAMPING, False, reason))
        while (left := self.waits_s) > 0:  # noqa: ASYNC110 - the time can change meanwhile
            await asyncio.sleep(min(left, _LOOK_S))  # "start" ends it early
        self._handle(ResourceChanged(DAMPING, True))

    def end(self) -> None:
        """End this life in good order."""
        try:
            self._starts.end()
        except HostError as error:  # the next start may wait for nothing; that is no reason not to end
            self._log.warning("starts.not_saved", error=str(error))

    # -- commands --------------------------------------------------------------------------

    async def carry_out(self, verb: Verb) -> str:
        """Begin what ``verb`` says, remembered across a restart; return a sentence.

        Raises:
            UsageError: It cannot be meant here.
            HostError: It cannot be remembered; nothing was changed.
            NlbfarmError: The process that is to be replaced is about to end.
        """
        async with self._carrying_out:
            ending = self.ending
            if ending and verb.process:
                raise NlbfarmError("its process is about to end")
            text = await self._carry_out(verb)
            return f"{text} (its process is about to end: that holds for the next one)" if ending else text

    async def _carry_out(self, verb: Verb) -> str:
        if verb.name == "power":
            return await self._power(verb)
        if verb.name == "failback":
            return self._failback(verb)
        if self.removed and verb.name in ("start", "restart"):
            raise UsageError("this node is no longer in the configuration: add it again and reload it")
        if verb.process:
            return self._replace_process()
        if verb.name == "pause":
            await self._save(replace(self.state, paused=True))
            self._services.pause(True)
            return "maintenance: checkers look, and nothing is done about them until the node is started"
        # Of a restart "run" is remembered all the while: a node that is interrupted in it comes back.
        resumed = verb.name == "start" and self.state.paused
        paused = self.state.paused and not resumed
        await self._save(replace(self.state, admin=_WANTED[verb.name], reason="", paused=paused))
        if resumed:
            self._services.pause(False)
        if verb.name in ("start", "restart"):
            await self._forgive()
        self._commands += 1
        match verb.name:
            case "start":
                self._run()
                return "started; the maintenance is over" if resumed else "started"
            case "drain":
                self._resume(Admin.DRAIN, verb.now)
                return "gives its clients away and stays drained until it is started"
            case "stop":
                self._restarting = False
                self._handle(AdminChanged(Admin.STOP, verb.now))
                return "gives its clients away and stays stopped until it is started"
            case _:
                if self._halted:
                    self._run()
                else:
                    self._restarting = True
                    self._handle(AdminChanged(Admin.STOP, verb.now))
                return "restarts: gives its clients away, leaves, and comes back"

    async def finished(self, verb: Verb, node: Callable[[], Node], progress: Callable[[str], None]) -> str:
        """Return a sentence when what ``carry_out`` began is done.

        Args:
            verb: What was begun.
            node: Returns the state machine.
            progress: Called with a sentence whenever there is something new to say.

        Raises:
            NlbfarmError: Another command came in between.
        """
        if verb.name in ("start", "pause", "power", "failback") or verb.process:
            return "done"
        mine, said, cut = self._commands, "", self.cut
        while True:
            if self._commands != mine:
                raise NlbfarmError(f"another command overtook the {verb.name}")
            told = left(node())
            if verb.name == "drain" and not told:
                return cut_short("drained", self.cut - cut)
            if verb.name == "stop" and self._halted:
                return cut_short("stopped", self.cut - cut)
            if verb.name == "restart" and not self._restarting:
                return "has left and comes back"
            if told and told != said:
                progress(told)
                said = told
            await asyncio.sleep(_LOOK_S)

    def take_out(self, action: Action, reason: str) -> None:
        """Drain or stop this node for a reason of its own; it stays so until it is started.

        At once: that others have the clients is true now, and need not be when a slow disk has answered.
        """
        if self.state.admin is not Admin.RUN or self.removed:
            return
        admin = Admin.DRAIN if action is Action.DRAIN else Admin.STOP
        self.state = replace(self.state, admin=admin, reason=reason)
        self._commands += 1
        self._restarting = False
        self._handle(AdminChanged(admin, reason=reason))
        self._spawn(self._remember(admin, reason, self._commands))

    async def _remember(self, admin: Admin, reason: str, command: int) -> None:
        """Save that this node was taken out, unless an administrator has wanted something else since."""
        async with self._carrying_out:
            if self._commands != command:
                return
            wanted = replace(self.state, admin=admin, reason=reason)
            try:
                await self._save(wanted)
            except HostError as error:  # it leaves all the same; the next process may try again
                self.state = wanted
                self._log.warning("admin.not_saved", error=str(error))

    def halted(self) -> None:
        """Take note that the node has left: the VIPs go, and a node that restarts begins anew."""
        self._halted = True
        self._vips.halt()
        self._spawn(self._lowered())

    def remove(self) -> None:
        """Drain and stop: the configuration no longer names this node. What was wanted is kept."""
        if not self.removed:
            self.removed = True
            self._commands += 1
            self._restarting = False
            self._log.warning("node.removed", detail="no longer in the configuration: it drains and stops")
            self._handle(AdminChanged(Admin.STOP))

    def restore(self) -> None:
        """Do again what was wanted: the configuration names this node again."""
        if self.removed:
            self.removed = False
            self._commands += 1
            if self.state.admin is not Admin.STOP:
                self._resume(self.state.admin, at_once=False)

    # -- how -------------------------------------------------------------------------------

    async def _save(self, state: AdminState) -> None:
        # In a thread: a disk that takes its time must not hold up the heartbeats.
        await asyncio.to_thread(self._file.save, state)
        self.state = state

    async def _forgive(self) -> None:
        self._services.forgive()
        self._waits_until = float("-inf")
        await asyncio.to_thread(self._starts.forgive, self._clock.wall())

    def _run(self) -> None:
        self._resume(Admin.RUN, at_once=False)

    def _resume(self, admin: Admin, at_once: bool) -> None:
        """Be in the farm again, or still; first the core learns that the VIPs are not there yet."""
        self._restarting = self._halted = False
        self._vips.resume()
        self._handle(AdminChanged(admin, at_once))
        self._services.run("the node is started")  # those that run already are left alone

    async def _lowered(self) -> None:
        try:
            await self._vips.lower()
        except HostError as error:
            self._log.warning("vip.not_removed", error=str(error))
        if self._halted:  # else it was started again meanwhile, and its services never stopped
            self._services.halt("the node is stopped")
        if self._restarting:
            self._run()

    def _failback(self, verb: Verb) -> str:
        node, settings = self._node(), self._settings
        modes = zip(settings.groups, settings.modes, strict=True)
        failover = [group for group, mode in modes if mode is Mode.FAILOVER]
        if verb.group is not None and verb.group not in failover:
            there = ", ".join(failover) or "none"
            raise UsageError(f'there is no failover group "{verb.group}" (there: {there})')
        groups = failover if verb.group is None else [verb.group]
        if not groups:
            raise UsageError('this farm has no group with mode = "failover"')
        if node.leader(self._clock.monotonic()) != settings.node:
            raise NlbfarmError("this node does not lead the farm (any more): give the command again")
        self._log.info("failback.requested", groups=groups)
        self._handle(FailbackRequested(tuple(groups)))
        return f"who has the highest power gets {', '.join(groups)}"

    async def _power(self, verb: Verb) -> str:
        settings = self._settings
        if verb.group is not None and verb.group not in settings.groups:
            raise UsageError(f'there is no group "{verb.group}" (there: {", ".join(settings.groups)})')
        groups: Iterable[str] = settings.groups if verb.group is None else (verb.group,)
        powers = {group: power for group, power in self.state.powers.items() if group in settings.groups}
        for group in groups:
            if verb.power is None:
                powers.pop(group, None)
            else:
                powers[group] = verb.power
        await self._save(replace(self.state, powers=powers))
        now = self.powers(settings)
        self._handle(PowersChanged(now))
        listed = ", ".join(f"{group} {power}" for group, power in zip(settings.groups, now, strict=True))
        return f"power now: {listed}"

    def _replace_process(self) -> str:
        if self.restart_process is None:
            raise UsageError("this node is part of another program: restart that program")
        self.restart_process()
        return "its process is replaced by a new one"


def left(node: Node) -> str:
    """Return what a node still has of the buckets that it gives away; empty if nothing."""
    held = sum(bitmap.bit_count() for bitmap in node.holding)
    drained = sum(bitmap.bit_count() for bitmap in node.draining)
    if held:
        return f"{held} buckets not taken over yet"
    if not drained:
        return ""
    flows = sum(count for counts in node.flows_left.values() for count in counts.values())
    if not flows:  # not counted yet
        return f"{drained} buckets drain"
    return f"{flows} connections left in {drained} buckets"


def cut_short(ended: str, cut: int) -> str:
    """Return how a drain ended, with the ``cut`` connections that it did not wait for any longer."""
    return f"{ended}, but {cut} connections had not ended in time and were cut" if cut > 0 else ended
