"""What a verification takes as given: the time, further roots, the outage policy, and signatures seen before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.errors import CollateralError, VerificationError
from sealwright.verify.verified import CollateralUse

CollateralKind = Literal[
    "amd-crl",
    "intel-root-crl",
    "intel-pck-crl",
    "intel-tcb-info",
    "intel-qe-identity",
    "nvidia-ocsp",
    "nvidia-rim",
    "software-crl",
    "tpm-crl",
]
COLLATERAL_KINDS: tuple[CollateralKind, ...] = get_args(CollateralKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What an outage policy allows for one kind of collateral; by default nothing."""

    stale: timedelta = timedelta(0)  # how far past its next update
    missing: bool = False  # whether to decide without it


class SignatureCache:
    """Remembers signatures that held, so that a chain is checked once. Bounded; safe from several threads.

    A signature that holds does so for ever: dates, revocation and purpose are checked each time, by the callers.
    """

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._held: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, key: bytes, verify: Callable[[], object]) -> None:
        """Run `verify`, which raises if the signature does not hold, unless it held before under `key`.

        Args:
            key: digest over the signed bytes, the signature and the public key.
        """
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return
        verify()
        with self._lock:
            self._held[key] = None
            if len(self._held) > self._size:
                self._held.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One verification's assumptions."""

    at: datetime  # aware
    roots: frozenset[bytes] = frozenset()  # SHA-256 of root certificates admitted beside the vendors' own
    outage: Mapping[CollateralKind, Tolerance] = field(default_factory=dict)
    signatures: SignatureCache | None = None

    def check_signature(self, key: bytes, verify: Callable[[], object]) -> None:
        """Run `verify` unless the cache knows that it held. Raises what `verify` raises."""
        if self.signatures is None:
            verify()
        else:
            self.signatures.check(key, verify)

    def check_issued(self, certificate: x509.Certificate, issuer: x509.Certificate, *, stage: str) -> None:
        """Prove that `issuer`'s key signed `certificate`, whose issuer name is its subject.

        Raises:
            VerificationError: `bad-certificate`.
        """
        key = sha256(_der_digest(certificate) + _der_digest(issuer)).digest()
        try:
            self.check_signature(key, lambda: certificate.verify_directly_issued_by(issuer))
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            raise VerificationError(
                "a certificate was not signed by the one it names", code="bad-certificate", stage=stage
            ) from None

    def use(
        self,
        kind: CollateralKind,
        digest: bytes,
        *,
        issued: datetime | None,
        next_update: datetime | None,
        fix: str,
    ) -> CollateralUse:
        """Return the use of a piece of collateral that is current, or no staler than the outage policy allows.

        Args:
            digest: SHA-256 of it, 32 bytes.
            issued: None where nothing says when; else it must not be after `at`.
            fix: what to do about it, for the message.

        Raises:
            CollateralError: `collateral-stale`, `collateral-not-yet`.
        """
        if issued is not None and self.at < issued:
            raise CollateralError(
                f"{kind} was issued after the time of verification; check the clock, or --at",
                code="collateral-not-yet",
                stage="collateral",
            )
        stale = timedelta(0) if next_update is None else max(timedelta(0), self.at - next_update)
        if stale > self.outage.get(kind, Tolerance()).stale:
            raise CollateralError(
                f"{kind} should have been replaced {stale} ago: {fix}",
                code="collateral-stale",
                stage="collateral",
            )
        age = timedelta(0) if issued is None else self.at - issued
        return CollateralUse(
            kind=kind,
            digest=digest,
            issued=issued,
            next_update=next_update,
            age_s=int(age.total_seconds()),
            stale_s=int(stale.total_seconds()),
        )

    def without(self, kind: CollateralKind, *, fix: str) -> CollateralUse:
        """Return the use of a kind of collateral that is not there, if the outage policy decides without it.

        Raises:
            CollateralError: `collateral-missing`.
        """
        if not self.outage.get(kind, Tolerance()).missing:
            raise CollateralError(f"{kind} is missing: {fix}", code="collateral-missing", stage="collateral")
        return CollateralUse(kind=kind, digest=b"", issued=None, next_update=None, age_s=0)


def _der_digest(certificate: x509.Certificate) -> bytes:
    return sha256(certificate.public_bytes(Encoding.DER)).digest()
