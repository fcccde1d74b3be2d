"""Connections for a workload that has no network: only to hosts that stand in its enclave config."""

from __future__ import annotations

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
        except (AppraisalError, UnavailableError, KeyError, ValueError) as exc:
            channel.send(layout.failure(exc))


def connection(host: str, port: int, allowed: frozenset[tuple[str, int]]) -> socket.socket:
    """Return a TCP connection to an allowed peer.

    Raises:
        AppraisalError: `peer-not-allowed`.
        UnavailableError: `peer-unreachable`.
    """
    if (host.lower(), port) not in allowed:
        raise AppraisalError(
            [AppraisalFailure(f"{host}:{port} is not in the enclave config", code="peer-not-allowed")],
            stage="egress",
        )
    try:
        peer = socket.create_connection((host, port), timeout=_TIMEOUT_S)
    except OSError as exc:
        raise UnavailableError(
            f"{host}:{port} cannot be reached ({exc.strerror or type(exc).__name__})",
            code="peer-unreachable",
            stage="egress",
        ) from exc
    peer.settimeout(None)
    return peer
