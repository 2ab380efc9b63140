"""Conformance check for ``Service``: what every service has to do, stated as a test.

A vendor's own service can be checked with it the same way as ours are::

    async def test_my_service() -> None:
        await check_service(make, alive=port_is_open, kill=kill_the_server)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from nlbfarm.errors import HostError
from nlbfarm.interfaces import CheckResult, Service

__all__ = ["check_service"]

_PATIENCE = 10.0  # seconds for what has to become so
_TURNS = 20
_REASON = 'checker page: "HTTP 503" from http://127.0.0.1/ – twice'


async def check_service(
    make: Callable[[], Service],
    *,
    alive: Callable[[], bool],
    which: Callable[[], object] | None = None,
    kill: Callable[[], Awaitable[None]] | None = None,
    broken: Callable[[], Service] | None = None,
    timeout: float = 60.0,
) -> None:
    """Check a service against the contract of ``nlbfarm.interfaces.Service``.

    Args:
        make: Makes a new object for the same application, on the same directories, as the next process of a
            node would. Called several times; before the first call the application does not run.
        alive: Says whether anything of the application runs, by other means than the service's.
        which: Says which run of the application it is: a process id, a time. With it, it is also checked that
            an application that is taken over was not restarted.
        kill: Ends the application without the service. With it, it is also checked that its end is noticed.
        broken: Makes a service that cannot be started; with it, it is checked that it says so.
        timeout: Seconds that a start or a stop may take.

    Raises:
        AssertionError: The service breaks the contract; the message says how.
    """
    checks: list[Callable[[Service], Awaitable[None]]] = [
        partial(_does_nothing_unasked, alive=alive),
        partial(_starts_and_stops, alive=alive, timeout=timeout),
        partial(_is_taken_over, make=make, alive=alive, which=which, timeout=timeout),
        partial(_is_stopped_by_another, make=make, alive=alive, timeout=timeout),
    ]
    if kill is not None:
        checks.append(partial(_notices_its_end, alive=alive, kill=kill, timeout=timeout))
    for check in checks:
        service = make()
        assert isinstance(service, Service), f"{type(service).__name__} is not a nlbfarm.interfaces.Service"
        try:
            await check(service)
        finally:
            await _within(service.stop("the check is over"), timeout, "stop")
            await service.close()
            await service.close()
    if broken is not None:
        await _says_that_it_cannot_start(broken, timeout)


async def _does_nothing_unasked(service: Service, *, alive: Callable[[], bool]) -> None:
    assert not alive(), "the application runs before it was started: stop it, or the constructor started it"
    await _is(service, running=False, when="before it was started")
    await service.stop(_REASON)
    await service.close()
    assert not alive(), "stop and close have started the application"


async def _starts_and_stops(service: Service, *, alive: Callable[[], bool], timeout: float) -> None:
    for turn in ("", " again"):
        await _within(service.start(_REASON), timeout, "start")
        await _until(alive, f"nothing of the application runs after it was started{turn}")
        await _is(service, running=True, when=f"after it was started{turn}")
        await _within(service.start(_REASON), timeout, "start")
        await _is(service, running=True, when="after a second start, which has nothing to do")
        ended = asyncio.ensure_future(service.ended())
        for _ in range(_TURNS):
            await asyncio.sleep(0.001)
        assert not ended.done(), f"ended() says {_said(ended)!r} of an application that runs"
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        await _within(service.stop(_REASON), timeout, "stop")
        assert not alive(), f"something of the application still runs after stop has returned{turn}"
        await _is(service, running=False, when=f"after it was stopped{turn}")
        await _within(service.stop(_REASON), timeout, "stop")


async def _is_taken_over(
    service: Service,
    *,
    make: Callable[[], Service],
    alive: Callable[[], bool],
    which: Callable[[], object] | None,
    timeout: float,
) -> None:
    await _within(service.start(_REASON), timeout, "start")
    await _until(alive, "nothing of the application runs after it was started")
    before = which() if which is not None else None
    await service.close()
    await service.close()
    assert alive(), "close has stopped the application: the next process of the node should find it running"
    following = make()
    try:
        await _is(following, running=True, when="for a new object, while the application runs")
        await _within(following.start("the node's process was replaced"), timeout, "start")
        assert alive(), "an application that ran was stopped by start"
        after = which() if which is not None else None
        assert after == before, f"an application that ran was restarted by start: {before!r} became {after!r}"
        await _is(following, running=True, when="after a new object has taken it over")
        await _within(following.stop(_REASON), timeout, "stop")
        assert not alive(), "what was taken over still runs after stop has returned"
    finally:
        await following.stop("the check is over")
        await following.close()


async def _is_stopped_by_another(
    service: Service, *, make: Callable[[], Service], alive: Callable[[], bool], timeout: float
) -> None:
    await _within(service.start(_REASON), timeout, "start")
    await _until(alive, "nothing of the application runs after it was started")
    await service.close()
    following = make()
    try:
        await _within(following.stop(_REASON), timeout, "stop")
        assert not alive(), "a new object's stop leaves the application running that another one has started"
    finally:
        await following.close()


async def _notices_its_end(
    service: Service, *, alive: Callable[[], bool], kill: Callable[[], Awaitable[None]], timeout: float
) -> None:
    for turn in ("", " a second time"):
        await _within(service.start(_REASON), timeout, "start")
        await _until(alive, "nothing of the application runs after it was started")
        ended = asyncio.ensure_future(service.ended())
        try:
            await kill()
            await asyncio.wait({ended}, timeout=_PATIENCE)
            assert ended.done(), f"ended() does not return when the application has ended{turn}"
            why: object = ended.result()
            assert isinstance(why, str), f"ended() returned {why!r}, which is not text"
            assert why.strip(), "ended() does not say why"
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
        await _is(service, running=False, when="after the application has ended")
    await _within(service.stop(_REASON), timeout, "stop")
    assert not alive(), "something of an application that ended still runs after stop"


async def _says_that_it_cannot_start(broken: Callable[[], Service], timeout: float) -> None:
    service = broken()
    try:
        for _ in range(2):
            try:
                await _within(service.start(_REASON), timeout, "start")
            except HostError as error:
                why = str(error)
            else:
                raise AssertionError("start of what cannot be started returns without HostError")
            assert why.strip(), "start raises HostError without a reason"
            await _is(service, running=False, when="after a start that failed")
        await _within(service.stop(_REASON), timeout, "stop")
    finally:
        await service.close()


async def _is(service: Service, *, running: bool, when: str) -> None:
    result: object = await service.running()
    assert isinstance(result, CheckResult), f"running() returned {result!r}, which is not a CheckResult"
    assert result.ok is running, f"running() says {result.ok} {when}: {result.detail}"
    assert result.detail.strip(), f"running() does not say what it saw, {when}"


async def _within(call: Awaitable[None], timeout: float, what: str) -> None:
    try:
        async with asyncio.timeout(timeout):
            await call
    except TimeoutError:
        raise AssertionError(f"{what} does not return within {timeout:g} s") from None


async def _until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for ``condition``; ``AssertionError`` with ``otherwise`` after a while."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, otherwise
        await asyncio.sleep(0.005)


def _said(ended: asyncio.Future[str]) -> object:
    return ended.exception() or ended.result()
