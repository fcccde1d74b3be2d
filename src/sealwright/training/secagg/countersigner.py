"""Signs one survivor set a round. It sees no update. Spec: docs/spec/secure-aggregation.md, Round, step 4."""

from __future__ import annotations

from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.training.secagg.enrol import refused
from sealwright.training.secagg.messages import Survivors
from sealwright.training.secagg.spec import RunSpec


class SignedRounds(Protocol):
    """What has to outlive a restart: the last round that was signed in each run, and the set."""

    def last(self, run_spec: bytes) -> tuple[int, bytes] | None:
        """Return the last round, and the digest of its survivor set."""
        ...

    def record(self, run_spec: bytes, round_number: int, survivors: bytes) -> None:
        """Make it durable before returning."""
        ...


class Countersigner:
    """One per run. What it remembers is recorded before it signs."""

    def __init__(self, spec: RunSpec, key: Ed25519PrivateKey, rounds: SignedRounds) -> None:
        """Raises ValueError: the key is not the one that the run specification names."""
        if key.public_key().public_bytes_raw() != spec.countersigner:
            raise ValueError("the run specification names another countersigner")
        self._spec, self._key, self._rounds = spec, key, rounds

    def sign(self, survivors: Survivors) -> bytes:
        """Return the countersigned set (DSSE); the same set again gets the same answer.

        Raises:
            VerificationError: `other-run`, `survivors-too-few`, `round-signed`.
        """
        run_spec = self._spec.digest()
        if survivors.run_spec != run_spec:
            raise refused("the survivor set is of another run", "other-run", "survivors")
        if len(survivors.alive) < self._spec.min_survivors:
            raise refused("fewer survivors than the run needs", "survivors-too-few", "survivors")
        last, digest = self._rounds.last(run_spec), survivors.digest()
        if last is not None and survivors.round <= last[0]:
            if (survivors.round, digest) == last:
                return survivors.sign(self._key)
            raise refused(
                "another survivor set of this round, or a later round, was signed before",
                "round-signed",
                "survivors",
            )
        self._rounds.record(run_spec, survivors.round, digest)
        return survivors.sign(self._key)
