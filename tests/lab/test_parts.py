"""The parts of the lab that need no namespaces."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity
from nlbfarm.errors import HostError, UsageError
from nlbfarm.lab import Lab, endpoints, hoststate, servers, topology, webserver
from nlbfarm.lab.configuration import farm_toml


def test_every_bucket_has_endpoints_that_fall_into_it_and_rest_between_uses() -> None:
    addresses = [IPv4Address("192.0.2.202"), IPv4Address("192.0.2.203")]
    ports = endpoints.Endpoints(7, addresses, range(10_000, 20_000), 16)
    for bucket in range(BUCKETS):
        used = [ports.next(bucket) for _ in range(17)]
        assert len(set(used[:16])) == 16
        assert used[16] == used[0]
        for address, port in used:
            assert bucket_of(flow_key(Affinity.CLIENT_PORT, IPv4Address(address), port), 7) == bucket


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nweb1\n", "web1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length:4\r\nX: y\r\n\r\nweb1", "web1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nweb", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"", None),
    ],
)
def test_an_answer_is_complete_when_its_body_is(answer: bytes, body: str | None) -> None:
    assert endpoints.body(answer) == body


async def test_the_builtin_server_keeps_connections_alive_and_closes_when_asked(tmp_path: Path) -> None:
    pages = tmp_path / "htdocs"
    pages.mkdir()
    (pages / "index.html").write_text("web1\n")
    (pages / "health").write_text("ok\n")
    server = await webserver.listen("127.0.0.1", 0, pages)
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

        async def ask(request: bytes) -> bytes:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            return head.split(b"\r\n")[0] + b" " + await reader.readline()

        assert await ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b"HTTP/1.1 200 OK web1\n"
        assert await ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b"HTTP/1.1 200 OK ok\n"
        assert await ask(b"GET /other HTTP/1.1\r\n\r\n") == b"HTTP/1.1 404 Not Found not found\n"
        assert await ask(b"GET / HTTP/1.0\r\n\r\n") == b"HTTP/1.1 200 OK web1\n"
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

        (tmp_path / "ill").touch()
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await ask(b"GET /health HTTP/1.1\r\n\r\n") == b"HTTP/1.1 503 Service Unavailable web1\n"
        (tmp_path / "ill").unlink()
        assert await ask(b"GET /health HTTP/1.1\r\n\r\n") == b"HTTP/1.1 200 OK ok\n"
        writer.close()
        await writer.wait_closed()

        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert (await ask(b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        writer.close()
        await writer.wait_closed()
    finally:
        server.close()
        await server.wait_closed()


def test_auto_takes_a_server_that_is_there_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert servers.choose("auto").name in servers.SERVERS
    monkeypatch.setattr(servers, "_SEARCH", "/nonexistent")
    chosen = servers.choose("auto")
    assert chosen.name == "builtin"
    assert "Apache is not installed" in chosen.detail
    with pytest.raises(HostError, match="nginx is not installed"):
        servers.choose("nginx")
    with pytest.raises(UsageError, match="no server 'iis'"):
        servers.choose("iis")


def test_a_lab_has_a_sensible_number_of_nodes() -> None:
    for nodes in (0, topology.MAX_NODES + 1):
        with pytest.raises(UsageError, match="1 to 32 nodes"):
            Lab(nodes)


def test_the_configuration_of_a_lab_loads(tmp_path: Path) -> None:
    from nlbfarm.config import keys, load

    keys.generate(tmp_path / "lab.key")
    file = tmp_path / "farm.toml"
    file.write_text(farm_toml(["web1", "web2", "web3"], backend="nftables"))
    config = load(file)
    assert [node.name for node in config.nodes] == ["web1", "web2", "web3"]


def test_what_differs_between_two_states_is_named_by_section() -> None:
    before = hoststate.HostState({"addresses": {"eth0 192.0.2.1/24": "global"}, "ruleset": {}})
    after = hoststate.HostState({"addresses": {}, "ruleset": {"table inet x": "{}"}})
    assert hoststate.difference(before, before) == []
    assert hoststate.difference(before, after) == [
        "addresses: eth0 192.0.2.1/24: global -> absent",
        "ruleset: table inet x: absent -> {}",
    ]
