"""Resources of guests: stored, listed, removed by the administrator; opened for the guest alone.

Spec: docs/spec/kbs-guest.md, Resource row.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealwright.appraisal.guest import GuestPolicy
from sealwright.broker.admin import Admin
from sealwright.broker.backend import wiped
from sealwright.broker.backend.base import NONCE_BYTES
from sealwright.broker.core import Core, wrap_context
from sealwright.broker.rows import Changes, GuestPolicyRow, ResourceRow
from sealwright.broker.state import View
from sealwright.crypto.document import validated
from sealwright.crypto.encoding import joined, rfc3339
from sealwright.errors import AppraisalError, AppraisalFailure, MessageFormatError, VerificationError
from sealwright.protocol.kbs_guest import RESOURCE

MAX_RESOURCE = 1 << 20  # bytes
MAX_RESOURCES = 4096
T = TypeVar("T")
Json = dict[str, object]


class Resources:
    """Answers the administrator, who was authenticated before. May be called from several threads."""

    def __init__(self, core: Core, admin: Admin) -> None:
        self._core, self._admin = core, admin

    def put(self, path: str, content: bytes, *, tenant: str, policy: bytes | None) -> Json:
        """Store a resource, in the place of one that is there.

        Args:
            policy: YAML, or signed; None: the one of the resource that is there, else the tenant's default.

        Raises:
            AppraisalError: `guest-policy-missing`, `resource-of-another-tenant`, `too-many-resources`.
            MessageFormatError: `malformed-name`, `too-large`. SettingsError, VerificationError: the policy.
        """
        _check_path(path)
        if not 0 < len(content) <= MAX_RESOURCE:
            raise MessageFormatError(f"a resource has 1 to {MAX_RESOURCE} bytes", code="too-large")
        loaded = None if policy is None else GuestPolicy.load(policy)
        said: Json = {"resource": path, "tenant": tenant}

        def work(view: View) -> tuple[Changes, ResourceRow]:
            chosen = self._policy(view, path, tenant, policy, loaded)
            said["policy_digest"] = chosen.digest()
            row = self._sealed(view, path, tenant, chosen, content)
            return {("resource", path): row.encode()}, row

        row = self._admin.changed("resource-put", said, work)
        self._forget_old()
        return describe(row)

    def remove(self, path: str) -> Json:
        """Remove a resource. Who has fetched it has it."""
        said: Json = {"resource": path}

        def work(view: View) -> tuple[Changes, ResourceRow]:
            row = _found(view, path)
            said["tenant"] = row.tenant
            return {("resource", path): None}, row

        row = self._admin.changed("resource-remove", said, work)
        self._forget_old()
        return describe(row) | {"removed": True}

    def set_default(self, tenant: str, policy: bytes) -> Json:
        """Make `policy` (YAML, or signed) the one of a tenant's resources that come without. Those there keep theirs."""
        loaded = GuestPolicy.load(policy)
        said: Json = {"tenant": tenant, "policy_digest": loaded.digest()}

        def work(view: View) -> tuple[Changes, Json]:
            now = self._core.state.now()
            loaded.check_time(now)
            before = view.get(GuestPolicyRow, "guest-policy", tenant)
            if before is not None and before.policy.signers is not None:
                before.policy.succeeded_by(policy, at=now)
            row = GuestPolicyRow(tenant=tenant, policy=loaded)
            return {("guest-policy", tenant): row.encode()}, _policy_json(row)

        return self._admin.changed("guest-policy-set", said, work)

    def list_all(self) -> list[Json]:
        """List all resources, without what they hold."""
        with self._core.state.lock:
            return [describe(row) for row in self._core.state.view().all(ResourceRow, "resource")]

    def defaults(self) -> list[Json]:
        """List the tenants' default policies."""
        with self._core.state.lock:
            rows = self._core.state.view().all(GuestPolicyRow, "guest-policy")
        return [_policy_json(row) for row in rows]

    def _policy(
        self, view: View, path: str, tenant: str, policy: bytes | None, loaded: GuestPolicy | None
    ) -> GuestPolicy:
        now = self._core.state.now()
        before = view.get(ResourceRow, "resource", path)
        if before is None and len(view.all(ResourceRow, "resource")) >= MAX_RESOURCES:
            raise _refused(f"a broker holds at most {MAX_RESOURCES} resources", "too-many-resources")
        if before is not None and before.tenant != tenant:
            raise _refused(f"{path} is not this tenant's", "resource-of-another-tenant")
        if before is not None and policy is not None and before.policy.signers is not None:
            before.policy.succeeded_by(policy, at=now)
        chosen = loaded or (before.policy if before is not None else None)
        if chosen is None:
            default = view.get(GuestPolicyRow, "guest-policy", tenant)
            if default is None:
                text = f"no guest policy: give one, or set the default of tenant {tenant}"
                raise _refused(text, "guest-policy-missing")
            chosen = default.policy
        chosen.check_time(now)
        return chosen

    def _sealed(self, view: View, path: str, tenant: str, policy: GuestPolicy, content: bytes) -> ResourceRow:
        core = self._core
        fields = {"path": path, "tenant": tenant, "created": core.state.now(), "epoch": view.epoch + 1}
        empty = {"policy": policy, "wrapped": b"", "content": bytes(32)}
        row: ResourceRow = validated(ResourceRow, fields | empty, MessageFormatError)
        wrapped = core.backend.create(wrap_context(row))
        with wiped(core.backend.unwrap(wrapped, wrap_context(row))) as key:
            nonce = core.random(NONCE_BYTES)
            sealed = nonce + AESGCM(key).encrypt(nonce, content, _aad(row))
        digest = hashlib.sha256(sealed).digest()
        core.state.store.add_content(digest, sealed)
        return row.model_copy(update={"wrapped": wrapped, "content": digest})

    def _forget_old(self) -> None:
        with self._core.state.lock:
            rows = self._core.state.view().all(ResourceRow, "resource")
            self._core.state.store.keep_contents({row.content for row in rows})


