"""The KBS handshake: auth, attest, lease, resource. No I/O of its own; every decision is logged before it is returned.

Spec: docs/spec/key-release.md, docs/spec/broker-state.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar, get_args

from sealwright import __version__
from sealwright.appraisal.ear import ear_digest, issue_ear
from sealwright.appraisal.platform import together
from sealwright.broker.answers import claim, sweep
from sealwright.broker.backend import wiped
from sealwright.broker.canary import check_canary
from sealwright.broker.core import Core, decided, gravest, present, refusal, wrap_context
from sealwright.broker.data_rows import policies_of
from sealwright.broker.form import Form, check_form, parse_form
from sealwright.broker.ledger import Ticket
from sealwright.broker.rows import CallerRow, Changes, KeyRow, LeaseRow, RowKey
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
from sealwright.crypto.encoding import digest
from sealwright.crypto.hpke import HpkePublicKey, Kem, seal_to
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    RevokedError,
    SealwrightError,
    UnavailableError,
    VerificationError,
)
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType
from sealwright.protocol.enclave_config import TenantList
from sealwright.protocol.kbs import AttestRequest, AuthRequest, LeaseRequest
from sealwright.protocol.lease import Caller, Callers, Lease, LeasedKey
from sealwright.protocol.release import Release

TEES: tuple[PlatformType, ...] = get_args(PlatformType)  # platforms that can be verified here
T = TypeVar("T")
MAX_TRIES = 3  # of one release, while rows change under it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Granted:
    """A session that may have a key, as the rows stand now."""

    session: Session
    attested: Attested
    lease: Lease
    key: KeyRow
    rests_on: bytes  # digest of lease and key row
    answered: bytes | None  # the release, where it was given before on the same grounds


class Broker:
    """Answers enclaves. May be called from several threads."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions
        self._state = core.state

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

    def resource(self, session_id: str, tenant: str, kid: str) -> bytes:
        """Return the release (DSSE) of one key; the same session and kid get the same answer.

        Raises:
            SealwrightError: refused.
        """
        said: dict[str, object] = {"session": session_name(session_id), "tenant": tenant, "kid": kid}
        return self._decided("release", said, lambda known: self._resource(session_id, tenant, kid, known))

    def _decided(self, action: str, said: dict[str, object], work: Callable[[dict[str, object]], T]) -> T:
        """Do `work`, which adds what it learns to its argument; log a refusal before it is raised."""
        with decided(self._core, action, said):
            return work(said)

    def _auth(self, request: AuthRequest) -> Session:
        platform = next((one for one in TEES if one == request.tee), None)
        if platform is None:
            text = f"TEE {request.tee[:32]!r} cannot be verified here"
            raise _not_allowed(text, "tee-unsupported", "auth")
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
            said |= _about(form)
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
        attested = Attested(
            envelope=form.envelope,
            report_data=form.report_data,
            device_nonce=form.device_nonce,
            keyset=form.keyset,
            config=form.config,
            openings={tenant: form.openings[tenant] for tenant in verdicts},
            token=token,
            ear_digest=ear_digest(token),
        )
        granted = {**said, "action": "attest", "verdict": "grant", "tenant": sorted(verdicts)}
        tickets = [self._state.decide(present(granted)), self._log_keyset(attested)]
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
                    appraise=self._core.appraise,
                    at=now,
                )
            except SealwrightError as error:
                errors[tenant] = error
        if not verdicts:
            raise gravest(errors.values())
        return verdicts, errors

    def _log_keyset(self, attested: Attested) -> Ticket:
        fields = {
            "keyset": attested.keyset.encode(),
            "config": attested.config.encode(),
            "evidence": attested.envelope,
            "ear": attested.token.encode(),
        }
        ledger = self._state.ledger
        return ledger.submit(ledger.commit_to("keyset", fields))

    def _lease(self, session_id: str, request: LeaseRequest, said: dict[str, object]) -> GivenLease:
        with self._state.lock:
            now = self._state.now()
            session, attested, listed = self._attested(session_id, request.tenant, now)
            said |= _about(attested)
            view = self._state.view()
            verdict = self._judge_again(view, attested, listed, now)
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
            changes["lease", lease.lease_id.hex()] = _lease_row(lease, attested, verdict).encode()
            said |= {"lease_id": lease.lease_id, "ear_digest": attested.ear_digest}
            said["not_after"] = lease.to_json()["not_after"]
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
        ends = [now + timedelta(seconds=key.policy.lease_s) for key in verdict.keys]
        ends += [key.policy.expires for key in verdict.keys]
        return Lease(
            lease_id=self._core.random(16),
            tenant=listed.tenant,
            keyset_digest=attested.keyset.digest(),
            config_digest=attested.config.digest(),
            ear_digest=attested.ear_digest,
            kids=[LeasedKey(kid=item.kid, manifest_digest=item.manifest_digest) for item in listed.artefacts],
            not_before=now,
            not_after=min(*ends, attested.keyset.not_after),
            state_epoch=view.epoch + 1,
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

    def _resource(self, session_id: str, tenant: str, kid: str, said: dict[str, object]) -> bytes:
        for _ in range(MAX_TRIES):
            with self._state.lock:
                granted = self._may_have(session_id, tenant, kid, said)
                if granted.answered is not None:
                    return granted.answered
                epoch = self._state.anchor.epoch
            # A backend may be far away, or hang: nobody else waits for it.
            secret = self._core.backend.unwrap(granted.key.wrapped, wrap_context(granted.key))
            with wiped(secret), self._state.lock:
                if self._state.anchor.epoch != epoch:
                    continue  # rows changed meanwhile: decide again, on what stands now
                granted.lease.check_time(self._state.now())
                release = self._seal(granted, secret)
                said |= {
                    "lease_id": release.lease_id,
                    "policy_digest": release.policy_digest,
                    "manifest_digest": release.manifest_digest,
                }
                ticket = self._state.decide(present({**said, "action": "release", "verdict": "grant"}))
            self._state.ledger.settle(ticket)
            answer = release.sign(self._core.secrets.release)
            granted.session.releases[kid] = (granted.rests_on, answer)
            self._sessions.keep(granted.session)
            return answer
        raise UnavailableError(
            "the broker's state changed at each try; ask again", code="state-busy", stage="state"
        )

    def _may_have(self, session_id: str, tenant: str, kid: str, said: dict[str, object]) -> _Granted:
        """Prove that this session may have a key now; under the lock."""
        now = self._state.now()
        session, attested, listed = self._attested(session_id, tenant, now)
        said |= _about(attested)
        if kid not in [entry.kid for entry in listed.artefacts]:
            raise _not_allowed(f"the enclave config does not list {kid}", "key-unknown", "key")
        given = session.leases.get(tenant)
        if given is None:
            raise _not_allowed("a key is released under a lease; ask for it first", "lease-missing", "lease")
        given.lease.check_time(now)
        view = self._state.view()
        if view.get(LeaseRow, "lease", given.lease.lease_id.hex()) is None:
            raise RevokedError("the lease is no longer known", code="lease-ended", stage="lease")
        verdict = self._judge_again(view, attested, listed, now)
        key = next(key for key in verdict.keys if key.kid == kid)
        if policies_of(view, kid):
            text = f"{kid} opens training data: it is released for one epoch at a time, within a budget"
            raise _not_allowed(text, "key-budgeted", "data-policy")
        rests_on = digest(given.lease.digest(), key.encode())
        before = session.releases.get(kid)
        answered = before[1] if before is not None and before[0] == rests_on else None
        return _Granted(
            session=session,
            attested=attested,
            lease=given.lease,
            key=key,
            rests_on=rests_on,
            answered=answered,
        )

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
            suite="default",
            enc=b"",
            ciphertext=b"",
        )
        recipient = HpkePublicKey(kem=Kem.XWING, raw=attested.keyset.tee_pubkey.pub)
        enc, sealed = seal_to(recipient, release.hpke_info(), b"", bytes(secret))
        return release.model_copy(update={"enc": enc, "ciphertext": sealed})

    def _attested(self, session_id: str, tenant: str, now: datetime) -> tuple[Session, Attested, TenantList]:
        session = self._sessions.get(session_id, now)
        if session.attested is None:
            raise VerificationError(
                "this session has not been attested", code="not-attested", stage="session"
            )
        listed = session.attested.openings.get(tenant)
        if listed is None:
            raise _not_allowed("this session was not attested for that tenant", "tenant-not-attested", "key")
        return session, session.attested, listed

    def _judge_again(self, view: View, attested: Attested, listed: TenantList, now: datetime) -> Verdict:
        attested.keyset.check_time(now)
        return judge(
            view,
            listed,
            attested.config,
            EvidenceEnvelope.parse(attested.envelope),
            report_data=attested.report_data,
            device_nonce=attested.device_nonce,
            appraise=self._core.appraise,
            at=now,
        )

    def _change(self, view: View, changes: Changes, action: str, said: dict[str, object]) -> None:
        self._state.change(view, changes, present({**said, "action": action, "verdict": "grant"}))


def _about(what: Form | Attested) -> dict[str, object]:
    return {
        "keyset_digest": what.keyset.digest(),
        "config_digest": what.config.digest(),
        "evidence_digest": hashlib.sha256(what.envelope).digest(),
    }


def _judged(verdict: Verdict) -> dict[str, object]:
    return {
        "build": verdict.appraisal.code,
        "policies": [policy.hex() for policy in verdict.policies],
    }


def _lease_row(lease: Lease, attested: Attested, verdict: Verdict) -> LeaseRow:
    return LeaseRow(
        lease_id=lease.lease_id,
        tenant=lease.tenant,
        keyset_digest=lease.keyset_digest,
        config_digest=lease.config_digest,
        receipt_key=attested.keyset.receipt_key,
        not_before=lease.not_before,
        not_after=lease.not_after,
        build=verdict.appraisal.code,
    )


def _not_allowed(text: str, code: str, stage: str) -> AppraisalError:
    return AppraisalError([AppraisalFailure(text, code=code)], stage=stage)
