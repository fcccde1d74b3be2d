"""Which backend wraps, moving keys from one to another, and new versions of root keys: each a logged decision.

Spec: docs/spec/key-backends.md, Backends of a broker.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sealwright.broker.admin import Json
from sealwright.broker.backend import Backends, EmbeddedBackend, KeyBackend, WrapContext, wiped
from sealwright.broker.backend import embedded as embedded_backend
from sealwright.broker.backend.make import make_backend
from sealwright.broker.backend.settings import Settings, load
from sealwright.broker.core import Core, administered, changed, present, rewrapped, wrapped_rows
from sealwright.broker.rows import BackendRow, Changes, RowKey, WrappedRow
from sealwright.broker.settings import Layout
from sealwright.broker.state import View
from sealwright.crypto.canonical import canonical
from sealwright.errors import (
    RevokedError,
    SealwrightError,
    SettingsError,
    UnavailableError,
    VerificationError,
)

EMBEDDED = embedded_backend.NAME
MOVED_AT_ONCE = 8  # rows of one decision: the state is held meanwhile
_TRIAL = WrapContext(kid="trial", tenant="trial", policy_digest=bytes(32), epoch=1)
Failed = list[Json]
_OTHER = WrapContext(kid="trial", tenant="other", policy_digest=bytes(32), epoch=1)


class BackendAdmin:
    """Answers the administrator about backends. May be called from several threads."""

    def __init__(self, core: Core, digests: Mapping[str, bytes]) -> None:
        """Args: digests: of each backend's settings, 32 bytes."""
        self._core, self._state, self._ring = core, core.state, core.backend
        self._digests = dict(digests)

    def list(self) -> Sequence[Json]:
        """Say of each backend what it is, what hangs on it, and whether it answers."""
        with self._state.lock:
            stands = self._stands(self._state.view())
        return [self._one(name, stands) for name in self._ring.names()]

    def status(self) -> Json:
        """Say how the active backend stands."""
        return next(one for one in self.list() if one["status"] == "active")

    def use(self, name: str) -> Json:
        """Wrap with `name` from now on, after it has proved on a key of trial that it works.

        Raises:
            SealwrightError: it does not.
        """
        said: Json = {"backend": name}

        def work() -> None:
            self._ring.ask(name, try_out)
            said["settings_digest"] = self._digests[name]
            with self._state.lock:
                view = self._state.view()
                fields = {**said, "action": "admin-backend-use", "verdict": "grant"}
                self._state.change(view, self._activated(view, name), present(fields))
                self._ring.activate(name)

        administered(self._core, "backend-use", said, work)
        return self.status()

    def rotate(self, name: str) -> Json:
        """Make a new version of a root key; keys are moved to it by `move`."""
        said: Json = {"backend": name}

        def work() -> str:
            version = self._ring.ask(name, lambda backend: backend.rotate())
            with self._state.lock:
                fields = {**said, "action": "admin-backend-rotate", "verdict": "grant", "version": version}
                ticket = self._state.decide(present(fields))
            self._state.ledger.settle(ticket)
            return version

        return {"backend": name, "version": administered(self._core, "backend-rotate", said, work)}

    def move(self) -> Json:
        """Re-wrap some of the keys that are not under the active backend's current version.

        Returns:
            `kids` moved now, how many are `left` for the next call, `failed` keys with the code of why.
        """
        active = self._ring.active
        version = self._current(active)
        said: Json = {"backend": active, "version": version}
        failed: Failed = []

        def work(view: View) -> tuple[Changes, int]:
            rows = self._waiting(view, (active, version))
            changes = self._moved(view, rows, failed)
            if not changes:
                raise RevokedError(
                    f"{len(failed)} keys cannot be moved: {failed[0]['kid']} says {failed[0]['code']}",
                    code="backend-move-stuck",
                    stage="unwrap",
                )
            said["kids"] = sorted(kid for _, kid in changes)
            return changes, len(rows) - len(changes) - len(failed)

        with self._state.lock:
            if not self._waiting(self._state.view(), (active, version)):
                return said | {"kids": [], "left": 0, "failed": []}
            left = changed(self._core, "backend-move", said, work)
        return said | {"left": left, "failed": failed}

    def _waiting(self, view: View, target: tuple[str, str]) -> Sequence[WrappedRow]:
        return [row for row in wrapped_rows(view) if self._ring.stands(row.wrapped) != target]

    def _moved(self, view: View, rows: Iterable[WrappedRow], failed: Failed) -> dict[RowKey, bytes | None]:
        changes: dict[RowKey, bytes | None] = {}
        for row in rows:
            if len(changes) == MOVED_AT_ONCE:
                break
            try:
                changes[row.row_key] = rewrapped(self._core, row, {"epoch": view.epoch + 1}).encode()
            except (VerificationError, RevokedError) as error:
                # One key that is lost does not keep the others where they are.
                failed.append({"kid": row.wrapped_as, "code": error.code})
        return changes

    def _activated(self, view: View, name: str) -> dict[RowKey, bytes | None]:
        rows = {row.name: row.model_copy(update={"status": "former"}) for row in _rows(view)}
        rows[name] = self._row(name, "active")
        return {("backend", row.name): row.encode() for row in rows.values()}

    def _row(self, name: str, status: str) -> BackendRow:
        facts = self._ring.get(name).facts
        fields = {"name": name, "kind": facts.kind, "key": facts.key, "status": status}
        return BackendRow.from_json(fields | {"settings_digest": self._digests[name].hex()})

    def _current(self, name: str) -> str:
        return self._ring.ask(name, lambda backend: backend.current())

    def _stands(self, view: View) -> Sequence[tuple[str, str]]:
        return [self._ring.stands(row.wrapped) for row in wrapped_rows(view)]

    def _one(self, name: str, stands: Sequence[tuple[str, str]]) -> Json:
        facts = self._ring.get(name).facts
        said: Json = {
            "name": name,
            "kind": facts.kind,
            "key": facts.key,
            "status": "active" if name == self._ring.active else "former",
            "release": facts.release,
            "exportable": facts.exportable,
            "keys": sum(1 for backend, _ in stands if backend == name),
        }
        try:
            version = self._current(name)
        except SealwrightError as error:
            return said | {"version": None, "state": error.code, "reason": str(error)}
        behind = sum(1 for backend, at in stands if backend == name and at != version)
        return said | {"version": version, "state": "ready", "keys_on_older_versions": behind}


