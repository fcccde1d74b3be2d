"""How many enclaves of a new build may have a lease: the limit of a policy's `canary`. Spec: docs/spec/rollout.md."""

from __future__ import annotations

from datetime import datetime

from sealwright.broker.rows import LeaseRow
from sealwright.broker.state import View
from sealwright.broker.verdict import Verdict
from sealwright.errors import AppraisalError, AppraisalFailure


def check_canary(view: View, verdict: Verdict, *, tenant: str, keyset_digest: bytes, at: datetime) -> None:
    """Check that one more lease of `tenant` for this build stays within every policy's limit.

    Args:
        keyset_digest: of the enclave that asks: what it holds itself does not count.

    Raises:
        AppraisalError: `canary-full`.
    """
    build = verdict.appraisal.code
    limits = [key.policy.canary for key in verdict.keys if key.policy.canary is not None]
    for limit in limits:
        if build not in limit.code:
            continue
        others = {
            row.keyset_digest
            for row in view.all(LeaseRow, "lease")
            if row.tenant == tenant and row.build in limit.code and at < row.not_after
        } - {keyset_digest}
        if len(others) >= limit.leases:
            text = (
                f"{len(others)} enclaves of the new build have a lease, and the policy allows {limit.leases}"
            )
            raise AppraisalError([AppraisalFailure(text, code="canary-full")], stage="canary")
