"""What the host says of the guest's network, and the interface made so. The host is not trusted with more than that.

Names are looked up in the host's list and nowhere else: there is no DNS. A false address leads to a server that
cannot show the root in the measured config.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.crypto.document import Document, Record
from sealwright.errors import UnavailableError

MAX_NETWORK = 64 * 1024  # bytes
STAGE = "network"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_SYS_NET = Path("/sys/class/net")
_WAIT_S = 30.0
_NEWLINK, _NEWADDR, _NEWROUTE, _ERROR = 16, 20, 24, 2
_REQUEST_ACK, _CREATE = 1 | 4, 0x400
_UP = 1
_UNIVERSE, _LINK = 0, 253  # scopes
_HEADER = struct.Struct("=IHHII")


def _parsed(parse: Callable[[str], object], text: str) -> bool:
    """Return whether `text` is an address as addresses are written, and nothing besides: it goes into rules and files.

    A zone behind `%` would be any text at all.
    """
    try:
        return "%" not in text and str(parse(text)) == text
    except ValueError:
        return False


class HostAddress(Record):
    """A name of the measured config, and the addresses that the host says it has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
    addresses: Annotated[list[str], Field(min_length=1, max_length=8)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(_parsed(ipaddress.ip_address, text) for text in self.addresses):
            raise ValueError("an address is not written as IP addresses are")
        return self


class GuestNetwork(Document):
    """`network.json` of a config disk."""

    format: Literal["sealwright-guest-network/v1"] = "sealwright-guest-network/v1"
    addresses: Annotated[list[str], Field(min_length=1, max_length=8)]  # with prefix length
    gateways: Annotated[list[str], Field(max_length=2)]  # at most one of each family
    hosts: Annotated[list[HostAddress], Field(max_length=256)]
    listen: Annotated[int, Field(ge=1, le=65535)]  # port that clients reach
    mtu: Annotated[int, Field(ge=1280, le=9216)]
    mac: Annotated[
        str, Field(pattern=r"^(([0-9a-f]{2}:){5}[0-9a-f]{2})?$")
    ]  # of the interface; empty: the only one

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(_parsed(ipaddress.ip_interface, text) for text in self.addresses):
            raise ValueError("an address is not written as address/prefix length")
        if not all(_parsed(ipaddress.ip_address, text) for text in self.gateways):
            raise ValueError("a gateway is not written as IP addresses are")
        if len({host.name.lower() for host in self.hosts}) != len(self.hosts):
            raise ValueError("a name stands twice")
        return self

    def resolve(self, host: str) -> list[Address]:
        """Return the addresses of a host of the config: itself, if it is one, or those in the list.

        Raises:
            UnavailableError: `host-not-mapped`.
        """
        try:
            return [ipaddress.ip_address(host.strip("[]"))]
        except ValueError:
            pass
        for entry in self.hosts:
            if entry.name.lower() == host.lower():
                return [ipaddress.ip_address(text) for text in entry.addresses]
        raise UnavailableError(
            f"the config names {host}, of which the host gave no address",
            code="host-not-mapped",
            stage=STAGE,
        )

    def hosts_file(self) -> str:
        """Return the content of /etc/hosts."""
        lines = [f"{text} {entry.name}" for entry in self.hosts for text in entry.addresses]
        return "\n".join(["127.0.0.1 localhost", "::1 localhost", *lines, ""])


def configure(network: GuestNetwork, *, sys_net: Path = _SYS_NET, wait_s: float = _WAIT_S) -> str:
    """Set up loopback and the one interface; return its name.

    Raises:
        UnavailableError: `no-interface`. OSError: as the kernel answers.
    """
    name = find_interface(network.mac, sys_net=sys_net, wait_s=wait_s)
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)) as netlink:
        netlink.bind((0, 0))
        for request in requests(network, socket.if_nametoindex(name), socket.if_nametoindex("lo")):
            _send(netlink, request)
    return name


def find_interface(mac: str, *, sys_net: Path = _SYS_NET, wait_s: float = _WAIT_S) -> str:
    """Return the interface that has `mac`, or the only one that is a device.

    Raises:
        UnavailableError: `no-interface`: there is none, or several and none was chosen.
    """
    ends = time.monotonic() + wait_s
    while True:
        devices = [one for one in sorted(sys_net.iterdir()) if (one / "device").exists()]
        found = [one.name for one in devices if mac in ("", (one / "address").read_text().strip())]
        if len(found) == 1:
            return found[0]
        if found or time.monotonic() > ends:
            raise UnavailableError(
                f"{len(found)} network interfaces fit the host's list", code="no-interface", stage=STAGE
            )
        time.sleep(0.1)


def requests(network: GuestNetwork, index: int, loopback: int) -> Iterator[bytes]:
    """Yield the netlink requests, without sequence numbers. rtnetlink(7).

    Args:
        index, loopback: interface numbers.
    """
    yield _link(loopback, mtu=None)
    yield _link(index, mtu=network.mtu)
    interfaces = [ipaddress.ip_interface(text) for text in network.addresses]
    for one in interfaces:
        head = struct.pack("=BBBBI", _family(one.ip), one.network.prefixlen, 0, _UNIVERSE, index)
        # IFA_LOCAL, IFA_ADDRESS; a duplicate of an IPv6 address is not waited for (IFA_F_NODAD)
        flags = _attribute(8, struct.pack("=I", 2)) if one.version == 6 else b""
        body = head + _attribute(2, one.ip.packed) + _attribute(1, one.ip.packed) + flags
        yield _request(_NEWADDR, _CREATE, body)
    for text in network.gateways:
        gateway = ipaddress.ip_address(text)
        if not any(gateway in one.network for one in interfaces if one.version == gateway.version):
            yield _route(gateway, index, direct=True)
        yield _route(gateway, index, direct=False)


def _link(index: int, *, mtu: int | None) -> bytes:
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _UP, _UP)
    if mtu is not None:
        body += _attribute(4, struct.pack("=I", mtu))  # IFLA_MTU
    return _request(_NEWLINK, 0, body)


def _route(gateway: Address, index: int, *, direct: bool) -> bytes:
    """Return the route to the gateway itself, or the default route by it."""
    prefix, scope = (gateway.max_prefixlen, _LINK) if direct else (0, _UNIVERSE)
    head = struct.pack(
        "=BBBBBBBBI", _family(gateway), prefix, 0, 0, 254, 4, scope, 1, 0
    )  # main, static, unicast
    body = head + _attribute(1 if direct else 5, gateway.packed) + _attribute(4, struct.pack("=I", index))
    return _request(_NEWROUTE, _CREATE, body)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust(-(-len(value) // 4) * 4, b"\0")


def _request(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_ACK | flags, 0, 0) + body


def _send(netlink: socket.socket, request: bytes) -> None:
    netlink.send(request)
    answer = netlink.recv(4096)
    _, kind, *_ = _HEADER.unpack_from(answer)
    (error,) = struct.unpack_from("=i", answer, _HEADER.size)
    if kind != _ERROR or error:
        raise OSError(-error or 71, "netlink refuses")
