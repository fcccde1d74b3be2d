"""What a rollout asks of a broker, through its administrator's API; what decides is proved from its log."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sealwright.client.admin import AdminClient
from sealwright.client.proofs import BROKER_PROOFS
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import validated
from sealwright.crypto.encoding import b64url_decode, hex_decode, rfc3339_decode
from sealwright.errors import AppraisalError, AppraisalFailure, UnavailableError, VerificationError
from sealwright.ops.rollout.statement import Counted
from sealwright.protocol.commitment import Leaf, LogEntry, Openings, commitment_root, field_leaf
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LogProof

PAGE = 200  # decisions of one answer
MAX_DECISIONS = 100_000  # looked at for one gate


class RolloutBroker:
    """One key of one broker."""

    def __init__(self, client: AdminClient, kid: str) -> None:
        self._client, self._kid = client, kid

    def identity(self) -> tuple[bytes, str]:
        """Return the broker's root and log key, as it says itself."""
        match self._client.ask("GET", "/status"):
            case {"root": str(root), "log_key": str(log_key)}:
                return b64url_decode(root, length=32), log_key
            case _:
                raise UnavailableError(
                    "the broker's status names no root", code="malformed-answer", stage="answer"
                )

    def key(self) -> tuple[str, bytes]:
        """Return the key's tenant, and the digest of its policy."""
        return _key(self._client.ask("GET", f"/keys/{self._kid}"))

    def require_policy(self, digest: bytes) -> str:
        """Check that the key has this policy; return its tenant. Raises VerificationError `rollout-broker-differs`."""
        tenant, found = self.key()
        if not hmac.compare_digest(found, digest):
            raise VerificationError(
                f"key {self._kid} has the policy {found.hex()[:16]}…, and the rollout stands at {digest.hex()[:16]}…: "
                "`rollout apply`, if a step broke off",
                code="rollout-broker-differs",
                stage="broker",
            )
        return tenant

    def set_policy(self, raw: bytes, digest: bytes, *, force: bool = False) -> None:
        """Give the key another policy; its digest is checked in the answer. Raises as the broker says.

        Args:
            force: also one that locks out every enclave with a lease, as a revocation may have to.
        """
        body = {"policy": raw.decode(), "force": force}
        answer = self._client.ask("POST", f"/keys/{self._kid}/policy", body)
        if _key(answer)[1] != digest:
            raise VerificationError(
                "the broker set another policy than it was given",
                code="rollout-broker-differs",
                stage="broker",
            )

    def attestations(
        self, *, log_key: str, policy: bytes, builds: list[bytes], wanted: int, since: datetime
    ) -> list[Counted]:
        """Return the decisions that show a new build at work, each opened and proved to be in the broker's log.

        Args:
            log_key: the verifier key that the plan names.
            policy: digest of the canary policy.
            wanted: how many sessions with a granted lease; and one release of the key.

        Raises:
            AppraisalError: `rollout-not-proven`. VerificationError: an opening or a proof does not hold.
        """
        tenant, _ = self.key()
        codes = {build.hex() for build in builds}
        log = LogPolicy.of_key(log_key)
        leases: dict[str, Counted] = {}  # by session
        releases: dict[
            str, tuple[int, Openings]
        ] = {}  # by lease; newest first, so a release comes before its lease
        release: Counted | None = None
        for index, openings, said in self._decisions(since):
            if said.get("verdict") != "grant" or said.get("tenant") != tenant:
                continue
            session, lease = str(said.get("session")), str(said.get("lease_id"))
            if said.get("action") == "release" and self._under(said, policy):
                releases[lease] = (index, openings)
            elif said.get("action") == "lease" and _new(said, codes, policy) and session not in leases:
                if release is None and lease in releases:
                    release = self._proved(*releases[lease], log)
                leases[session] = self._proved(index, openings, log)
            if len(leases) >= wanted and release is not None:
                break
        if len(leases) < wanted or release is None:
            text = f"{len(leases)} of {wanted} attestations of the new build since then, and " + (
                "a release of the key" if release else "no release of the key"
            )
            raise AppraisalError([AppraisalFailure(text, code="rollout-not-proven")], stage="promote")
        return sorted([*leases.values(), release], key=lambda one: one.index)

    def _under(self, said: Mapping[str, Any], policy: bytes) -> bool:
        return said.get("kid") == self._kid and said.get("policy_digest") == policy.hex()

    def _decisions(self, since: datetime) -> Iterator[tuple[int, Openings, Mapping[str, Any]]]:
        """Yield decisions back to `since`, newest first, as their openings say; nothing is proved yet."""
        before: int | None = None
        for _ in range(MAX_DECISIONS // PAGE):
            place = "" if before is None else f"&before={before}"
            found = self._client.ask("GET", f"/decisions?limit={PAGE}&openings=1{place}").get("decisions")
            if not isinstance(found, list) or not found:
                return
            for one in found:
                index, openings = _decision(one)
                said = {name: parse_json(opening.value) for name, opening in openings.fields.items()}
                if rfc3339_decode(str(said.get("at"))) < since:
                    return
                yield index, openings, said
                if before is not None and index >= before:
                    raise UnavailableError(
                        "the broker's decisions go round", code="malformed-answer", stage="answer"
                    )
                before = index

    def _proved(self, index: int, openings: Openings, log: LogPolicy) -> Counted:
        """Return a decision, proved to be in the log: what was counted is what its entry commits to."""
        leaves = tuple(
            Leaf(name=name, leaf=field_leaf(openings.record_id, name, openings.fields[name]))
            for name in sorted(openings.fields)
        )
        root = commitment_root(leaves)
        entry = LogEntry(type="decision", commitment=root).encode()
        raw = self._client.fetch("GET", f"{BROKER_PROOFS}{hashlib.sha256(entry).hexdigest()}")
        logged = LogProof.parse(raw).verify(entry, log)
        return Counted(index=logged.index, commitment=root)


def _new(said: Mapping[str, Any], codes: set[str], policy: bytes) -> bool:
    policies = said.get("policies")
    return said.get("build") in codes and isinstance(policies, list) and policy.hex() in policies


def window(at: datetime, within_s: int) -> datetime:
    """Return the oldest time that counts."""
    return at - timedelta(seconds=within_s)


def _key(answer: Mapping[str, Any]) -> tuple[str, bytes]:
    match answer:
        case {"tenant": str(tenant), "policy_digest": str(digest)}:
            return tenant, hex_decode(digest, length=32)
        case _:
            raise UnavailableError(
                "the broker's answer describes no key", code="malformed-answer", stage="answer"
            )


def _decision(one: object) -> tuple[int, Openings]:
    match one:
        case {"index": int(index), "openings": dict(openings)}:
            return index, validated(Openings, openings)
        case _:
            raise UnavailableError("a decision without its openings", code="malformed-answer", stage="answer")
