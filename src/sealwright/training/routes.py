"""The broker as a countersigner of secure aggregation. Spec: docs/spec/training.md, Broker.

In this layer because the broker itself knows nothing of secure aggregation. The administrator registers runs.
"""

from __future__ import annotations

import os
import threading
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from sealwright.broker.admin_routes import PREFIX as ADMIN
from sealwright.broker.admin_routes import authenticated
from sealwright.broker.core import Core, changed, present
from sealwright.broker.http import read_body
from sealwright.broker.rows import Changes
from sealwright.broker.state import View
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Document
from sealwright.crypto.encoding import b64url
from sealwright.protocol.training_data import TRAINING_PATH
from sealwright.training.agent.wire import Call, answered
from sealwright.training.countersign import CountersignHandler
from sealwright.training.secagg.countersigner import Countersigner, Kind
from sealwright.training.secagg.enrol import refused
from sealwright.training.secagg.messages import MAX_OPENING
from sealwright.training.secagg.spec import RunSpec

_MAX_RUN = 64 << 10  # bytes


class RunRow(Document):
    """A run that this broker countersigns, and the last that it signed for it."""

    run_spec: Bytes  # canonical
    opening: Bytes = b""
    survivors: Bytes = b""


class Runs:
    """The runs of one broker: rows among its own, so that what was signed outlives everything that they outlive."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self.handler = CountersignHandler(self._find)

    @property
    def key(self) -> Ed25519PrivateKey:
        """What countersigns: of this broker's root alone, for nothing else."""
        seed = self._core.secrets.root.private_bytes_raw()
        return Ed25519PrivateKey.from_private_bytes(
            HKDF(algorithm=SHA256(), length=32, salt=None, info=b"sealwright/countersigner/v1").derive(seed)
        )

    def register(self, raw: bytes) -> bytes:
        """Countersign a run from now on; return its digest. The same run again changes nothing.

        Raises:
            FormatError: not a run specification; VerificationError: `other-run`: it names another countersigner.
        """
        spec = RunSpec.parse(raw)
        if spec.countersigner != self.key.public_key().public_bytes_raw():
            raise refused("the run specification names another countersigner", "other-run", "run")

        def work(view: View) -> tuple[Changes, bytes]:
            row_key = ("secagg-run", spec.digest().hex())
            if view.get(RunRow, *row_key) is not None:
                return {}, spec.digest()
            return {row_key: RunRow(run_spec=raw).encode()}, spec.digest()

        return changed(self._core, "training-run", {"run": spec.run, "run_spec": spec.digest()}, work)

    def call(self, call: Call) -> Call:
        """Answer the countersigner's calls, one at a time."""
        with self._lock:
            return answered(self.handler, call)

    def _find(self, run: bytes) -> Countersigner | None:
        with self._core.state.lock:
            row = self._core.state.view().get(RunRow, "secagg-run", run.hex())
        if row is None:
            return None
        return Countersigner(
            RunSpec.parse(row.run_spec), self.key, _Rounds(self._core, run), random=os.urandom
        )


class _Rounds:
    """`SignedRounds` as rows: each a logged decision."""

    def __init__(self, core: Core, run: bytes) -> None:
        self._core, self._key = core, ("secagg-run", run.hex())

    def last(self, run_spec: bytes, kind: Kind) -> bytes | None:
        """As `SignedRounds` says."""
        with self._core.state.lock:
            row = self._core.state.view().get(RunRow, *self._key)
        return (getattr(row, kind) or None) if row is not None else None

    def record(self, run_spec: bytes, kind: Literal["opening", "survivors"], envelope: bytes) -> None:
        """As `SignedRounds` says."""

        state = self._core.state
        with state.lock:
            view = state.view()
            row = view.get(RunRow, *self._key)
            if row is None:
                raise RuntimeError("a run is registered before anything is signed for it")
            fields = {"action": "countersign", "kind": kind, "run_spec": run_spec, "verdict": "grant"}
            changes = {self._key: row.model_copy(update={kind: envelope}).encode()}
            state.change(view, changes, present(fields))


def training_routes(core: Core) -> list[BaseRoute]:
    """Return all of them."""
    runs = Runs(core)

    async def countersign(request: Request) -> Response:
        raw = await read_body(request, 2 * MAX_OPENING)
        answer = await run_in_threadpool(runs.call, Call.parse(raw))
        return Response(answer.encode(), media_type="application/octet-stream")

    async def register(request: Request) -> object:
        raw = await read_body(request, _MAX_RUN)
        spec = RunSpec.from_json(parse_json(raw, limit=_MAX_RUN))
        return {"run": (await run_in_threadpool(runs.register, spec.encode())).hex()}

    async def countersigner(_: Request) -> object:
        return {"key": b64url(runs.key.public_key().public_bytes_raw())}

    return [
        Route(f"{TRAINING_PATH}/countersign", countersign, methods=["POST"]),
        Route(f"{ADMIN}/training/runs", authenticated(register, core.secrets), methods=["POST"]),
        Route(f"{ADMIN}/training/countersigner", authenticated(countersigner, core.secrets), methods=["GET"]),
    ]