def open_backends(layout: Layout, file: Path | None, random: Callable[[int], bytes]) -> Backends:
    """Return the backends of a broker: the embedded one, and those of its settings. None is asked anything.

    Raises:
        SettingsError, UnavailableError: see `make_backend`.
    """
    backends: dict[str, KeyBackend] = {EMBEDDED: EmbeddedBackend.open(layout.root / "keys", random)}
    backends |= {name: make_backend(name, settings) for name, settings in _load(layout, file).items()}
    return Backends(backends)


def start_backends(core: Core, file: Path, approve: Sequence[str]) -> BackendAdmin:
    """Make the approved backend active, if its settings are those that were approved.

    Args:
        approve: backends whose settings may have changed; that is logged.

    Raises:
        SettingsError: `backend-unknown`, `backend-changed`.
    """
    digests = {name: settings.digest() for name, settings in load(file).items()}
    digests[EMBEDDED] = hashlib.sha256(canonical({"kind": EMBEDDED})).digest()
    admin = BackendAdmin(core, digests)
    with core.state.lock:
        view = core.state.view()
        used = {core.backend.stands(row.wrapped)[0] for row in wrapped_rows(view)}
        for row in _rows(view):
            if row.status == "active" or row.name in used:
                _approved(core, row, digests, approve)
        active = [row.name for row in _rows(view) if row.status == "active"]
        for name in [*used, *active]:
            core.backend.get(name)
        core.backend.activate(active[0] if active else EMBEDDED)
    return admin


def try_out(backend: KeyBackend) -> str:
    """Return the version of a backend that makes, opens and re-wraps keys, and refuses a wrong context.

    Raises:
        SealwrightError: it does not; VerificationError: `backend-unbound`: it opens a key for anyone.
    """
    version = backend.current()
    made = backend.create(_TRIAL)
    with wiped(backend.unwrap(made, _TRIAL)) as key:
        again = backend.rewrap(made, _TRIAL, _OTHER)
        with wiped(backend.unwrap(again, _OTHER)) as same:
            works = hmac.compare_digest(key, same)
    try:
        backend.unwrap(again, _TRIAL)
    except VerificationError:
        bound = True
    else:
        bound = False
    if not (works and bound):
        raise VerificationError(
            "the backend opens a key for another context than it was wrapped for, or gives another key back",
            code="backend-unbound",
            stage="backend",
        )
    return version


def _approved(core: Core, row: BackendRow, digests: Mapping[str, bytes], approve: Sequence[str]) -> None:
    now = digests.get(row.name)
    if now is None:
        core.backend.get(row.name)
        return
    if hmac.compare_digest(now, row.settings_digest):
        return
    if row.name not in approve:
        raise SettingsError(
            f"the settings of backend {row.name} are not those that were approved: restore them, or start once "
            f"with --approve-backend {row.name}",
            code="backend-changed",
        )
    new = row.model_copy(update={"settings_digest": now, "key": core.backend.get(row.name).facts.key})
    said = {
        "action": "admin-backend-approve",
        "verdict": "grant",
        "backend": row.name,
        "settings_digest": now,
    }
    core.state.change(core.state.view(), {("backend", row.name): new.encode()}, present(said))


def _load(layout: Layout, file: Path | None) -> dict[str, Settings]:
    if file is not None and not file.exists():
        raise UnavailableError(f"{file} is not there", code="file-unreadable", stage="files")
    return load(file or layout.backends)


def _rows(view: View) -> list[BackendRow]:
    return view.all(BackendRow, "backend")
