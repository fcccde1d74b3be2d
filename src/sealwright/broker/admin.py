"""What the key owner's administrator asks: keys, policies, callers, manifests. Each change is a logged decision."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import TypeVar

from sealwright.appraisal.policy import KeyPolicy
from sealwright.broker.answers import sweep
from sealwright.broker.backend import wiped
from sealwright.broker.core import Core, administered, changed, present, rewrapped, wrap_context
from sealwright.broker.erasure import erased_commitments
from sealwright.broker.generations import is_previous, next_generation
from sealwright.broker.recorded import check_leaves_some
from sealwright.broker.rows import Admitted, CallerRow, Changes, KeyRow, LeaseRow, MismatchRow, OwnerRow
from sealwright.broker.state import View
from sealwright.broker.verdict import generations
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import validated
from sealwright.crypto.dsse import key_id
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.crypto.hpke import HpkePublicKey, Kem, seal_to
from sealwright.crypto.statement import ed25519
from sealwright.errors import AppraisalError, AppraisalFailure, RevokedError, VerificationError
from sealwright.protocol.lease import credential_digest
from sealwright.protocol.sealing_key import SealingKey
from sealwright.sealing.manifest import Manifest

MAX_CALLERS = 4096  # of one tenant
MAX_DECISIONS = 200  # of one answer
T = TypeVar("T")
Json = dict[str, object]


class Admin:
    """Answers the administrator, who was authenticated before. May be called from several threads."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._state = core.state

    def create_key(self, tenant: str, kid: str, model: str, policy: bytes) -> Json:
        """Make a key inside, wrapped under `policy` (YAML). AppraisalError: `key-exists`."""
        loaded = KeyPolicy.load(policy)
        said: Json = {"tenant": tenant, "kid": kid, "policy_digest": loaded.digest()}

        def work(view: View) -> tuple[Changes, KeyRow]:
            now = self._state.now()
            loaded.check_time(now)
            _check_zone(loaded, now)
            if view.get(KeyRow, "key", kid) is not None:
                raise refused(f"there is a key {kid} already", "key-exists")
            row = validated(
                KeyRow,
                {"kid": kid, "tenant": tenant, "model": model, "created": now, "epoch": view.epoch + 1}
                | {"policy": loaded, "wrapped": b""},
            )
            row = row.model_copy(update={"wrapped": self._core.backend.create(wrap_context(row))})
            return {("key", kid): row.encode()}, row

        return self._describe(self.changed("key-create", said, work))

    def set_policy(self, kid: str, policy: bytes, *, force: bool = False) -> Json:
        """Give a key another policy (YAML, or signed) and wrap it again.

        Where the old policy names signers, the new one is signed by them and has a higher version, forced or not.

        Args:
            force: also an older version where nobody signs, and one that locks out every enclave with a lease.

        Raises:
            VerificationError: `version-rollback`. AppraisalError: `would-lock-out`.
        """
        loaded = KeyPolicy.load(policy)
        said: Json = {"kid": kid, "policy_digest": loaded.digest(), "forced": force}

        def work(view: View) -> tuple[Changes, KeyRow]:
            now = self._state.now()
            loaded.check_time(now)
            _check_zone(loaded, now)
            row = active_key(view, kid)
            said["tenant"] = row.tenant
            if row.policy.signers is not None:
                row.policy.succeeded_by(policy, at=now)
            if not force:
                _check_not_older(row.policy, loaded)
                check_leaves_some(self._core, view, row, loaded, now)
            changed = {"policy": loaded, "epoch": view.epoch + 1}
            rows = [rewrapped(self._core, one, changed) for one in generations(view, row)]
            return {one.row_key: one.encode() for one in rows}, rows[0]

        return self._describe(self.changed("policy-set", said, work))

    def revoke_key(self, kid: str, *, reason: str | None = None) -> Json:
        """Release a key no more. Who holds it is told to ask again, and keeps it until the lease ends at the latest."""
        said: Json = {"kid": kid, "reason": None if reason is None else [reason]}

        def work(view: View) -> tuple[Changes, KeyRow]:
            row = active_key(view, kid)
            changes = {"status": "revoked", "revoked": self._state.now(), "reason": reason}
            row = validated(KeyRow, {name: getattr(row, name) for name in KeyRow.model_fields} | changes)
            said["tenant"] = row.tenant
            return {("key", kid): row.encode()}, row

        return self._describe(self.changed("key-revoke", said, work))

    def list_keys(self) -> list[Json]:
        """List all keys."""
        with self._state.lock:
            return [self._describe(row) for row in self._state.view().all(KeyRow, "key")]

    def key(self, kid: str) -> Json:
        """Describe one key."""
        with self._state.lock:
            return self._describe(known_key(self._state.view(), kid))

    def add_caller(self, tenant: str, caller: str) -> str:
        """Return a fresh credential for a caller: shown once, kept as a digest."""
        credential = f"swk_{b64url(self._core.random(32))}"

        def work(view: View) -> tuple[Changes, str]:
            if view.get(CallerRow, "caller", f"{tenant}/{caller}") is not None:
                raise refused(f"there is a caller {caller} already; remove it first", "caller-exists")
            if len(view.all(CallerRow, "caller", prefix=f"{tenant}/")) >= MAX_CALLERS:
                raise refused(f"a tenant has at most {MAX_CALLERS} callers", "too-many-callers")
            fields = {"tenant": tenant, "caller": caller}
            row = validated(CallerRow, fields | {"credential_digest": credential_digest(credential)})
            return {("caller", f"{tenant}/{caller}"): row.encode()}, credential

        return self.changed("caller-add", {"tenant": tenant, "caller": caller}, work)

    def remove_caller(self, tenant: str, caller: str) -> None:
        """Take a caller out; enclaves learn it with their next lease."""

        def work(view: View) -> tuple[Changes, None]:
            if view.get(CallerRow, "caller", f"{tenant}/{caller}") is None:
                raise refused(f"tenant {tenant} has no caller {caller}", "caller-unknown")
            return {("caller", f"{tenant}/{caller}"): None}, None

        self.changed("caller-remove", {"tenant": tenant, "caller": caller}, work)

    def callers(self, tenant: str) -> list[str]:
        """List the callers of a tenant."""
        with self._state.lock:
            rows = self._state.view().all(CallerRow, "caller", prefix=f"{tenant}/")
        return [row.caller for row in rows]

    def add_owner(self, tenant: str, key: bytes) -> str:
        """Admit manifests of one more owner's key (Ed25519, 32 bytes) for a tenant; return the key's id."""

        def work(_view: View) -> tuple[Changes, str]:
            row_id, row = _owner(tenant, key)
            return {("owner", row_id): row.encode()}, key_id(ed25519(key))

        return self.changed("owner-add", {"tenant": tenant}, work)

    def admit(self, kid: str, envelope: bytes, *, owner_key: bytes | None, force: bool) -> Json:
        """Make the manifest in `envelope` (DSSE) the one that a key may open.

        Args:
            owner_key: Ed25519, 32 bytes; pinned for the tenant at the first admission.
            force: also an older version, or another artefact.

        Raises:
            VerificationError, AppraisalError: docs/spec/broker-state.md, Admitting a manifest.
        """
        said: Json = {"kid": kid, "forced": force}

        def work(view: View) -> tuple[Changes, KeyRow]:
            current = active_key(view, kid)
            said["tenant"] = current.tenant
            changes: dict[tuple[str, str], bytes | None] = {}
            owners = [owner.key for owner in view.all(OwnerRow, "owner", prefix=f"{current.tenant}/")]
            if not owners:
                owners = [_required(owner_key)]
                owner_id, owner = _owner(current.tenant, owners[0])
                changes["owner", owner_id] = owner.encode()
            manifest = Manifest.verify_signed(envelope, [ed25519(key) for key in owners])
            said["manifest_digest"] = manifest.manifest_digest
            row = self._opened_by(view, current, manifest)
            said["generation"] = row.number
            if not force:
                _check_newer(current.admitted, manifest)
                _check_newer(row.admitted, manifest)
            admitted = Admitted(
                artefact_id=manifest.artefact_id,
                version=manifest.version,
                manifest_digest=manifest.manifest_digest,
            )
            row = row.model_copy(update={"admitted": admitted})
            return {**changes, row.row_key: row.encode()}, row

        return self._describe(self.changed("manifest-admit", said, work))

    def sealing_key(self, kid: str, public: bytes, *, coming: bool = False) -> bytes:
        """Return a key sealed to the owner's X-Wing key, as a statement (DSSE). The decision is logged first.

        Args:
            coming: the next generation instead of the current one. AppraisalError: `no-next-generation`.
        """
        recipient = HpkePublicKey(kem=Kem.XWING, raw=public)
        said: Json = {"kid": kid, "recipient": hashlib.sha256(public).digest()}

        def work() -> SealingKey:
            with self._state.lock:
                view = self._state.view()
                row = active_key(view, kid)
                row = next_generation(view, row) if coming else row
                said["tenant"], said["generation"] = row.tenant, row.number
                sealed = self._seal(row, recipient)
                ticket = self._state.decide(
                    present({**said, "action": "admin-sealing-key", "verdict": "grant"})
                )
            self._state.ledger.settle(ticket)
            return sealed

        return self._decided("sealing-key", said, work).sign(self._core.secrets.release)

    def decisions(self, limit: int, *, before: int | None = None, openings: bool = False) -> list[Json]:
        """Return the newest decisions, opened, newest first.

        Args:
            before: only those of a lower index.
            openings: with the salts too, so that each can be proved against its commitment.
        """
        with self._state.lock:
            erased = erased_commitments(self._state.view())
        records = self._state.ledger.decisions_backwards(before=before, erased=erased)
        return [
            {"index": record.index, "commitment": record.commitment.hex()}
            | ({"openings": record.openings.to_json()} if openings else {})
            | {name: parse_json(value) for name, value in record.fields.items()}
            for record in islice(records, min(limit, MAX_DECISIONS))
        ]

    def status(self) -> Json:
        """Say how the broker stands; claims of answers that are due are checked first."""
        with self._state.lock:
            now = self._state.now()
            view = self._state.view()
            view = self._counted(view)
            leases = [row for row in view.all(LeaseRow, "lease") if now < row.not_after]
            mismatches = view.all(MismatchRow, "mismatch")
            size = self._state.ledger.size
        return {
            "root": b64url(self._core.secrets.root_public),
            "log_key": self._core.secrets.log_key,
            "log_size": size,
            "epoch": view.epoch,
            "keys": len(view.all(KeyRow, "key")),
            "leases": len(leases),
            "count_mismatches": [row.to_json() for row in mismatches],
            "holder": bool(self._state.ledger.holders),
            "holders": self._state.ledger.holders,
            "rollback": "refused"
            if self._state.ledger.holders
            else "a rollback of log and database together goes unseen: start with --holder or --witness",
        }

    def _counted(self, view: View) -> View:
        """Check the claims of answers that are due."""
        swept = sweep(view, self._state.store.count_receipts, self._state.now())
        if not swept.mismatches:
            return view
        first, *rest = (present(dict(found)) for found in swept.mismatches)
        self._state.change(view, swept.changes, first)
        for found in rest:
            self._state.ledger.settle(self._state.decide(found))
        return self._state.view()

    def _decided(self, action: str, said: Json, work: Callable[[], T]) -> T:
        return administered(self._core, action, said, work)

    def changed(self, action: str, said: Json, work: Callable[[View], tuple[Changes, T]]) -> T:
        """Change rows as `work` says, as a logged decision of the administrator."""
        return changed(self._core, action, said, work)

    def _describe(self, row: KeyRow) -> Json:
        return describe(row) | self._core.backend.describe(row.wrapped)

    def _seal(self, row: KeyRow, recipient: HpkePublicKey) -> SealingKey:
        sealed = SealingKey(
            tenant=row.tenant,
            kid=row.kid,
            epoch=row.epoch,
            recipient=hashlib.sha256(recipient.raw).digest(),
            issued=self._state.now(),
            enc=b"",
            ciphertext=b"",
        )
        with wiped(self._core.backend.unwrap(row.wrapped, wrap_context(row))) as secret:
            enc, ciphertext = seal_to(recipient, sealed.hpke_info(), b"", bytes(secret))
        return sealed.model_copy(update={"enc": enc, "ciphertext": ciphertext})

    def _opened_by(self, view: View, current: KeyRow, manifest: Manifest) -> KeyRow:
        """Return the generation, current or next, whose key opens a manifest. Raises VerificationError: `wrong-dek`."""
        if manifest.kid != current.kid:
            raise refused(f"the manifest is for key {manifest.kid}", "manifest-kid")
        rows = [row for row in generations(view, current) if not is_previous(row)]
        for row in rows[1:]:
            with suppress(VerificationError):
                self._check_opens(row, manifest)
                return row
        self._check_opens(current, manifest)
        return current

    def _check_opens(self, row: KeyRow, manifest: Manifest) -> None:
        with wiped(self._core.backend.unwrap(row.wrapped, wrap_context(row))) as secret:
            manifest.contents(bytes(secret))


