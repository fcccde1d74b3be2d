"""Connections for a workload that has no network: only to hosts that stand in its enclave config."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from urllib.parse import urlsplit

from sealwright.attester.quoter import layout
from sealwright.crypto.canonical import parse_json
from sealwright.errors import AppraisalError, AppraisalFailure, FormatError, UnavailableError

_TIMEOUT_S = 10.0
_PORTS = {"http": 80, "https": 443}


def allowed_peers(config: bytes) -> frozenset[tuple[str, int]]:
    """Return (host, port) of each broker and egress entry of an enclave config, none if it is not one."""
    try:
        document = parse_json(config)
    except FormatError:
        return frozenset()
    urls = [broker.get("url", "") for broker in _items(document, "brokers") if isinstance(broker, dict)]
    found = {_peer(str(url)) for url in urls} | {_peer(f"tcp://{e}") for e in _items(document, "egress")}
    return frozenset(peer for peer in found if peer is not None)


def _items(document: object, member: str) -> list[object]:
    found = document.get(member) if isinstance(document, dict) else None
    return found if isinstance(found, list) else []


def _peer(url: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port else None


def serve_connections(channel: socket.socket, allowed: frozenset[tuple[str, int]]) -> None:
    """Answer the workload's requests for connections until it ends."""
    while request := channel.recv(layout.PACKET):
        try:
            asked = layout.unpacked(request)
            with connection(str(asked["host"]), int(asked["port"]), allowed) as peer:
                socket.send_fds(channel, [layout.OK], [peer.fileno()])
        except (AppraisalError, UnavailableError, LookupError, TypeError, ValueError) as exc:
            channel.send(layout.failure(exc))


def connection(host: str, port: int, allowed: frozenset[tuple[str, int]]) -> socket.socket:
    """Return a TCP connection to an allowed peer.

    Raises:
        AppraisalError: `peer-not-allowed`.
        UnavailableError: `peer-unreachable`, also where its name resolves to what no name may stand for.
    """
    if (host.lower(), port) not in allowed:
        raise AppraisalError(
            [AppraisalFailure(f"{host}:{port} is not in the enclave config", code="peer-not-allowed")],
            stage="egress",
        )
    try:
        peer = _connected(host, port)
    except OSError as exc:
        raise UnavailableError(
            f"{host}:{port} cannot be reached ({exc.strerror or type(exc).__name__})",
            code="peer-unreachable",
            stage="egress",
        ) from exc
    peer.settimeout(None)
    return peer


def _connected(host: str, port: int) -> socket.socket:
    failure = OSError("its name resolves to no address that it may have")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not _may_stand_for(host, str(address[0])):
            continue
        peer = socket.socket(family, kind, protocol)
        try:
            peer.settimeout(_TIMEOUT_S)
            peer.connect(address)
        except OSError as exc:
            peer.close()
            failure = exc
        else:
            return peer
    raise failure


def _may_stand_for(host: str, address: str) -> bool:
    """Return whether a connection to `host` may go to `address`.

    Whoever answers for the name could else point it at this machine, or at the metadata service of its
    cloud. A config that means these has to say so: then its digest says so too.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if host == "localhost":
        return ip.is_loopback
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]"))
        return True
    return not (ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast)
