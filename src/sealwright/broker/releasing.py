"""One key for one session: judged, counted, sealed. Every grant is logged, with what it spends, before it is returned.

Spec: docs/spec/key-release.md, step 4; docs/spec/life-cycle.md, Budgets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sealwright.broker.backend import wiped
from sealwright.broker.budgets import Charge, charge
from sealwright.broker.core import Core, present, wrap_context
from sealwright.broker.data_rows import policies_of
from sealwright.broker.form import Form
from sealwright.broker.notices import grounds
from sealwright.broker.rows import KeyRow, LeaseRow
from sealwright.broker.sessions import Attested, Session, Sessions
from sealwright.broker.state import View
from sealwright.broker.subject import identities
from sealwright.broker.verdict import Verdict, judge
from sealwright.crypto.encoding import digest
from sealwright.crypto.hpke import HpkePublicKey, Kem, seal_to
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    RevokedError,
    UnavailableError,
    VerificationError,
)
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.enclave_config import TenantList
from sealwright.protocol.lease import Lease
from sealwright.protocol.release import Release
from sealwright.protocol.use import Use

MAX_KEPT = 64  # answers of one session
MAX_TRIES = 3  # of one release, while what it rests on changes under it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Granted:
    """A session that may have a key, as the rows stand now."""

    session: Session
    attested: Attested
    lease: Lease
    key: KeyRow
    identities: list[str]  # of the machine
    use: Use | None
    rests_on: bytes  # digest of lease, key row, and what else decides

    @property
    def name(self) -> str:
        """What the session calls this release."""
        return self.key.kid if self.use is None else f"{self.key.kid}?{self.use.to_text()}"

    @property
    def answered(self) -> bytes | None:
        """The release, where it was given before on the same grounds."""
        rests_on, answer = self.session.releases.get(self.name, (b"", b""))
        return answer if rests_on == self.rests_on else None


class Releaser:
    """Releases keys to sessions that were attested and hold a lease. May be called from several threads."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core, self._sessions, self._state = core, sessions, core.state

    def release(
        self, session_id: str, tenant: str, kid: str, use: Use | None, said: dict[str, object]
    ) -> bytes:
        """Return the release (DSSE) of one key.

        Args:
            said: takes up what the decision is to say.

        Raises:
            SealwrightError: refused.
        """
        for _ in range(MAX_TRIES):
            with self._state.lock:
                granted, view = self._may_have(session_id, tenant, kid, use, said)
                if granted.answered is not None:
                    return granted.answered
                _charge(view, granted, self._state.now())
            # A backend may be far away, or hang: nobody else waits for it.
            secret = self._core.backend.unwrap(granted.key.wrapped, wrap_context(granted.key))
            with wiped(secret), self._state.lock:
                answer = self._released(granted, view, secret, said)
            if answer is not None:
                return answer
        raise UnavailableError(
            "the broker's state changed at each try; ask again", code="state-busy", stage="state"
        )

    def _released(
        self, granted: _Granted, view: View, secret: bytearray, said: dict[str, object]
    ) -> bytes | None:
        """Log and return the release; None: what it rests on has changed, so decide again. Under the lock."""
        if granted.answered is not None:  # by another thread of this session
            return granted.answered
        now = self._state.now()
        if self._state.anchor.epoch != view.epoch:
            view = self._state.view()
            row = view.get(LeaseRow, "lease", granted.lease.lease_id.hex())
            if row is None or _rests_on(view, granted.lease, granted.key.row_key) != granted.rests_on:
                return None
            if policies_of(view, granted.key.kid):  # since then: refused at the next try
                return None
        granted.lease.check_time(now)
        spent = _charge(view, granted, now)
        release = self._seal(granted, secret)
        said |= {
            "lease_id": release.lease_id,
            "policy_digest": release.policy_digest,
            "manifest_digest": release.manifest_digest,
        }
        self._log(view, spent, said)
        answer = release.sign(self._core.secrets.release)
        _remember(granted, answer)
        self._sessions.keep(granted.session)
        return answer

    def _log(self, view: View, spent: Charge, said: dict[str, object]) -> None:
        decision = {**said, "action": "release", "verdict": "grant"}
        if spent.changes:
            # One change of rows: the release is logged and its budget spent, or neither.
            self._state.change(view, spent.changes, present({**decision, "spent": spent.spent}))
        else:
            self._state.ledger.settle(self._state.decide(present(decision)))

    def _may_have(
        self, session_id: str, tenant: str, kid: str, use: Use | None, said: dict[str, object]
    ) -> tuple[_Granted, View]:
        """Prove that this session may have a key now; under the lock."""
        now = self._state.now()
        session, attested, listed = attested_for(self._sessions, session_id, tenant, now)
        said |= about(attested)
        if kid not in [entry.kid for entry in listed.artefacts]:
            raise not_allowed(f"the enclave config does not list {kid}", "key-unknown", "key")
        given = session.leases.get(tenant)
        if given is None:
            raise not_allowed("a key is released under a lease; ask for it first", "lease-missing", "lease")
        given.lease.check_time(now)
        view = self._state.view()
        if view.get(LeaseRow, "lease", given.lease.lease_id.hex()) is None:
            raise RevokedError("the lease is no longer known", code="lease-ended", stage="lease")
        verdict = judge_again(self._core, view, attested, listed, now)
        key = next(key for key in verdict.keys if key.kid == kid)
        if policies_of(view, key.kid):
            text = f"{kid} opens training data: it is released for one epoch at a time, within a budget"
            raise not_allowed(text, "key-budgeted", "data-policy")
        granted = _Granted(
            session=session,
            attested=attested,
            lease=given.lease,
            key=key,
            identities=identities(verdict.appraisal),
            use=use,
            rests_on=_rests_on(view, given.lease, key.row_key),
        )
        return granted, view

    def _seal(self, granted: _Granted, secret: bytearray) -> Release:
        lease, key, attested = granted.lease, granted.key, granted.attested
        release = Release(
            nonce=granted.session.challenge,
            tee_pubkey=attested.keyset.tee_pubkey.digest(),
            tenant=key.tenant,
            kid=key.kid,
            epoch=key.epoch,
            manifest_digest=next(item.manifest_digest for item in lease.kids if item.kid == key.kid),
            lease_id=lease.lease_id,
            lease_digest=lease.digest(),
            policy_digest=key.policy.digest(),
            use=granted.use,
            suite="default",
            enc=b"",
            ciphertext=b"",
        )
        recipient = HpkePublicKey(kem=Kem.XWING, raw=attested.keyset.tee_pubkey.pub)
        enc, sealed = seal_to(recipient, release.hpke_info(), b"", bytes(secret))
        return release.model_copy(update={"enc": enc, "ciphertext": sealed})


