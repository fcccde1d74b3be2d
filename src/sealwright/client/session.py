"""When to verify, and to whom a request may be sealed: one client's view of one enclave. No I/O.

Before each request the transport asks what is `held`; if nothing is, it sends `attest` and passes the answer
to `verified`. It seals only to what these two return. Renewed leases come in with sealed response heads.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

from sealwright.appraisal.policy import TrustFile
from sealwright.client.verifier import VerifiedEnclave, renewed, verify_attestation
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import FormatError, SealwrightError
from sealwright.protocol.attestation import AttestationRequest
from sealwright.protocol.lease import SKEW, Lease

LEASE_MARGIN = timedelta(seconds=2)  # a request sealed now should arrive within its lease
MAX_LEASE_HEADER = 32 * 1024  # characters


class Session:
    """Holds what was verified of one enclave, and says when that has to be done again."""

    def __init__(self, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        """Args: random: source of nonces, by length in bytes."""
        self._random = random
        self._enclave: VerifiedEnclave | None = None
        self._trust: TrustFile | None = None
        self._verified_at: datetime | None = None
        self.why = "nothing was verified yet"  # what asks for the next verification

    def held(self, trust: TrustFile, *, at: datetime) -> VerifiedEnclave | None:
        """Return the enclave that a request may be sealed to at `at`; None: verify (again) first, see `why`.

        Args:
            trust: as it stands now; another than last time asks for a new verification.

        Raises:
            CollateralError: the trust file is not in force.
        """
        trust.check_time(at)
        if self._trust is not None and trust != self._trust:
            self.forget("the trust file has changed")
        enclave = self._enclave
        if enclave is not None and (ended := _ended(enclave, at) or self._aged(trust, at)):
            self.why = ended
            return None
        return enclave

    @property
    def holding(self) -> VerifiedEnclave | None:
        """What was verified last, under its latest lease."""
        return self._enclave

    def attest(self, trust: TrustFile) -> AttestationRequest:
        """Return a request for evidence over a fresh nonce."""
        return AttestationRequest(nonce=self._random(32), tenant=trust.tenant)

    def verified(
        self, bundle: bytes, request: AttestationRequest, trust: TrustFile, *, at: datetime
    ) -> VerifiedEnclave:
        """Verify the answer to `request` and hold the enclave; a refusal leaves nothing held.

        Raises:
            SealwrightError: as `verify_attestation`.
        """
        try:
            enclave = verify_attestation(bundle, nonce=request.nonce, trust=trust, at=at)
        except SealwrightError as exc:
            self.forget(f"the last verification failed ({exc.code})")
            raise
        self._enclave, self._trust, self._verified_at = enclave, trust, at
        return enclave

    def take_lease(self, header: str, enclave: VerifiedEnclave, *, at: datetime) -> bool:
        """Take the renewed lease of a sealed response head; return whether it is held now.

        A lease that does not verify is not an answer's fault: the old one stays, and the enclave is
        verified anew before the next request.

        Args:
            header: base64url of the lease's DSSE envelope.
            enclave: whom the request was sealed to.
        """
        held, trust = self._enclave, self._trust
        if held is None or trust is None or held.keyset_digest != enclave.keyset_digest:
            return False
        try:
            envelope = b64url_decode(header[: MAX_LEASE_HEADER + 1])
            if not _is_newer(envelope, held.lease):
                return False
            self._enclave = renewed(held, envelope, trust=trust, at=at)
        except SealwrightError as exc:
            self.forget(f"a renewed lease was refused ({exc.code})")
            return False
        return True

    def under(self, header: str, enclave: VerifiedEnclave, *, at: datetime) -> VerifiedEnclave:
        """Return `enclave` under the lease of a sealed response head, which its receipt must name, held or not.

        One that does not verify leaves `enclave` as it is: then the receipt is refused, not the answer.
        """
        try:
            envelope = b64url_decode(header[: MAX_LEASE_HEADER + 1])
            lease_id = Lease.unverified(envelope).lease_id
            held = self._enclave
            for known in (enclave, enclave if held is None else held):
                if (known.keyset_digest, known.lease.lease_id) == (enclave.keyset_digest, lease_id):
                    return known
            return enclave if self._trust is None else renewed(enclave, envelope, trust=self._trust, at=at)
        except SealwrightError:
            return enclave

    def _aged(self, trust: TrustFile, at: datetime) -> str:
        """Return that the evidence is older than the trust file accepts; empty: it is not."""
        oldest = timedelta(seconds=trust.oldest_evidence_s)
        if self._verified_at is not None and self._verified_at - SKEW <= at < self._verified_at + oldest:
            return ""
        return "the evidence has aged"

    def forget(self, why: str) -> None:
        """Hold nothing any more; `why` is told when the next request asks."""
        self._enclave, self.why = None, why


def _ended(enclave: VerifiedEnclave, at: datetime) -> str:
    """Return what has ended, by the client's own clock; empty: nothing."""
    if at + LEASE_MARGIN >= enclave.lease.not_after or at < enclave.lease.not_before - SKEW:
        return "the lease has ended"
    if at >= enclave.keyset.not_after:
        return "the keyset has ended"
    if at >= enclave.broker_keys.not_after:
        return "the broker's keys have ended"
    return ""


def _is_newer(envelope: bytes, held: Lease) -> bool:
    """Say whether a lease, still unverified, would run longer: the same one comes with every answer."""
    try:
        return Lease.unverified(envelope).not_after > held.not_after
    except FormatError:
        return True
