"""The D-Bus side of systemd: calls of its manager, and what it says of jobs and units.

The interface is that of org.freedesktop.systemd1(5); dbus-fast carries the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from nlbfarm.errors import HostError

if TYPE_CHECKING:
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

__all__ = ["SystemdBus", "SystemdError"]

_CALL_S = 10.0  # systemd answers at once; what takes long is a job
_NAME, _ROOT = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
_MANAGER, _PROPERTIES = f"{_NAME}.Manager", "org.freedesktop.DBus.Properties"
_BUS = "org.freedesktop.DBus"
_RULES = (
    f"type='signal',sender='{_NAME}',path='{_ROOT}',interface='{_MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{_NAME}',path_namespace='{_ROOT}/unit',interface='{_PROPERTIES}'",
    f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'",
)


class SystemdError(Exception):
    """systemd, or the bus, answered with an error.

    Args:
        name: Its D-Bus name: ``"org.freedesktop.systemd1.NoSuchUnit"``.
        text: What it says.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{text} ({name})")
        self.name, self.text = name, text


class SystemdBus:
    """A connection to systemd.

    Args:
        address: D-Bus address; empty: the system bus.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._bus: MessageBus | None = None
        self._opening = asyncio.Lock()
        self._subscribed = False
        self._watch: asyncio.Task[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._results: dict[str, str] = {}

    async def open(self) -> None:
        """Connect, and ask for signals; does nothing if that is so already.

        Raises:
            HostError: There is no bus here, no systemd on it, or the library is missing.
        """
        async with self._opening:
            if self._bus is None or not self._bus.connected:
                await self.close()
                await self._connect()
            if not self._subscribed:
                await self._subscribe()

    async def _connect(self) -> None:
        try:
            from dbus_fast import BusType, DBusFastError
            from dbus_fast.aio import MessageBus
        except ImportError as error:
            raise HostError(
                f"the Python package dbus-fast cannot be imported ({error}): pip install 'nlbfarm[systemd]'"
            ) from error
        bus = MessageBus(self._address or None, bus_type=BusType.SYSTEM)
        try:
            async with asyncio.timeout(_CALL_S):
                await bus.connect()
        except (OSError, EOFError, DBusFastError) as error:
            why = getattr(error, "strerror", None) or str(error) or "no answer"
            raise HostError(
                f"no connection to the system bus of D-Bus ({why}): is this host run by systemd, "
                "and its dbus service active?"
            ) from error
        self._bus, self._watch = bus, asyncio.create_task(self._await_end(bus))
        bus.add_message_handler(self._heard)

    async def _subscribe(self) -> None:
        self._subscribed = True  # until a signal says that there is another systemd
        try:
            for rule in _RULES:
                await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", rule)
            await self.manager("Subscribe")
        except SystemdError as error:
            await self.close()
            if error.name in (f"{_BUS}.Error.ServiceUnknown", f"{_BUS}.Error.NameHasNoOwner"):
                raise HostError("systemd is not on the system bus: this host is not run by it") from error
            raise HostError(f"systemd does not answer: {error}") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect."""
        self._subscribed = False
        bus, self._bus = self._bus, None
        watch, self._watch = self._watch, None
        if bus is not None and bus.connected:
            bus.disconnect()
        if watch is not None:
            await asyncio.wait({watch}, timeout=_CALL_S)
            watch.cancel()

    async def manager(self, member: str, signature: str = "", *arguments: object) -> list[Any]:
        """Call a method of systemd's manager and return what it returns.

        Raises:
            SystemdError: It answered with an error.
            HostError: The connection is lost.
        """
        return await self._call(_NAME, _ROOT, _MANAGER, member, signature, *arguments)

    async def get(self, path: str, interface: str, key: str) -> Any:
        """Return a property of an object of systemd, as the interface (``"Unit"``) has it.

        Raises:
            SystemdError, HostError: As for ``manager``.
        """
        (found,) = await self._call(_NAME, path, _PROPERTIES, "Get", "ss", f"{_NAME}.{interface}", key)
        return found.value

    async def job(self, member: str, signature: str, *arguments: object) -> str:
        """Call a method that begins a job, and wait for that one's end; no two at once.

        Returns:
            How it ended: ``"done"``, ``"failed"``, ``"canceled"``, ``"timeout"``, ``"dependency"``, …

        Raises:
            SystemdError, HostError: As for ``manager``.
        """
        self._results.clear()
        (path,) = await self.manager(member, signature, *arguments)
        while path not in self._results:
            news = self.news()  # the signal may have come before the answer
            if self._bus is None or not self._bus.connected:
                raise HostError("the connection to the system bus was lost")
            await news
        return self._results.pop(path)

    def news(self) -> asyncio.Future[None]:
        """Return what is done at the next signal of systemd, or when the connection is lost."""
        if self._news is None or self._news.done():
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    async def _call(
        self, destination: str, path: str, interface: str, member: str, signature: str, *arguments: object
    ) -> list[Any]:
        from dbus_fast import DBusFastError, Message, MessageType

        bus = self._bus
        if bus is None or not bus.connected:
            raise HostError("the connection to the system bus was lost")
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(arguments),
        )
        try:
            async with asyncio.timeout(_CALL_S):
                reply = await bus.call(message)
        except TimeoutError as error:
            raise HostError(f"systemd does not answer to {member} within {_CALL_S:g} s") from error
        except (OSError, EOFError, DBusFastError) as error:
            raise HostError(f"the connection to the system bus was lost ({error})") from error
        if reply is None:
            raise HostError("the connection to the system bus was lost")
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body else "without a word"
            raise SystemdError(reply.error_name or "", str(text))
        return list(reply.body)

    def _heard(self, message: Message) -> None:
        from dbus_fast import MessageType

        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "JobRemoved" and message.interface == _MANAGER:
            _number, path, _unit, result = message.body
            self._results[path] = result
        if message.member == "NameOwnerChanged" and message.body[2]:
            self._subscribed = False  # systemd was executed anew
        self._wake()

    async def _await_end(self, bus: MessageBus) -> None:
        with contextlib.suppress(OSError, EOFError):  # the next call says so
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
