"""The KBS handshake of Confidential Containers' guests. No I/O of its own; every decision is logged before its answer.

Spec: docs/spec/kbs-guest.md.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from sealwright import __version__
from sealwright.appraisal.ear import ear_digest, issue_guest_ear
from sealwright.appraisal.guest import GuestPolicy
from sealwright.appraisal.platform import Appraisal, together
from sealwright.broker.core import Core, decided, gravest, present
from sealwright.broker.resources import open_resource
from sealwright.broker.revocations import Subject, check_revoked
from sealwright.broker.rows import ResourceRow
from sealwright.broker.sessions import AttestedGuest, Session, Sessions, check_form_of, session_name
from sealwright.broker.state import View
from sealwright.errors import AppraisalError, AppraisalFailure, SealwrightError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType
from sealwright.protocol.guest_evidence import guest_envelope, platform_of
from sealwright.protocol.jwe import Jwe, encrypt_to
from sealwright.protocol.kbs import AuthRequest, encode_nonce
from sealwright.protocol.kbs_guest import GuestAttestRequest, HashName, bind, select_hash

MAX_POLICIES = 64  # distinct ones that one attestation is appraised under


class Guests:
    """Answers guests. May be called from several threads."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core, self._sessions, self._state = core, sessions, core.state

    def auth(self, request: AuthRequest) -> tuple[Session, HashName]:
        """Open a session with a fresh nonce; return it and the hash that report data is made with.

        Raises:
            AppraisalError: `tee-unsupported`, `hash-unsupported`. UnavailableError: too many sessions.
        """
        with decided(self._core, "auth", {}):
            platform = platform_of(request.tee)
            if platform is None:
                text = f"TEE {request.tee[:32]!r} of a guest cannot be verified here"
                raise _refused(text, "tee-unsupported", "auth")
            chosen = select_hash(request.extra_params)
            with self._state.lock:
                session = self._sessions.start(platform, self._state.now(), hash_name=chosen)
            return session, chosen

    def evidence_of(self, session_id: str, request: GuestAttestRequest) -> EvidenceEnvelope | None:
        """Return evidence as far as `attest` would get to judge it: what is worth fetching collateral for.

        It answers this session's nonce, and a resource's policy is about its platform. None: `attest` refuses it
        whatever vendors say, or has its answer already.
        """
        try:
            with self._state.lock:
                session, view = self._sessions.get(session_id, self._state.now()), self._state.view()
                nonce = session.nonce
            if nonce is None or session.hash_name is None:
                return None
            bind(request, encode_nonce(nonce), session.hash_name)
            said = request.tee_evidence
            envelope = guest_envelope(session.tee, said.primary_evidence, said.additional_evidence)
        except SealwrightError:
            return None
        platform = session.tee.replace("-", "_")
        rows = view.all(ResourceRow, "resource")
        return envelope if any(getattr(row.policy.platforms, platform) is not None for row in rows) else None

    def attest(self, session_id: str, request: GuestAttestRequest) -> str:
        """Return the token (EAR, compact JWT) for evidence that is genuine and allowed by one resource's policy.

        A second attestation on an attested session returns the first token.

        Raises:
            SealwrightError: refused; the nonce is used up.
        """
        said: dict[str, object] = {"session": session_name(session_id)}
        with decided(self._core, "attest", said):
            return self._attest(session_id, request, said)

    def has(self, session: str) -> bool:
        """Say whether this is the id of a guest's session, or the token that one was answered with."""
        with self._state.lock:
            return self._sessions.is_guest(session)

    def resource(self, session: str, path: str) -> Jwe:
        """Return a resource, encrypted to the key that the session's evidence vouches for.

        Args:
            session: its id, or the token that it was answered with.

        Raises:
            SealwrightError: refused.
        """
        said: dict[str, object] = {"resource": path}
        with decided(self._core, "resource", said):
            return self._resource(session, path, said)

    def _attest(self, session_id: str, request: GuestAttestRequest, said: dict[str, object]) -> str:
        with self._state.lock:
            now = self._state.now()
            session = self._sessions.get(session_id, now)
            if session.guest is not None:
                return session.guest.token
            check_form_of(session, guest=True)
            nonce, session.nonce = session.nonce, None
            if nonce is None or session.hash_name is None:
                raise VerificationError(
                    "evidence was sent for this nonce before", code="nonce-used", stage="nonce"
                )
            guest = self._appraised(session.tee, session.hash_name, nonce, request, now, said)
            granted = {**said, "action": "attest", "verdict": "grant", "ear_digest": guest.ear_digest}
            ticket = self._state.decide(present(granted))
        self._state.ledger.settle(ticket)
        self._sessions.attested(session, guest)
        return guest.token

    def _appraised(
        self,
        platform: PlatformType,
        hash_name: HashName,
        nonce: bytes,
        request: GuestAttestRequest,
        now: datetime,
        said: dict[str, object],
    ) -> AttestedGuest:
        bound = bind(request, encode_nonce(nonce), hash_name)
        evidence = request.tee_evidence
        envelope = guest_envelope(platform, evidence.primary_evidence, evidence.additional_evidence)
        digest = said["evidence_digest"] = hashlib.sha256(envelope.encode()).digest()
        fields = {
            "envelope": envelope,
            "report_data": bound.report_data,
            "device_nonce": bound.device_nonce,
            "init_data": request.init_data,
            "tee_pubkey": bound.tee_pubkey,
            "evidence_digest": digest,
        }
        asked = AttestedGuest(token="", ear_digest=b"", **fields)  # type: ignore[arg-type]
        appraisals, policies = self._allowed(asked, now)
        token = issue_guest_ear(
            together(appraisals),
            self._core.secrets.ear,
            nonce=encode_nonce(nonce),
            tee_pubkey=request.runtime_data.tee_pubkey,
            evidence_digest=digest,
            policies=policies,
            at=now,
            build=__version__,
        )
        return AttestedGuest(token=token, ear_digest=ear_digest(token), **fields)  # type: ignore[arg-type]

    def _allowed(self, guest: AttestedGuest, now: datetime) -> tuple[list[Appraisal], list[bytes]]:
        """Return the appraisals of the policies that allow the guest, one at least, and their digests."""
        view = self._state.view()
        rows = view.all(ResourceRow, "resource")
        policies = {row.policy.digest(): row.policy for row in rows}
        if not policies:
            raise _refused(
                "there is no resource yet, so no policy admits a guest", "platform-not-allowed", "policy"
            )
        found: dict[bytes, Appraisal] = {}
        errors: list[SealwrightError] = []
        for digest, policy in list(policies.items())[:MAX_POLICIES]:
            try:
                found[digest] = self._judge(view, guest, policy, now)
            except SealwrightError as error:
                errors.append(error)
        if not found:
            raise gravest(errors)
        return list(found.values()), sorted(found)

    def _judge(
        self,
        view: View,
        guest: AttestedGuest,
        policy: GuestPolicy,
        now: datetime,
        *,
        tenant: str | None = None,
    ) -> Appraisal:
        check_revoked(view, Subject(tenant=tenant))
        appraisal = self._core.appraise(
            guest.envelope,
            policy,
            expected_report_data=guest.report_data,
            expected_device_nonce=guest.device_nonce,
            at=now,
        )
        check_revoked(view, Subject(appraisals=(appraisal,)))
        init = guest.init_data
        refusals = policy.init_data_refusals(
            appraisal.config,
            None if init is None else init.body,
            b"" if init is None else init.digest(),
        )
        failures = (*appraisal.failures, *refusals)
        if failures:
            raise AppraisalError(list(dict.fromkeys(failures)))
        return appraisal

    def _resource(self, session_name_or_token: str, path: str, said: dict[str, object]) -> Jwe:
        with self._state.lock:
            now = self._state.now()
            session = self._sessions.find(session_name_or_token, now)
            said["session"] = session.name
            guest = session.guest
            if guest is None:
                raise VerificationError(
                    "this session has not been attested", code="not-attested", stage="session"
                )
            said |= {"evidence_digest": guest.evidence_digest, "ear_digest": guest.ear_digest}
            view = self._state.view()
            row = self._row(view, path)
            said |= {"tenant": row.tenant, "policy_digest": row.policy.digest()}
            self._judge(view, guest, row.policy, now, tenant=row.tenant)
            content = open_resource(self._core, row)
            try:
                answer = encrypt_to(guest.tee_pubkey, bytes(content), self._core.random)
            finally:
                content[:] = bytes(len(content))
            ticket = self._state.decide(present({**said, "action": "resource", "verdict": "grant"}))
        self._state.ledger.settle(ticket)
        return answer

    def _row(self, view: View, path: str) -> ResourceRow:
        row = view.get(ResourceRow, "resource", path)
        if row is None:
            raise _refused(f"there is no resource {path}", "resource-unknown", "key")
        return row


def _refused(text: str, code: str, stage: str) -> AppraisalError:
    return AppraisalError([AppraisalFailure(text, code=code)], stage=stage)
