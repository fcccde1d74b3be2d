"""Sessions of the KBS handshake: few, short, each good for one attestation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from sealwright.errors import RevokedError, UnavailableError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.jwe import EcPubkey
from sealwright.protocol.kbs_guest import HashName, InitData
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
    record: bytes | None = None  # commitment of the log's entry with the evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedGuest:
    """What a guest's session proved; the evidence is kept to be appraised again."""

    envelope: EvidenceEnvelope
    report_data: bytes  # 64 bytes
    device_nonce: bytes  # 32 bytes
    init_data: InitData | None
    tee_pubkey: EcPubkey
    evidence_digest: bytes
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
    tee: PlatformType
    nonce: bytes | None
    ends: datetime
    attested: Attested | None = None
    leases: dict[str, GivenLease] = field(default_factory=dict)
    # kid, or kid?use: what the release rests on, and the answer
    releases: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    challenge: bytes = b""  # the nonce, kept for what binds to it
    hash_name: HashName | None = None  # of report data, where the session is a guest's
    guest: AttestedGuest | None = None

    @property
    def name(self) -> str:
        """What decisions call it: SHA-256 of the id, since the id is a credential."""
        return session_name(self.session_id)


def session_name(session_id: str) -> str:
    """Return SHA-256 of a session's id, hex."""
    return hashlib.sha256(session_id.encode()).hexdigest()


def check_form_of(session: Session, *, guest: bool) -> None:
    """Prove that a session was opened for this form of attestation. Raises VerificationError: `session-form`."""
    if (session.hash_name is not None) != guest:
        raise VerificationError(
            "the session was opened for the other form of attestation; begin with auth",
            code="session-form",
            stage="session",
        )


class Keeper(Protocol):
    """Keeps attested sessions where another replica finds them: see `session_store.SessionStore`."""

    def save(self, session: Session) -> None:
        """Keep a session as it is now."""
        ...

    def load(self, name_or_token: str) -> Session | None:
        """Return a session that was kept, by its id or its guest's token."""
        ...

    def forget(self, session: Session) -> None:
        """Remove a session."""
        ...

    def sweep(self, now_s: int) -> None:
        """Remove sessions that ended before `now_s` (s since 1970)."""
        ...


class Sessions:
    """All open sessions, in order of their age."""

    def __init__(
        self, random: Callable[[int], bytes], *, limit: int = MAX_SESSIONS, keeper: Keeper | None = None
    ) -> None:
        """Args: keeper: of attested sessions; None: they end with this process."""
        self._random = random
        self._limit = limit
        self._keeper = keeper
        self._open: dict[str, Session] = {}
        self._tokens: dict[bytes, str] = {}  # SHA-256 of a guest's token: session id

    def start(self, tee: PlatformType, now: datetime, *, hash_name: HashName | None = None) -> Session:
        """Open a session.

        Args:
            hash_name: of report data, for a guest of Confidential Containers.

        Raises:
            UnavailableError: `too-many-sessions`.
        """
        self._make_room(now)
        nonce = self._random(32)
        session = Session(
            session_id=self._random(16).hex(),
            tee=tee,
            nonce=nonce,
            challenge=nonce,
            ends=now + SESSION_LIFE,
            hash_name=hash_name,
        )
        self._open[session.session_id] = session
        return session

    def get(self, session_id: str, now: datetime) -> Session:
        """Return an open session.

        Raises:
            VerificationError: `session-unknown`. RevokedError: `session-expired`.
        """
        session = self._open.get(session_id) or self._loaded(session_id)
        if session is None or session.session_id != session_id:
            raise VerificationError(
                "there is no such session; begin with auth", code="session-unknown", stage="session"
            )
        if now >= session.ends:
            raise RevokedError(
                "the session has ended; begin with auth", code="session-expired", stage="session"
            )
        return session

    def attested(self, session: Session, guest: AttestedGuest) -> None:
        """Remember what a guest's session proved; from now on its token names the session too."""
        session.guest = guest
        self.keep(session)
        self._tokens[_token_name(guest.token)] = session.session_id

    def find(self, name: str, now: datetime) -> Session:
        """Return an open session by its id or by the token it was answered with. Raises as `get`."""
        self._known(name)
        return self.get(self._tokens.get(_token_name(name), name), now)

    def keep(self, session: Session) -> None:
        """Make durable what an attested session has become, before it is answered. Raises UnavailableError."""
        if self._keeper is not None:
            self._keeper.save(session)

    def is_guest(self, name: str) -> bool:
        """Say whether a session, by its id or its token, is a guest's; what is not known is none."""
        session = self._known(name)
        return session is not None and session.hash_name is not None

    def end(self, session: Session) -> None:
        """Forget a session."""
        self._forget(session.session_id)
        if self._keeper is not None:
            self._keeper.forget(session)

    def _known(self, name: str) -> Session | None:
        return self._open.get(self._tokens.get(_token_name(name), name)) or self._loaded(name)

    def _loaded(self, name: str) -> Session | None:
        """Return a session that another replica attested, from now on open here too."""
        session = None if self._keeper is None else self._keeper.load(name)
        if session is not None:
            self._open[session.session_id] = session
            if session.guest is not None:
                self._tokens[_token_name(session.guest.token)] = session.session_id
        return session

    def _forget(self, name: str) -> None:
        session = self._open.pop(name, None)
        if session is not None and session.guest is not None:
            self._tokens.pop(_token_name(session.guest.token), None)

    def _make_room(self, now: datetime) -> None:
        # An ended session is remembered for another life, to say "ended" rather than "unknown".
        gone = [name for name, session in self._open.items() if now >= session.ends + SESSION_LIFE]
        for name in gone:
            self._forget(name)
        if gone and self._keeper is not None:
            self._keeper.sweep(int(now.timestamp()))
        if len(self._open) < self._limit:
            return
        for name, session in self._open.items():
            if (session.attested is None and session.guest is None) or now >= session.ends:
                self._forget(name)
                return
        raise UnavailableError("too many sessions are open", code="too-many-sessions", stage="session")


def _token_name(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
