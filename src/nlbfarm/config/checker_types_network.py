"""``[[checkers]]`` that look at the network: connections, pages, neighbours, interfaces, addresses, farms."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from nlbfarm.config.checker_types import CheckerEntry, Expression, HostHeader, Statuses, Url
from nlbfarm.config.types import (
    Bool,
    ConfigPath,
    Described,
    InterfaceName,
    Name,
    NonEmpty,
    Port,
    UnicastAddress,
    choice,
    whole,
)

__all__ = [
    "HttpChecker",
    "InterfaceChecker",
    "IpChecker",
    "ModuleChecker",
    "PingChecker",
    "State",
    "TcpChecker",
]


class TcpChecker(CheckerEntry):
    """Type ``tcp``: is a connection accepted?

    Attributes:
        address: Address to connect to.
        port: Port to connect to.
    """

    type: Literal["tcp"] = "tcp"
    address: UnicastAddress = IPv4Address("127.0.0.1")
    port: Port


class HttpChecker(CheckerEntry):
    """Type ``http``: is a page answered, and is it the right one?

    Attributes:
        url: What to get.
        status: Statuses that count as healthy, written ``200``, ``"200-399"`` or a list of those.
        body: What has to be found in the body.
        address: Address to connect to, whatever host the URL names: loopback, or the virtual IP.
        host: ``Host`` header, and name for TLS, where they are not the URL's.
        verify: With https: whether the certificate is checked.
        ca_file: With https: who may have signed it, instead of those that the host trusts.
    """

    type: Literal["http"] = "http"
    url: Url
    status: Annotated[Statuses, NonEmpty] = tuple(range(200, 400))
    body: Expression | None = None
    address: UnicastAddress | None = None
    host: HostHeader | None = None
    verify: Bool = True
    ca_file: ConfigPath | None = None

    @model_validator(mode="after")
    def _needs_tls(self) -> HttpChecker:
        if self.ca_file is not None and not self.url.startswith("https:"):
            raise ValueError(
                "ca_file is for a url that begins with https; correct the url, or remove ca_file"
            )
        if self.ca_file is not None and not self.verify:
            raise ValueError("with verify = false no certificate is checked, and ca_file is never read")
        return self


class PingChecker(CheckerEntry):
    """Type ``ping``: does an address answer ICMP echo?

    Attributes:
        address: Whom to ask; mostly the gateway.
        interface: Ask through this interface, whatever the routes say.
        count: How many requests at most; the first answer is enough.
    """

    often_shared: ClassVar[bool] = True

    type: Literal["ping"] = "ping"
    address: UnicastAddress
    interface: InterfaceName | None = None
    count: Annotated[int, BeforeValidator(whole(1, 100, "a number of requests"))] = 3


class _OneOrMore(Described):
    """Takes a single item for a list of it."""

    def __call__(self, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def described(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [schema["items"], schema]}


_one_or_more = _OneOrMore()


class InterfaceChecker(CheckerEntry):
    """Type ``interface``: has a network interface its link?

    Attributes:
        interfaces: Which ones; by default those of the VIPs and of the heartbeats.
    """

    type: Literal["interface"] = "interface"
    interfaces: Annotated[tuple[InterfaceName, ...], BeforeValidator(_one_or_more)] = ()


class IpChecker(CheckerEntry):
    """Type ``ip``: is the virtual IP on this host, and nobody else's?

    Attributes:
        address: Which VIP; by default all.
    """

    type: Literal["ip"] = "ip"
    address: UnicastAddress | None = None


class State(StrEnum):
    """State of a node."""

    STOP = "STOP"
    STARTING = "STARTING"
    WAIT = "WAIT"
    UP = "UP"
    DRAINING = "DRAINING"


class ModuleChecker(CheckerEntry):
    """Type ``module``: how is another farm's node on this host?

    Attributes:
        farm: Name of the other farm.
        states: States of its node that count as healthy.
    """

    often_shared: ClassVar[bool] = True

    type: Literal["module"] = "module"
    farm: Name
    states: Annotated[
        tuple[Annotated[State, choice(State)], ...], NonEmpty, BeforeValidator(_one_or_more)
    ] = (State.UP,)
