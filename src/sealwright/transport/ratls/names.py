"""Nonces of attested TLS: given out and redeemed, and carried to a server in the name that a client asks for."""

from __future__ import annotations

import base64
import ipaddress
import re
import secrets
import threading
import time
from collections import OrderedDict

from sealwright.errors import VerificationError

NONCE_SIZE = 32  # bytes, of a nonce that travels in a server name
NO_HOST = "ratls.invalid"  # the rest of the name where the peer has an address only
_LABEL = re.compile(r"n[a-z2-7]{52}", re.ASCII)


class Nonces:
    """Nonces that were given out and not yet come back; each counts once. In memory, bounded, thread-safe."""

    def __init__(self, *, life_s: float = 60, most: int = 4096) -> None:
        self._life_s = life_s
        self._most = most
        self._ends: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def issue(self) -> bytes:
        """Return a new nonce (32 bytes); of too many, the oldest are forgotten."""
        nonce = secrets.token_bytes(NONCE_SIZE)
        with self._lock:
            self._ends[nonce] = time.monotonic() + self._life_s
            while len(self._ends) > self._most:
                self._ends.popitem(last=False)
        return nonce

    def redeem(self, nonce: bytes | None) -> bytes:
        """Return `nonce` if it was issued, lately, and has not come back. Raises VerificationError `nonce-mismatch`."""
        with self._lock:
            end = self._ends.pop(nonce, 0.0) if nonce is not None else 0.0
        if nonce is None or time.monotonic() >= end:
            raise VerificationError(
                "the certificate's nonce was not issued here, is too old, or was used",
                code="nonce-mismatch",
                stage="nonce",
            )
        return nonce


def name_with(nonce: bytes, host: str | None) -> str:
    """Return the server name that carries a nonce of 32 bytes before the host's own name."""
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce in a server name has {NONCE_SIZE} bytes")
    label = "n" + base64.b32encode(nonce).decode().rstrip("=").lower()
    return f"{label}.{NO_HOST if not host or _is_address(host) else host}"


def nonce_or_none(name: str | None) -> bytes | None:
    """Return the nonce in a server name, if it carries one."""
    label = (name or "").partition(".")[0].lower()
    if not _LABEL.fullmatch(label):
        return None
    nonce = base64.b32decode(label[1:].upper() + "====")
    return nonce if name_with(nonce, None).startswith(f"{label}.") else None


def nonce_in(name: str | None) -> bytes:
    """Return the nonce in the server name of one's own connection."""
    nonce = nonce_or_none(name)
    if nonce is None:
        raise RuntimeError("a client's connection has a nonce in its server name")
    return nonce


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
