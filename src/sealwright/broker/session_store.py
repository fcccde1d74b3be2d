"""Attested sessions in the database, encrypted, so that another replica goes on with them.

Only a session that was attested is kept: an unused nonce is not worth it, and one that was used could be brought back
with an older row. Leases and budgets are rows of their own, which an older session cannot turn back.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, get_args

from pydantic import Field
from sqlalchemy import delete, select

from sealwright.broker.database import Database, upsert
from sealwright.broker.sealed import Sealer
from sealwright.broker.sessions import SESSION_LIFE, Attested, AttestedGuest, GivenLease, Session
from sealwright.broker.tables import SESSIONS
from sealwright.crypto.document import Bytes, Bytes32, Document, Record, Time
from sealwright.errors import FormatError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType
from sealwright.protocol.enclave_config import EnclaveConfig, TenantList
from sealwright.protocol.jwe import EcPubkey
from sealwright.protocol.kbs_guest import InitData
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.lease import Lease

MAX_SESSION = 8 << 20  # bytes
_PLACE = "sessions"


class _Attested(Record):
    envelope: Bytes
    report_data: Bytes
    device_nonce: Bytes
    keyset: Keyset
    config: EnclaveConfig
    openings: dict[str, TenantList]
    token: str
    ear_digest: Bytes
    record: Bytes | None = None


class _Guest(Record):
    envelope: EvidenceEnvelope
    report_data: Bytes
    device_nonce: Bytes
    init_data: InitData | None = None
    tee_pubkey: EcPubkey
    evidence_digest: Bytes
    token: str
    ear_digest: Bytes


class _Given(Record):
    lease: Lease
    envelope: Bytes
    callers: Bytes


class _Release(Record):
    rests_on: Bytes
    answer: Bytes


class StoredSession(Document):
    """A session as it lies in the database, inside its seal."""

    session_id: str
    tee: Annotated[str, Field(pattern=f"^({'|'.join(get_args(PlatformType))})$")]
    ends: Time
    challenge: Bytes32
    hash_name: str | None = None
    attested: _Attested | None = None
    guest: _Guest | None = None
    leases: dict[str, _Given]
    releases: dict[str, _Release]


class SessionStore:
    """Sessions by their names and by their guests' tokens. Called under the state's lock."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database, self._sealer = database, sealer

    def save(self, session: Session) -> None:
        """Keep an attested session: durable when this returns. Raises UnavailableError."""
        plain = _stored(session).encode()
        ends = int((session.ends + SESSION_LIFE).timestamp())
        rows = [
            {"name": name, "ends": ends, "body": self._sealer.seal(_PLACE, name, plain)}
            for name in _names(session)
        ]
        with self._database.begin() as db:
            statement = upsert(db, SESSIONS)
            changed = {"ends": statement.excluded.ends, "body": statement.excluded.body}
            db.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changed), rows)

    def load(self, name_or_token: str) -> Session | None:
        """Return a session that this broker kept, by its id or its guest's token; or None."""
        name = _name(name_or_token)
        with self._database.begin() as db:
            body = db.execute(select(SESSIONS.c.body).where(SESSIONS.c.name == name)).scalar()
        if body is None:
            return None
        try:
            return _session(
                StoredSession.parse(self._sealer.open(_PLACE, name, bytes(body)), limit=MAX_SESSION)
            )
        except FormatError:  # of another version: the peer begins again
            return None
        except VerificationError:  # not ours: as good as none
            return None

    def forget(self, session: Session) -> None:
        """Remove a session."""
        with self._database.begin() as db:
            db.execute(delete(SESSIONS).where(SESSIONS.c.name.in_(_names(session))))

    def sweep(self, now_s: int) -> None:
        """Remove sessions that ended before `now_s` (s since 1970)."""
        with self._database.begin() as db:
            db.execute(delete(SESSIONS).where(SESSIONS.c.ends < now_s))


def _names(session: Session) -> list[bytes]:
    known = [session.session_id, *([] if session.guest is None else [session.guest.token])]
    return [_name(text) for text in known]


def _name(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _stored(session: Session) -> StoredSession:
    def fields(of: object) -> dict[str, object]:
        return {name: getattr(of, name) for name in of.__dataclass_fields__}  # type: ignore[attr-defined]

    return StoredSession(
        session_id=session.session_id,
        tee=session.tee,
        ends=session.ends,
        challenge=session.challenge,
        hash_name=session.hash_name,
        attested=None if session.attested is None else _Attested.model_validate(fields(session.attested)),
        guest=None if session.guest is None else _Guest.model_validate(fields(session.guest)),
        leases={tenant: _Given.model_validate(fields(given)) for tenant, given in session.leases.items()},
        releases={
            kid: _Release(rests_on=rests_on, answer=answer)
            for kid, (rests_on, answer) in session.releases.items()
        },
    )


def _session(stored: StoredSession) -> Session:
    def fields(of: Record) -> dict[str, object]:
        return {name: getattr(of, name) for name in type(of).model_fields}

    attested, guest = stored.attested, stored.guest
    return Session(
        session_id=stored.session_id,
        tee=stored.tee,  # type: ignore[arg-type]
        nonce=None,
        ends=stored.ends,
        challenge=stored.challenge,
        hash_name=stored.hash_name,  # type: ignore[arg-type]
        attested=None if attested is None else Attested(**fields(attested)),  # type: ignore[arg-type]
        guest=None if guest is None else AttestedGuest(**fields(guest)),  # type: ignore[arg-type]
        leases={tenant: GivenLease(**fields(given)) for tenant, given in stored.leases.items()},  # type: ignore[arg-type]
        releases={kid: (given.rests_on, given.answer) for kid, given in stored.releases.items()},
    )
