"""Which site writes: a row that only k of n approvers change, so that no operator promotes a standby alone.

Spec: docs/spec/broker-state.md, Sites and promotion.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from sealwright.appraisal.signed import Signers
from sealwright.broker.rows import SiteRow
from sealwright.broker.state import State
from sealwright.crypto.document import Bytes32, Count, Digest, Name, Time
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import rfc3339
from sealwright.crypto.statement import Statement
from sealwright.errors import CollateralError, UnavailableError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint

STAGE = "site"
KEY = ("site", "self")


class Promotion(Statement):
    """From this term on `site` writes, if its log holds what the approvers saw of it."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.sealwright.promotion.v1+json"

    format: Literal["sealwright-promotion/v1"] = "sealwright-promotion/v1"
    root: Bytes32  # the broker's
    site: Name
    term: Count  # one more than the last
    signers: Signers  # who approves the next
    log_size: Count  # what the site's log has to begin with
    log_root: Digest
    created: Time
    expires: Time


def check_site(state: State, site: str | None) -> None:
    """Prove that this site is the one that writes. Raises UnavailableError: `site-not-active`."""
    with state.lock:
        row = state.view().get(SiteRow, *KEY)
    if row is not None and row.site != site:
        raise UnavailableError(
            f"site {row.site} writes since term {row.term}, and this is {site or 'none (--site)'}: "
            "a standby serves after approvers have promoted it (--promotion)",
            code="site-not-active",
            stage=STAGE,
        )


def promote(state: State, root: bytes, site: str | None, envelope: bytes) -> None:
    """Make a promotion true, as a logged decision; one that is true already changes nothing.

    Args:
        root: this broker's public key.
        site: this site.
        envelope: the promotion, DSSE.

    Raises:
        MessageFormatError: not a promotion. CollateralError: `promotion-expired`.
        VerificationError: `promotion-mismatch`, `untrusted-signer`, `bad-signature`, `log-rolled-back`, `log-forked`.
    """
    parsed = Envelope.parse(envelope)
    said = Promotion.parse(parsed.unverified_payload)
    with state.lock:
        view = state.view()
        row = view.get(SiteRow, *KEY)
        made = SiteRow(site=said.site, term=said.term, signers=said.signers)
        if row == made:
            return
        # 1. Signed by enough of those whom the last term named, and of those it names itself.
        for signers in (said.signers, said.signers if row is None else row.signers):
            signers.check(parsed, Promotion.PAYLOAD_TYPE, stage=STAGE)
        # 2. For this broker and site, and the next term: an older one is worth nothing.
        _check_about(said, root, site, 0 if row is None else row.term)
        # 3. In force.
        _check_time(said, state.now())
        # 4. Nothing is missing here that the approvers had seen.
        seen = Checkpoint(origin=state.ledger.head.checkpoint.origin, size=said.log_size, root=said.log_root)
        state.ledger.head.continues(seen)
        fields = {"action": "promote", "verdict": "grant", "site": said.site, "term": said.term}
        state.change(view, {KEY: made.encode()}, {**fields, "promotion_digest": said.digest().hex()})


def _check_about(said: Promotion, root: bytes, site: str | None, term: int) -> None:
    if said.root != root or said.site != site or said.term != term + 1:
        raise VerificationError(
            f"the promotion is of site {said.site} for term {said.term}; here site {site} is to begin term "
            f"{term + 1} of its own broker",
            code="promotion-mismatch",
            stage=STAGE,
        )


def _check_time(said: Promotion, now: datetime) -> None:
    if not said.created <= now < said.expires:
        raise CollateralError(
            f"the promotion is in force from {rfc3339(said.created)} to {rfc3339(said.expires)}",
            code="promotion-expired",
            stage=STAGE,
        )
