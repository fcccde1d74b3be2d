"""The KBS handshake: auth, attest, lease, resource. No I/O of its own; every decision is logged before it is returned.

Spec: docs/spec/key-release.md, docs/spec/broker-state.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar, get_args

from sealwright import __version__
from sealwright.appraisal.ear import ear_digest, issue_ear
from sealwright.appraisal.platform import together
from sealwright.broker.answers import claim, sweep
from sealwright.broker.budgets import check_hours, limits_of
from sealwright.broker.canary import check_canary
from sealwright.broker.core import Core, decided, gravest, present, refusal
from sealwright.broker.form import Form, check_form, parse_form
from sealwright.broker.ledger import Ticket
from sealwright.broker.notices import grounds
from sealwright.broker.releasing import Releaser, about, attested_for, judge_again, not_allowed
from sealwright.broker.rows import CallerRow, Changes, LeaseRow, RowKey
from sealwright.broker.sessions import (
    Attested,
    GivenLease,
    Session,
    Sessions,
    check_form_of,
    session_name,
)
from sealwright.broker.state import View
from sealwright.broker.verdict import Verdict, is_judged, judge
from sealwright.errors import (
    SealwrightError,
    VerificationError,
)
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType
from sealwright.protocol.commitment import LogEntry
from sealwright.protocol.enclave_config import TenantList
from sealwright.protocol.kbs import AttestRequest, AuthRequest, LeaseRequest
from sealwright.protocol.lease import Caller, Callers, Lease, LeasedKey
from sealwright.protocol.use import Use

TEES: tuple[PlatformType, ...] = get_args(PlatformType)  # platforms that can be verified here
T = TypeVar("T")


class Broker:
    """Answers enclaves. May be called from several threads."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions
        self._state = core.state
        self._releaser = Releaser(core, sessions)

    def auth(self, request: AuthRequest) -> Session:
        """Open a session with a fresh nonce.

        Raises:
            AppraisalError: `tee-unsupported`. UnavailableError: too many sessions.
        """
        return self._decided("auth", {}, lambda _: self._auth(request))

    def evidence_of(self, session_id: str, request: AttestRequest) -> EvidenceEnvelope | None:
        """Return evidence as far as `attest` would get to judge it: what is worth fetching collateral for.

        It answers this session's nonce, and a tenant's active keys, named with their manifests, have a policy for its
        platform. None: `attest` refuses it whatever vendors say, or has its answer already.
        """
        try:
            with self._state.lock:
                session, view = self._sessions.get(session_id, self._state.now()), self._state.view()
                nonce = session.nonce
            if nonce is None:
                return None
            check_form_of(session, guest=False)
            form = parse_form(request, nonce)
            secrets = self._core.secrets
            check_form(form, request, tee=session.tee, root=secrets.root_public, log_key=secrets.log_key)
            return form.evidence if is_judged(view, form) else None
        except SealwrightError:
            return None

    def attest(self, session_id: str, request: AttestRequest) -> str:
        """Return the result (EAR, compact JWT) for evidence that is genuine and allowed by a tenant's policies.

        A second attestation on an attested session returns the first result.

        Raises:
            SealwrightError: refused; the nonce is used up.
        """
        said: dict[str, object] = {"session": session_name(session_id)}
        return self._decided("attest", said, lambda known: self._attest(session_id, request, known))

    def lease(self, session_id: str, request: LeaseRequest) -> GivenLease:
        """Return the lease of one tenant for the session's keyset; the same session gets the same lease.

        Raises:
            SealwrightError: refused.
        """
        said: dict[str, object] = {
            "session": session_name(session_id),
            "tenant": request.tenant,
            "answers": request.answers,
        }
        return self._decided("lease", said, lambda known: self._lease(session_id, request, known))

    def resource(self, session_id: str, tenant: str, kid: str, use: Use | None = None) -> bytes:
        """Return the release (DSSE) of one key; the same session, kid and use get the same answer.

        Args:
            use: what it is for, as the asker names it.

        Raises:
            SealwrightError: refused.
        """
        said: dict[str, object] = {"session": session_name(session_id), "tenant": tenant, "kid": kid}
        said["use"] = None if use is None else use.to_json()
        return self._decided(
            "release", said, lambda known: self._releaser.release(session_id, tenant, kid, use, known)
        )

    def _decided(self, action: str, said: dict[str, object], work: Callable[[dict[str, object]], T]) -> T:
        """Do `work`, which adds what it learns to its argument; log a refusal before it is raised."""
        with decided(self._core, action, said):
            return work(said)

    def _auth(self, request: AuthRequest) -> Session:
        platform = next((one for one in TEES if one == request.tee), None)
        if platform is None:
            text = f"TEE {request.tee[:32]!r} cannot be verified here"
            raise not_allowed(text, "tee-unsupported", "auth")
        with self._state.lock:
            return self._sessions.start(platform, self._state.now())

    def _attest(self, session_id: str, request: AttestRequest, said: dict[str, object]) -> str:
        with self._state.lock:
            now = self._state.now()
            session = self._sessions.get(session_id, now)
            if session.attested is not None:
                return session.attested.token
            check_form_of(session, guest=False)
            nonce, session.nonce = session.nonce, None
            if nonce is None:
                raise VerificationError(
                    "evidence was sent for this nonce before", code="nonce-used", stage="nonce"
                )
            form = parse_form(request, nonce)
            said |= about(form)
            attested, tickets = self._appraise(session, request, form, now, said)
        for ticket in tickets:
            self._state.ledger.settle(ticket)
        session.attested = attested
        self._sessions.keep(session)
        return attested.token

    def _appraise(
        self, session: Session, request: AttestRequest, form: Form, now: datetime, said: dict[str, object]
    ) -> tuple[Attested, list[Ticket]]:
        secrets = self._core.secrets
        check_form(form, request, tee=session.tee, root=secrets.root_public, log_key=secrets.log_key)
        form.keyset.check_time(now)
        verdicts, errors = self._verdicts(self._state.view(), form, now)
        token = issue_ear(
            together([verdict.appraisal for verdict in verdicts.values()]),
            secrets.ear,
            nonce=session.challenge,
            config_digest=form.config.digest(),
            keyset_digest=form.keyset.digest(),
            evidence_digest=hashlib.sha256(form.envelope).digest(),
            policies=sorted({policy for verdict in verdicts.values() for policy in verdict.policies}),
            at=now,
            build=__version__,
        )
        said["ear_digest"] = ear_digest(token)
        fields = {
            "keyset": form.keyset.encode(),
            "config": form.config.encode(),
            "evidence": form.envelope,
            "ear": token.encode(),
        }
        entry = self._state.ledger.commit_to("keyset", fields)
        attested = Attested(
            envelope=form.envelope,
            report_data=form.report_data,
            device_nonce=form.device_nonce,
            keyset=form.keyset,
            config=form.config,
            openings={tenant: form.openings[tenant] for tenant in verdicts},
            token=token,
            ear_digest=ear_digest(token),
            record=LogEntry.parse(entry).commitment,
        )
        granted = {**said, "action": "attest", "verdict": "grant", "tenant": sorted(verdicts)}
        tickets = [self._state.decide(present(granted)), self._state.ledger.submit(entry)]
        for tenant, error in errors.items():
            refused = refusal(error, {**said, "action": "attest", "tenant": tenant})
            tickets.append(self._state.decide(refused))
        return attested, tickets

    def _verdicts(
        self, view: View, form: Form, now: datetime
    ) -> tuple[dict[str, Verdict], dict[str, SealwrightError]]:
        """Judge each tenant apart, so that one who withdraws a key does not stop the others."""
        verdicts: dict[str, Verdict] = {}
        errors: dict[str, SealwrightError] = {}
        for tenant, listed in form.openings.items():
            try:
                verdicts[tenant] = judge(
                    view,
                    listed,
                    form.config,
                    form.evidence,
                    report_data=form.report_data,
                    device_nonce=form.device_nonce,
                    keyset_digest=form.keyset.digest(),
                    appraise=self._core.appraise,
                    at=now,
                )
            except SealwrightError as error:
                errors[tenant] = error
        if not verdicts:
            raise gravest(errors.values())
        return verdicts, errors

    def _lease(self, session_id: str, request: LeaseRequest, said: dict[str, object]) -> GivenLease:
        with self._state.lock:
            now = self._state.now()
            session, attested, listed = attested_for(self._sessions, session_id, request.tenant, now)
            said |= about(attested)
            view = self._state.view()
            verdict = judge_again(self._core, view, attested, listed, now)
            given = session.leases.get(request.tenant)
            if given is not None:
                given.lease.check_time(now)
                return given
            said |= _judged(verdict)
            check_canary(
                view,
                verdict,
                tenant=listed.tenant,
                keyset_digest=attested.keyset.digest(),
                at=now,
            )
            lease = self._make_lease(view, attested, listed, verdict, now)
            swept = sweep(view, self._state.store.count_receipts, now)
            changes: dict[RowKey, bytes | None] = dict(swept.changes)
            changes |= claim(view, swept.changes, lease, request.answers, now)
            changes["lease", lease.lease_id.hex()] = _lease_row(lease, attested, verdict, view).encode()
            said |= {"lease_id": lease.lease_id, "ear_digest": attested.ear_digest}
            said |= {"not_after": lease.to_json()["not_after"], "kids": [key.kid for key in verdict.keys]}
            self._change(view, changes, "lease", said)
            tickets = [self._state.decide(present(dict(found))) for found in swept.mismatches]
            given = session.leases[request.tenant] = self._sign_lease(view, lease)
            self._sessions.keep(session)
        for ticket in tickets:
            self._state.ledger.settle(ticket)
        return given

    def _make_lease(
        self, view: View, attested: Attested, listed: TenantList, verdict: Verdict, now: datetime
    ) -> Lease:
        # The strictest of the tenant's policies, and nothing outlives what it rests on.
        length = timedelta(seconds=min(key.policy.lease_s for key in verdict.keys))
        grace = timedelta(seconds=min(key.policy.grace_s or 0 for key in verdict.keys))
        ends = [
            now + length + grace,
            *(key.policy.expires for key in verdict.keys),
            attested.keyset.not_after,
        ]
        closing = check_hours([limits for key in verdict.keys for limits in limits_of(view, key)], now)
        end = min(ends if closing is None else [*ends, closing])
        grace_s = max(0, int((end - now - length).total_seconds()))
        return Lease(
            lease_id=self._core.random(16),
            tenant=listed.tenant,
            keyset_digest=attested.keyset.digest(),
            config_digest=attested.config.digest(),
            ear_digest=attested.ear_digest,
            kids=[LeasedKey(kid=item.kid, manifest_digest=item.manifest_digest) for item in listed.artefacts],
            not_before=now,
            not_after=end,
            state_epoch=view.epoch + 1,
            grace_s=grace_s or None,
        )

    def _sign_lease(self, view: View, lease: Lease) -> GivenLease:
        rows = view.all(CallerRow, "caller", prefix=f"{lease.tenant}/")
        callers = Callers(
            tenant=lease.tenant,
            lease_id=lease.lease_id,
            callers=[Caller(caller=row.caller, credential_digest=row.credential_digest) for row in rows],
        )
        key = self._core.secrets.release
        return GivenLease(lease=lease, envelope=lease.sign(key), callers=callers.sign(key))

    def _change(self, view: View, changes: Changes, action: str, said: dict[str, object]) -> None:
        self._state.change(view, changes, present({**said, "action": action, "verdict": "grant"}))


def _judged(verdict: Verdict) -> dict[str, object]:
    return {
        "build": verdict.appraisal.code,
        "policies": [policy.hex() for policy in verdict.policies],
    }


def _lease_row(lease: Lease, attested: Attested, verdict: Verdict, view: View) -> LeaseRow:
    return LeaseRow(
        lease_id=lease.lease_id,
        tenant=lease.tenant,
        keyset_digest=lease.keyset_digest,
        config_digest=lease.config_digest,
        receipt_key=attested.keyset.receipt_key,
        not_before=lease.not_before,
        not_after=lease.not_after,
        build=verdict.appraisal.code,
        record=attested.record,
        kids=[key.kid for key in verdict.keys],
        grounds=grounds(view, [key.kid for key in verdict.keys]),
    )
