"""Rotation, revocation, budgets and machines, as the administrator asks for them. Each change is a logged decision.

Spec: docs/spec/life-cycle.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from sealwright.appraisal.limits import Limits
from sealwright.broker.admin import Admin, active_key, known_key, refused
from sealwright.broker.budgets import counts
from sealwright.broker.core import Core, wrap_context
from sealwright.broker.generations import check_no_next, dropped, switched
from sealwright.broker.revocations import FINAL, MAX_REVOCATIONS, check_value
from sealwright.broker.rows import (
    BudgetRow,
    Changes,
    GenerationRow,
    KeyRow,
    MachinesRow,
    Place,
    RevocationRow,
    RevokedKind,
    Scope,
    SpentRow,
)
from sealwright.broker.state import View
from sealwright.crypto.document import validated
from sealwright.errors import MessageFormatError, RevokedError
from sealwright.protocol.machines import MAX_STATEMENT, Machines

Json = dict[str, object]
KINDS: tuple[RevokedKind, ...] = get_args(RevokedKind)
MAX_LISTS = 256  # of machines


class Life:
    """Answers the administrator, who was authenticated before. May be called from several threads."""

    def __init__(self, core: Core, admin: Admin) -> None:
        self._core, self._admin = core, admin
        self._state = core.state

    # Rotation

    def rotate(self, kid: str) -> Json:
        """Make the next generation of a key inside: it is sealed under and released beside the current one.

        Raises:
            AppraisalError: `next-generation-exists`.
        """
        said: Json = {"kid": kid}

        def work(view: View) -> tuple[Changes, GenerationRow]:
            current = active_key(view, kid)
            check_no_next(view, current)
            said["tenant"] = current.tenant
            fields = {name: getattr(current, name) for name in KeyRow.model_fields}
            fields |= {"generation": current.number + 1, "created": self._state.now(), "place": "next"}
            fields |= {"epoch": view.epoch + 1, "wrapped": b"", "admitted": None}
            row = validated(GenerationRow, fields)
            row = row.model_copy(update={"wrapped": self._core.backend.create(wrap_context(row))})
            said["generation"] = row.number
            return {row.row_key: row.encode()}, row

        return _generation(self._admin.changed("key-rotate", said, work), "next")

    def switch(self, kid: str) -> Json:
        """Make the next generation the current one; the current one goes on as the previous.

        Raises:
            AppraisalError: `no-next-generation`, `next-not-admitted`, `previous-generation-kept`.
        """
        said: Json = {"kid": kid}

        def work(view: View) -> tuple[Changes, KeyRow]:
            current = active_key(view, kid)
            said["tenant"] = current.tenant
            changes, after = switched(view, current)
            said["generation"] = after.number
            return changes, after

        return _generation(self._admin.changed("key-switch", said, work), "current")

    def retire(self, kid: str, place: Place = "previous") -> Json:
        """Release the previous (or the next) generation no more; enclaves that hold it are told to ask again.

        Raises:
            AppraisalError: `no-previous-generation`, `no-next-generation`.
        """
        said: Json = {"kid": kid, "place": place}

        def work(view: View) -> tuple[Changes, KeyRow]:
            current = active_key(view, kid)
            said["tenant"] = current.tenant
            return dropped(view, current, place), current

        return _generation(self._admin.changed("key-retire", said, work), "current")

    # Revocation

    def revoke(self, kind: str, value: str, reason: str) -> Json:
        """Refuse from now on whoever is, runs or stands on what is named. A key is revoked as `Admin.revoke_key` does.

        Raises:
            MessageFormatError: `malformed-revocation`. RevokedError: `key-revoked`. AppraisalError: `revoked-already`,
                `too-many-revocations`.
        """
        if kind == "key":
            return {"kind": kind, "value": value, "reason": reason} | {
                "at": self._admin.revoke_key(value, reason=reason)["revoked"]
            }
        named = _kind(kind)
        check_value(named, value)

        def work(view: View) -> tuple[Changes, RevocationRow]:
            fields = {"kind": named, "value": value, "reason": reason, "at": self._state.now()}
            row = validated(RevocationRow, fields)
            if view.get(RevocationRow, *row.row_key) is not None:
                raise refused(f"{kind} {value} was revoked before", "revoked-already")
            if len(view.all(RevocationRow, "revocation")) >= MAX_REVOCATIONS:
                raise refused(f"a broker holds at most {MAX_REVOCATIONS} revocations", "too-many-revocations")
            return {row.row_key: row.encode()}, row

        said: Json = {"kind": kind, "value": value, "reason": [reason]}
        return self._admin.changed("revoke", said, work).to_json()

    def unrevoke(self, kind: str, value: str, reason: str) -> Json:
        """Take a revocation back, with the reason in the log.

        Raises:
            RevokedError: `revocation-final`: a key, or an enclave. AppraisalError: `revocation-unknown`.
        """
        said: Json = {"kind": kind, "value": value, "reason": [reason]}

        def work(view: View) -> tuple[Changes, Json]:
            if kind == "key" or _kind(kind) in FINAL:
                raise RevokedError(
                    f"nothing brings a revoked {kind} back: make another",
                    code="revocation-final",
                    stage="admin",
                )
            if view.get(RevocationRow, "revocation", f"{kind}/{value}") is None:
                raise refused(f"{kind} {value} is not revoked", "revocation-unknown")
            return {("revocation", f"{kind}/{value}"): None}, {"kind": kind, "value": value, "revoked": False}

        return self._admin.changed("unrevoke", said, work)

    def revocations(self) -> list[Json]:
        """List what is revoked, keys too."""
        with self._state.lock:
            view = self._state.view()
        keys = [row for row in view.all(KeyRow, "key") if row.status == "revoked"]
        listed: list[Json] = [
            {"kind": "key", "value": row.kid, "reason": row.reason or ""}
            | ({"at": row.to_json()["revoked"]} if row.revoked else {})
            for row in keys
        ]
        return listed + [row.to_json() for row in view.all(RevocationRow, "revocation")]

    # Budgets

    def set_budget(self, scope: Scope, name: str, limits: Limits) -> Json:
        """Bound releases of a key, or of a tenant's keys together, beside what policies say. Nothing spent is forgotten.

        Raises:
            AppraisalError: `key-unknown`. CollateralError: `zone-unknown`.
        """

        def work(view: View) -> tuple[Changes, BudgetRow]:
            if scope == "key":
                said["tenant"] = known_key(view, name).tenant
            now = self._state.now()
            if limits.hours is not None:
                limits.hours.window_end(now)  # a zone that is not known here is refused before a release is
            fields = {"scope": scope, "name": name, "limits": limits, "at": now}
            row = validated(BudgetRow, fields)
            return {row.row_key: row.encode()}, row

        said: Json = {"scope": scope, "name": name, "limits": limits.to_json()}
        self._admin.changed("budget-set", said, work)
        return self.budget(scope, name)

    def remove_budget(self, scope: Scope, name: str) -> Json:
        """Take an administrator's limits away; those of a policy stay, and so does what was spent.

        Raises:
            AppraisalError: `budget-unknown`.
        """

        def work(view: View) -> tuple[Changes, Json]:
            row_key = ("budget", f"{scope}/{name}")
            if view.get(BudgetRow, *row_key) is None:
                raise refused(f"no limits were set for {scope} {name}", "budget-unknown")
            return {row_key: None}, {"scope": scope, "name": name, "removed": True}

        return self._admin.changed("budget-remove", {"scope": scope, "name": name}, work)

    def budget(self, scope: Scope, name: str) -> Json:
        """Say what a key or a tenant may use, and has used since it has limits."""
        with self._state.lock:
            view = self._state.view()
        row = view.get(BudgetRow, "budget", f"{scope}/{name}")
        spent = view.get(SpentRow, "spent", f"{scope}/{name}")
        key = view.get(KeyRow, "key", name) if scope == "key" else None
        policy = None if key is None else key.policy.limits
        return {
            "scope": scope,
            "name": name,
            "limits": None if row is None else row.limits.to_json(),
            "policy_limits": None if policy is None else policy.to_json(),
            "spent": {"releases": 0, "rows": 0, "epochs": 0} if spent is None else counts(spent),
        }

    # Machines

    def add_machines(self, envelope: bytes) -> Json:
        """Keep an operator's signed list of the machines that stand in a region; it takes the place of the last one.

        Whether the operator counts is for each policy to say: here only the form is checked.

        Raises:
            MessageFormatError: not such a list. AppraisalError: `too-many-machine-lists`.
        """
        listed = Machines.unverified(envelope)

        def work(view: View) -> tuple[Changes, Json]:
            fields = {"operator": listed.operator, "region": listed.region, "at": self._state.now()}
            row = validated(MachinesRow, fields | {"envelope": envelope})
            rows = view.all(MachinesRow, "machines")
            if len(rows) >= MAX_LISTS and row.row_key not in view.rows:
                raise refused(
                    f"a broker holds at most {MAX_LISTS} lists of machines", "too-many-machine-lists"
                )
            return {row.row_key: row.encode()}, fields_of(listed)

        if len(envelope) > 2 * MAX_STATEMENT:
            raise MessageFormatError("the list is too long", code="too-large")
        said: Json = {"operator": listed.operator, "region": listed.region}
        return self._admin.changed("machines-add", said, work)

    def machines(self) -> list[Json]:
        """List the lists of machines, as they say themselves."""
        with self._state.lock:
            rows = self._state.view().all(MachinesRow, "machines")
        return [fields_of(Machines.unverified(row.envelope)) for row in rows]


def fields_of(listed: Machines) -> Json:
    """Return what may be shown of a list."""
    said: Mapping[str, object] = listed.to_json()
    shown = ("operator", "region", "not_before", "not_after")
    return {name: said[name] for name in shown} | {"machines": len(listed.machines)}


def _kind(kind: str) -> RevokedKind:
    for known in KINDS:
        if kind == known:
            return known
    raise MessageFormatError(
        f"what can be revoked is one of key, {', '.join(KINDS)}", code="malformed-revocation"
    )


def _generation(row: KeyRow, place: str) -> Json:
    admitted = None if row.admitted is None else row.admitted.manifest_digest.hex()
    return {
        "kid": row.kid,
        "tenant": row.tenant,
        "generation": row.number,
        "place": place,
        "manifest_digest": admitted,
    }