def describe(row: KeyRow) -> Json:
    """Return what may be shown of a key."""
    admitted = row.admitted
    return {
        "kid": row.kid,
        "tenant": row.tenant,
        "model": row.model,
        "status": row.status,
        "created": rfc3339(row.created),
        "revoked": None if row.revoked is None else rfc3339(row.revoked),
        "epoch": row.epoch,
        "policy_digest": row.policy.digest().hex(),
        "policy_profile": row.policy.profile,
        "policy_expires": rfc3339(row.policy.expires),
        "lease_s": row.policy.lease_s,
        "grace_s": row.policy.grace_s or 0,
        "generation": row.number,
        "suite": "default",
        "manifest_digest": None if admitted is None else admitted.manifest_digest.hex(),
        "version": None if admitted is None else admitted.version,
    }


def known_key(view: View, kid: str) -> KeyRow:
    """Return a key's row. Raises AppraisalError: `key-unknown`."""
    row = view.get(KeyRow, "key", kid)
    if row is None:
        raise refused(f"there is no key {kid}", "key-unknown")
    return row


def active_key(view: View, kid: str) -> KeyRow:
    """Return a key's row, which was not revoked. Raises AppraisalError, RevokedError."""
    row = known_key(view, kid)
    if row.status != "active":
        raise RevokedError(f"key {kid} was revoked", code="key-revoked", stage="key")
    return row


