"""What a verification takes as given: the time, further roots, the outage policy, and signatures seen before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal, TypeVar, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.endorsement.bag import Endorsements
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
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What an outage policy allows for one kind of collateral; by default nothing."""

    stale: timedelta = timedelta(0)  # how far past its next update
    missing: bool = False  # whether to decide without it


NO_TOLERANCE = Tolerance()


class Same:
    """A key that one very object has. It keeps the object alive, so that no other comes to its place in memory."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


def _weight(held: object) -> int:
    """Return how much a key keeps alive, bytes: whoever sends evidence chooses the endorsements, and their length."""
    match held:
        case Same():
            return _weight(held._value)
        case tuple():
            return sum(map(_weight, held))
        case bytes():
            return len(held)
        case x509.Certificate() | x509.CertificateRevocationList():
            return len(held.public_bytes(Encoding.DER))
        case Endorsements():
            return sum(
                _weight(part)
                for part in (held.certificates, held.crls, held.intel_json, held.rims, held.ocsp)
            )
    return 0


class WorkCache:
    """Remembers results that never change: what bytes parse to, that a chain of these certificates holds.

    What depends on the time, on revocation or on a policy is never kept here: it is checked each time, by the
    callers. Bounded; safe from several threads.
    """

    def __init__(self, size: int = 16 * 1024 * 1024, count: int = 1024) -> None:
        """Make an empty cache. Args: size: of all that is kept, as callers weigh it, bytes; count: entries."""
        self._size, self._count = size, count
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _T], *, size: int) -> _T:
        """Return what `make` returns, which is frozen, from memory if it was made before under `key`.

        Args:
            size: of what is made, bytes. What the key keeps alive counts beside it.

        Raises what `make` raises; a failure is not remembered.
        """
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                # Hashing a certificate costs as much as all the rest: the order matters only before something goes.
                if 2 * self._total > self._size or 2 * len(self._held) > self._count:
                    self._held.move_to_end(key)
                found: _T = held[0]
                return found
        made = make()
        size += _weight(key)
        with self._lock:
            if key not in self._held:
                self._held[key] = (made, size)
                self._total += size
            while self._total > self._size or len(self._held) > self._count:
                self._total -= self._held.popitem(last=False)[1][1]
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One verification's assumptions."""

    at: datetime  # aware
    roots: frozenset[bytes] = frozenset()  # SHA-256 of root certificates admitted beside the vendors' own
    outage: Mapping[CollateralKind, Tolerance] = field(default_factory=dict)
    work: WorkCache | None = None

    def parse(self, parse: Callable[[bytes], _T], raw: bytes) -> _T:
        """Return `parse(raw)`, which is frozen, from the cache if there is one. Raises what `parse` raises."""
        if self.work is None:
            return parse(raw)
        return self.work.get((parse, sha256(raw).digest()), lambda: parse(raw), size=len(raw))

    def remember(self, key: Hashable, make: Callable[[], _T], *, size: int = 4096) -> _T:
        """Return what `make` returns, from the cache if there is one; it must be frozen and never change.

        Args:
            key: names everything that the result rests on; objects stand in it as `Same`.
            size: how much memory it may hold beside what the key names, bytes.
        """
        return make() if self.work is None else self.work.get(key, make, size=size)

    def check_signature(self, key: bytes, verify: Callable[[], object]) -> None:
        """Run `verify`, which raises if a signature does not hold, unless it held before under `key`.

        Args:
            key: digest over the signed bytes, the signature and the public key. What holds once holds for ever.
        """
        self.remember(("signature", key), verify, size=256)

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
        if stale > self.outage.get(kind, NO_TOLERANCE).stale:
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
        if not self.outage.get(kind, NO_TOLERANCE).missing:
            raise CollateralError(f"{kind} is missing: {fix}", code="collateral-missing", stage="collateral")
        return CollateralUse(kind=kind, digest=b"", issued=None, next_update=None, age_s=0)


def _der_digest(certificate: x509.Certificate) -> bytes:
    return sha256(certificate.public_bytes(Encoding.DER)).digest()