def open_resource(core: Core, row: ResourceRow) -> bytearray:
    """Return what a resource holds, proved to be what the row names. The caller wipes it.

    Raises:
        VerificationError: `row-tampered`, `key-unwrap-failed`.
    """
    sealed = core.state.store.content(row.content)
    if sealed is None or hashlib.sha256(sealed).digest() != row.content:
        raise VerificationError(
            f"the content of {row.path} is missing or was altered; store it again",
            code="row-tampered",
            stage="state",
        )
    with wiped(core.backend.unwrap(row.wrapped, wrap_context(row))) as key:
        try:
            return bytearray(AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _aad(row)))
        except InvalidTag:
            raise VerificationError(
                f"the content of {row.path} does not open", code="key-unwrap-failed", stage="unwrap"
            ) from None


def describe(row: ResourceRow) -> Json:
    """Return what may be shown of a resource."""
    return {
        "resource": f"kbs:///{row.path}",
        "tenant": row.tenant,
        "created": rfc3339(row.created),
        "epoch": row.epoch,
        "policy_digest": row.policy.digest().hex(),
        "policy_profile": row.policy.profile,
        "policy_expires": rfc3339(row.policy.expires),
        "suite": "classical",
    }


def _policy_json(row: GuestPolicyRow) -> Json:
    policy = row.policy
    return {
        "tenant": row.tenant,
        "policy_digest": policy.digest().hex(),
        "policy_profile": policy.profile,
        "policy_expires": rfc3339(policy.expires),
    }


def _aad(row: ResourceRow) -> bytes:
    return joined("sealwright/resource/v1", row.path)


def _check_path(path: str) -> None:
    if not RESOURCE.fullmatch(path):
        raise MessageFormatError("a resource is REPOSITORY/TYPE/TAG", code="malformed-name")


def _found(view: View, path: str) -> ResourceRow:
    row = view.get(ResourceRow, "resource", path)
    if row is None:
        raise _refused(f"there is no resource {path}", "resource-unknown")
    return row


def _refused(text: str, code: str) -> AppraisalError:
    return AppraisalError([AppraisalFailure(text, code=code)], stage="admin")
