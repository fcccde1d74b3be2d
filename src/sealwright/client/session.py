"""When to verify, and to whom a request may be sealed: one client's view of one enclave. No I/O.

The transport asks `due` before each request, answers it with `attest` and `verified`, and seals only to
what `sealing` returns. Renewed leases come in with sealed response heads.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta

from sealwright.appraisal.policy import TrustFile
from sealwright.client.verifier import VerifiedEnclave, renewed, verify_attestation
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import CollateralError, FormatError, SealwrightError
from sealwright.protocol.attestation import AttestationRequest
from sealwright.protocol.lease import Lease

LEASE_MARGIN = timedelta(seconds=2)  # a request sealed now should arrive within its lease
MAX_LEASE_HEADER = 32 * 1024  # characters


class Session:
    """Holds what was verified of one enclave, and says when that has to be done again."""

    def __init__(self, *, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        """Args: random: source of nonces, by length in bytes."""
        self._random = random
        self._enclave: VerifiedEnclave | None = None
        self._trust: TrustFile | None = None
        self._why = "nothing was verified yet"

    @property
    def enclave(self) -> VerifiedEnclave | None:
        """What was verified last, under its latest lease."""
        return self._enclave

    def due(self, trust: TrustFile, *, at: datetime) -> str | None:
        """Return why the enclave has to be verified (again) before the next request, or None.

        Args:
            trust: as it stands now; another than last time asks for a new verification.
        """
        if self._trust is not None and trust != self._trust:
            self.forget("the trust file has changed")
        held = self._enclave
        if held is None:
            return self._why
        if at + LEASE_MARGIN >= held.lease.not_after or at < held.lease.not_before - timedelta(minutes=5):
            return "the lease has ended"
        if at >= held.keyset.not_after:
            return "the keyset has ended"
        if at >= held.broker_keys.not_after:
            return "the broker's keys have ended"
        return None

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
        self.forget("the last verification failed")
        enclave = verify_attestation(bundle, nonce=request.nonce, trust=trust, at=at)
        self._enclave, self._trust = enclave, trust
        return enclave

    def sealing(self, trust: TrustFile, *, at: datetime) -> VerifiedEnclave:
        """Return the enclave that a request may be sealed to now.

        Raises:
            CollateralError: `not-verified`: verify first. Others: trust file or lease are not in force.
        """
        trust.check_time(at)
        if (why := self.due(trust, at=at)) is not None or self._enclave is None:
            raise CollateralError(
                f"no verified enclave to seal to: {why}", code="not-verified", stage="session"
            )
        self._enclave.lease.check_time(at)
        return self._enclave

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

    def forget(self, why: str) -> None:
        """Hold nothing any more; `why` is told when the next request asks."""
        self._enclave, self._why = None, why


def _is_newer(envelope: bytes, held: Lease) -> bool:
    """Say whether a lease, still unverified, would run longer: the same one comes with every answer."""
    try:
        return Lease.unverified(envelope).not_after > held.not_after
    except FormatError:
        return True