def _owner(tenant: str, key: bytes) -> tuple[str, OwnerRow]:
    row = validated(OwnerRow, {"tenant": tenant, "key": key})
    return f"{tenant}/{key_id(ed25519(key))}", row


def _required(owner_key: bytes | None) -> bytes:
    if owner_key is None:
        raise refused(
            "the tenant has no owner's key yet; name it with the first manifest", "owner-key-required"
        )
    return owner_key


def _check_zone(policy: KeyPolicy, now: datetime) -> None:
    """Refuse hours in a zone that is not known here before a release has to. Raises CollateralError: `zone-unknown`."""
    if policy.limits is not None and policy.limits.hours is not None:
        policy.limits.hours.window_end(now)


def _check_not_older(before: KeyPolicy, after: KeyPolicy) -> None:
    if after.version < before.version:
        raise VerificationError(
            f"version {after.version} is older than version {before.version}, which is in force: count it up, or "
            "--force to go back",
            code="version-rollback",
            stage="version",
        )


def _check_newer(before: Admitted | None, manifest: Manifest) -> None:
    if before is None or before.manifest_digest == manifest.manifest_digest:
        return
    if before.artefact_id != manifest.artefact_id:
        raise refused("the manifest is of another artefact than the one admitted", "artefact-changed")
    if manifest.version <= before.version:
        raise refused(
            f"version {manifest.version} is not newer than the admitted {before.version}", "manifest-older"
        )


def refused(text: str, code: str) -> AppraisalError:
    """Return an administrator's refusal."""
    return AppraisalError([AppraisalFailure(text, code=code)], stage="admin")
