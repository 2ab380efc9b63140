"""What all tests of checkers share."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator

import pytest
from tests.checkers.support import sockets


@pytest.fixture(scope="session", autouse=True)
def modules_set_aside() -> Iterator[None]:
    """What is imported is no garbage: a collection after each test need not look at it again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """A socket that a checker forgets is a ResourceWarning, and that an error; count them all the same."""
    before = sockets()
    yield
    gc.collect()
    assert sockets() <= before


@pytest.fixture
def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