def _remember(granted: _Granted, answer: bytes) -> None:
    """Keep an answer for whoever asks again; the last ones only, since each is written with all others."""
    kept = granted.session.releases
    kept.pop(granted.name, None)
    while len(kept) >= MAX_KEPT:
        del kept[next(iter(kept))]
    kept[granted.name] = (granted.rests_on, answer)


def attested_for(
    sessions: Sessions, session_id: str, tenant: str, now: datetime
) -> tuple[Session, Attested, TenantList]:
    """Return a session that was attested for a tenant, with what it proved and lists. Raises SealwrightError."""
    session = sessions.get(session_id, now)
    if session.attested is None:
        raise VerificationError("this session has not been attested", code="not-attested", stage="session")
    listed = session.attested.openings.get(tenant)
    if listed is None:
        raise not_allowed("this session was not attested for that tenant", "tenant-not-attested", "key")
    return session, session.attested, listed


def judge_again(core: Core, view: View, attested: Attested, listed: TenantList, now: datetime) -> Verdict:
    """Return what the rows of this moment say of a session's evidence. Raises SealwrightError: refused."""
    attested.keyset.check_time(now)
    return judge(
        view,
        listed,
        attested.config,
        EvidenceEnvelope.parse(attested.envelope),
        report_data=attested.report_data,
        device_nonce=attested.device_nonce,
        keyset_digest=attested.keyset.digest(),
        appraise=core.appraise,
        at=now,
    )


def about(what: Form | Attested) -> dict[str, object]:
    """Return what decisions say of an attestation."""
    return {
        "keyset_digest": what.keyset.digest(),
        "config_digest": what.config.digest(),
        "evidence_digest": hashlib.sha256(what.envelope).digest(),
    }


def not_allowed(text: str, code: str, stage: str) -> AppraisalError:
    """Return a refusal."""
    return AppraisalError([AppraisalFailure(text, code=code)], stage=stage)


def _charge(view: View, granted: _Granted, now: datetime) -> Charge:
    return charge(view, granted.key, granted.use, granted.identities, now)


def _rests_on(view: View, lease: Lease, row_key: tuple[str, str]) -> bytes:
    return digest(lease.digest(), view.rows.get(row_key, b""), grounds(view, [key.kid for key in lease.kids]))
