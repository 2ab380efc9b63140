"""A node's process, as far as its service is concerned: does what it reads, a line each."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import time
from ipaddress import ip_address
from pathlib import Path

from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import ServiceContext
from nlbfarm.services.command import CommandService

_CAP_NET_ADMIN = 12
_AMBIENT, _RAISE = 47, 2  # prctl


def _take_rights() -> None:
    """Have what systemd gives a node: rights that are handed down to what it executes, and priority."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    data[0].inheritable |= 1 << _CAP_NET_ADMIN
    assert libc.capset(ctypes.byref(header), data) == 0
    assert libc.prctl(_AMBIENT, _RAISE, _CAP_NET_ADMIN, 0, 0) == 0
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    os.environ["NOTIFY_SOCKET"] = "/run/nobody"
    os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)


def _fork() -> None:
    """Have a child with copies of everything that this process has open."""
    if os.fork() == 0:
        for descriptor in (0, 1):
            os.close(descriptor)
        time.sleep(30)
        os._exit(0)


async def main() -> None:
    setup = json.loads(sys.argv[1])
    directory = Path(setup["directory"])
    vips = (ip_address("192.0.2.100"),)
    context = ServiceContext(setup["farm"], "web1", vips, "app", directory / "run", directory / "state")
    service = CommandService(context, command=setup["command"], **setup["options"])
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            match line.strip():
                case "start":
                    await service.start("the test starts")
                case "stop":
                    await service.stop("the test stops")
                case "close":
                    await service.close()
                case "rights":
                    _take_rights()
                case "fork":
                    _fork()
                case "exec":
                    await service.close()
                    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
            print((await service.running()).detail, flush=True)
        except NlbfarmError as error:
            print(f"error: {error}", flush=True)


asyncio.run(main())
