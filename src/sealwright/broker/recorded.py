"""The evidence of those who hold a lease, as the log has it: to ask what a change would do to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from sealwright.appraisal.policy import KeyPolicy
from sealwright.broker.core import Core
from sealwright.broker.rows import KeyRow, LeaseRow
from sealwright.broker.state import View
from sealwright.broker.verdict import appraised
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import AppraisalError, AppraisalFailure, FormatError, SealwrightError
from sealwright.evidence.envelope import MAX_ENVELOPE, EvidenceEnvelope
from sealwright.protocol.enclave_config import MAX_CONFIG, EnclaveConfig
from sealwright.protocol.keyset import Keyset
from sealwright.protocol.report_data import Purpose, device_nonce, report_data

MAX_JUDGED = 64  # enclaves asked about, newest leases first


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One enclave's evidence, and what it must hold."""

    config: EnclaveConfig
    envelope: EvidenceEnvelope
    report_data: bytes  # 64 bytes
    device_nonce: bytes  # 32 bytes

    def admitted(self, core: Core, policy: KeyPolicy, at: datetime) -> bool:
        """Say whether a policy admits it at `at`."""
        try:
            policy.check_time(at)
            found = appraised(
                policy,
                self.config,
                self.envelope,
                report_data=self.report_data,
                device_nonce=self.device_nonce,
                appraise=core.appraise,
                at=at,
            )
        except SealwrightError:
            return False
        return not found.failures


def check_leaves_some(core: Core, view: View, row: KeyRow, new: KeyPolicy, at: datetime) -> None:
    """Prove that a new policy of a key admits one at least of the enclaves that hold a lease with it, if any does now.

    Judged on the evidence that they sent, at `at`. Who is refused by the policy in force too is not asked about, nor is
    one whose evidence is not there any more.

    Raises:
        AppraisalError: `would-lock-out`.
    """
    lost = 0
    for evidence in _holders(core, view, row, at):
        if not evidence.admitted(core, row.policy, at):
            continue
        if evidence.admitted(core, new, at):
            return
        lost += 1
    if lost:
        text = (
            f"{lost} enclaves hold a lease with {row.kid}, and this policy admits none of them: they would stop at "
            "their next renewal. Start enclaves that it admits first, or say that this is meant: --force"
        )
        raise AppraisalError([AppraisalFailure(text, code="would-lock-out")], stage="lock-out")


def _holders(core: Core, view: View, row: KeyRow, at: datetime) -> Iterator[Recorded]:
    leases = [
        lease
        for lease in view.all(LeaseRow, "lease")
        if lease.tenant == row.tenant and at < lease.not_after and row.kid in (lease.kids or ())
    ]
    latest = {lease.keyset_digest: lease for lease in sorted(leases, key=lambda lease: lease.not_before)}
    newest = sorted(latest.values(), key=lambda lease: lease.not_before, reverse=True)
    for lease in newest[:MAX_JUDGED]:
        found = _recorded(core, lease)
        if found is not None:
            yield found


def _recorded(core: Core, lease: LeaseRow) -> Recorded | None:
    """Return what a lease's holder sent; None: an older lease, or its openings were erased."""
    fields = None if lease.record is None else core.state.ledger.opened(lease.record)
    if fields is None:
        return None
    try:
        return _parsed(fields)
    except FormatError:  # of another version
        return None


def _parsed(fields: Mapping[str, bytes]) -> Recorded:
    config = EnclaveConfig.parse(fields["config"], limit=MAX_CONFIG)
    envelope = EvidenceEnvelope.parse(fields["evidence"])
    nonce = _nonce(fields["ear"])
    keyset = Keyset.parse(fields["keyset"]).digest()
    bound = report_data(
        Purpose.LEASE,
        nonce=nonce,
        config_digest=config.digest(),
        keyset_digest=keyset,
        devices=envelope.device_digests(),
    )
    return Recorded(
        config=config, envelope=envelope, report_data=bound, device_nonce=device_nonce(nonce, keyset)
    )


def _nonce(ear: bytes) -> bytes:
    """Return the nonce in a result of our own, whose commitment is in the log."""
    claims = parse_json(b64url_decode(ear.decode().split(".")[1]), limit=MAX_ENVELOPE)
    return b64url_decode(str(claims["eat_nonce"]), length=32)
