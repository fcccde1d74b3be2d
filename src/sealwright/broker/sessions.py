"""Sessions of the KBS handshake: few, short, each good for one attestation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sealwright.errors import RevokedError, UnavailableError, VerificationError
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.lease import Lease

SESSION_LIFE = timedelta(minutes=5)
MAX_SESSIONS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What a session proved; the evidence is kept to be appraised again."""

    envelope: bytes  # canonical evidence envelope
    report_data: bytes  # 64 bytes
    device_nonce: bytes  # 32 bytes
    keyset: Keyset
    config: EnclaveConfig
    openings: dict[str, TenantList]
    token: str
    ear_digest: bytes


@dataclass(slots=True, kw_only=True)
class GivenLease:
    """A lease as it was answered."""

    lease: Lease
    envelope: bytes  # DSSE
    callers: bytes  # DSSE


@dataclass(slots=True, kw_only=True)
class Session:
    """One handshake. `nonce` is None once evidence was sent for it."""

    session_id: str
    tee: str
    nonce: bytes | None
    ends: datetime
    attested: Attested | None = None
    leases: dict[str, GivenLease] = field(default_factory=dict)
    releases: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # kid: what it rests on, answer
    challenge: bytes = b""  # the nonce, kept for what binds to it

    @property
    def name(self) -> str:
        """What decisions call it: SHA-256 of the id, since the id is a credential."""
        return session_name(self.session_id)


def session_name(session_id: str) -> str:
    """Return SHA-256 of a session's id, hex."""
    return hashlib.sha256(session_id.encode()).hexdigest()


class Sessions:
    """All open sessions, in order of their age."""

    def __init__(self, random: Callable[[int], bytes], *, limit: int = MAX_SESSIONS) -> None:
        self._random = random
        self._limit = limit
        self._open: dict[str, Session] = {}

    def start(self, tee: str, now: datetime) -> Session:
        """Open a session.

        Raises:
            UnavailableError: `too-many-sessions`.
        """
        self._make_room(now)
        nonce = self._random(32)
        session = Session(
            session_id=self._random(16).hex(), tee=tee, nonce=nonce, challenge=nonce, ends=now + SESSION_LIFE
        )
        self._open[session.session_id] = session
        return session

    def get(self, session_id: str, now: datetime) -> Session:
        """Return an open session.

        Raises:
            VerificationError: `session-unknown`. RevokedError: `session-expired`.
        """
        session = self._open.get(session_id)
        if session is None:
            raise VerificationError(
                "there is no such session; begin with auth", code="session-unknown", stage="session"
            )
        if now >= session.ends:
            raise RevokedError(
                "the session has ended; begin with auth", code="session-expired", stage="session"
            )
        return session

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._open.pop(session.session_id, None)

    def _make_room(self, now: datetime) -> None:
        # An ended session is remembered for another life, to say "ended" rather than "unknown".
        gone = [name for name, session in self._open.items() if now >= session.ends + SESSION_LIFE]
        for name in gone:
            del self._open[name]
        if len(self._open) < self._limit:
            return
        for name, session in self._open.items():
            if session.attested is None or now >= session.ends:
                del self._open[name]
                return
        raise UnavailableError("too many sessions are open", code="too-many-sessions", stage="session")
