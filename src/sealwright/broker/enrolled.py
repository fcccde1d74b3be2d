"""Workers of training as a broker knows them: nonces that were given out, and evidence that answered one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sealwright.errors import RevokedError, UnavailableError, VerificationError
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.worker import WorkerEvidence

NONCE_LIFE = timedelta(minutes=5)
ENROLLED_LIFE = timedelta(hours=1)  # then a worker attests anew
MAX_NONCES = 4096
MAX_ENROLLED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """A worker whose evidence answered a nonce of this broker and was allowed."""

    evidence: WorkerEvidence
    keyset: Keyset
    keyset_digest: bytes
    evidence_digest: bytes  # of the document
    until: datetime


class Workers:
    """Who is enrolled. Lost with the process: whoever was enrolled attests anew. Used under the broker's lock."""

    def __init__(self, random: Callable[[int], bytes], *, life: timedelta = ENROLLED_LIFE) -> None:
        """Args: random: of cryptographic quality. life: how long evidence counts."""
        self._random, self._life = random, life
        self._nonces: dict[bytes, datetime] = {}
        self._enrolled: dict[bytes, Enrolled] = {}

    def nonce(self, now: datetime) -> bytes:
        """Return a fresh nonce (32 bytes), good once and for 5 minutes."""
        self._nonces = {nonce: until for nonce, until in self._nonces.items() if now < until}
        if len(self._nonces) >= MAX_NONCES:
            del self._nonces[next(iter(self._nonces))]  # the oldest: whoever asks for many pushes out others'
        nonce = self._random(32)
        self._nonces[nonce] = now + NONCE_LIFE
        return nonce

    def use(self, nonce: bytes, now: datetime) -> None:
        """Use up a nonce. Raises VerificationError: `nonce-mismatch`: not ours, used, or too old."""
        until = self._nonces.pop(nonce, None)
        if until is None or now >= until:
            raise VerificationError(
                "the evidence answers no open nonce of this broker: stale, or sent before",
                code="nonce-mismatch",
                stage="nonce",
            )

    def add(self, evidence: WorkerEvidence, now: datetime) -> Enrolled:
        """Remember a worker that was appraised. Raises UnavailableError: `too-many-sessions`."""
        self._enrolled = {name: one for name, one in self._enrolled.items() if now < one.until}
        keyset = evidence.parsed_keyset()
        if len(self._enrolled) >= MAX_ENROLLED and keyset.digest() not in self._enrolled:
            raise UnavailableError("too many workers are enrolled", code="too-many-sessions", stage="session")
        one = Enrolled(
            evidence=evidence,
            keyset=keyset,
            keyset_digest=keyset.digest(),
            evidence_digest=evidence.digest(),
            until=now + self._life,
        )
        self._enrolled[one.keyset_digest] = one
        return one

    def get(self, keyset_digest: bytes, now: datetime) -> Enrolled:
        """Return an enrolled worker. Raises VerificationError: `not-attested`. RevokedError: `session-expired`."""
        found = self._enrolled.get(keyset_digest)
        if found is None:
            raise VerificationError(
                "no worker of this keyset is enrolled", code="not-attested", stage="session"
            )
        if now >= found.until:
            raise RevokedError("the worker has to attest anew", code="session-expired", stage="session")
        return found

    def by_evidence(self, evidence: bytes, now: datetime) -> Enrolled:
        """Return the enrolled worker of an evidence document's digest. Raises as `get`."""
        for one in self._enrolled.values():
            if one.evidence_digest == evidence:
                return self.get(one.keyset_digest, now)
        raise VerificationError(
            "no worker of this evidence is enrolled", code="not-attested", stage="session"
        )
