"""The broker's routes for training: agents' enrolment and releases, the countersigner, checkpoints. Spec: docs/spec/training.md.

In this layer because the broker itself knows nothing of secure aggregation. Who asks is told by signatures and evidence; the
administrator puts policies in force and registers runs.
"""

from __future__ import annotations

import os
import threading
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from sealwright.broker.admin_routes import PREFIX as ADMIN
from sealwright.broker.admin_routes import authenticated
from sealwright.broker.core import Core, changed, present
from sealwright.broker.data import DataKeys
from sealwright.broker.http import read_body
from sealwright.broker.rows import Changes
from sealwright.broker.state import View
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Bytes, Document, Name, Record, validated
from sealwright.crypto.encoding import b64url
from sealwright.protocol.checkpoint import MAX_STATEMENT
from sealwright.protocol.worker import MAX_WORKER_EVIDENCE
from sealwright.training.agent.broker import PREFIX
from sealwright.training.agent.wire import Call, answered
from sealwright.training.countersign import CountersignHandler
from sealwright.training.secagg.countersigner import Countersigner, Kind
from sealwright.training.secagg.enrol import refused
from sealwright.training.secagg.messages import MAX_OPENING
from sealwright.training.secagg.spec import RunSpec

_MAX_ENROL = 2 * MAX_WORKER_EVIDENCE
_MAX_SMALL = 1 << 20


class RunRow(Document):
    """A run that this broker countersigns, and the last that it signed for it."""

    run_spec: Bytes  # canonical
    opening: Bytes = b""
    survivors: Bytes = b""


class EnrolRequest(Record):
    """Body of `POST /enrol`."""

    evidence: Bytes
    kids: Annotated[list[Name], Field(min_length=1, max_length=1025)]


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
    keys, runs = DataKeys(core), Runs(core)
    return [*_for_agents(keys), *_for_drivers(keys, runs), *_for_administrators(core, keys, runs)]


def _for_agents(keys: DataKeys) -> list[BaseRoute]:

    async def nonce(_: Request) -> Response:
        return JSONResponse({"nonce": b64url(await run_in_threadpool(keys.nonce))})

    async def enrol(request: Request) -> Response:
        raw = await read_body(request, _MAX_ENROL)
        body = validated(EnrolRequest, parse_json(raw, limit=_MAX_ENROL))
        return JSONResponse({"ear": await run_in_threadpool(keys.enrol, body.evidence, body.kids)})

    async def release(request: Request) -> Response:
        raw = await read_body(request, _MAX_SMALL)
        return Response(await run_in_threadpool(keys.release, raw), media_type="application/json")

    async def checkpoint(request: Request) -> Response:
        raw = await read_body(request, 2 * MAX_STATEMENT)
        return JSONResponse({"index": await run_in_threadpool(keys.advance, raw)})

    return [
        Route(f"{PREFIX}/nonce", nonce, methods=["POST"]),
        Route(f"{PREFIX}/enrol", enrol, methods=["POST"]),
        Route(f"{PREFIX}/release", release, methods=["POST"]),
        Route(f"{PREFIX}/checkpoint", checkpoint, methods=["POST"]),
    ]


def _for_drivers(keys: DataKeys, runs: Runs) -> list[BaseRoute]:
    async def proof(request: Request) -> Response:
        return PlainTextResponse(await run_in_threadpool(keys.prove, request.path_params["index"]))

    async def log_size(_: Request) -> Response:
        return JSONResponse({"size": keys.log_size})

    async def countersign(request: Request) -> Response:
        raw = await read_body(request, 2 * MAX_OPENING)
        answer = await run_in_threadpool(runs.call, Call.parse(raw))
        return Response(answer.encode(), media_type="application/octet-stream")

    return [
        Route(f"{PREFIX}/proof/{{index:int}}", proof, methods=["GET"]),
        Route(f"{PREFIX}/log-size", log_size, methods=["GET"]),
        Route(f"{PREFIX}/countersign", countersign, methods=["POST"]),
    ]


def _for_administrators(core: Core, keys: DataKeys, runs: Runs) -> list[BaseRoute]:
    async def policy(request: Request) -> object:
        raw = await read_body(request, _MAX_SMALL)
        return {"policy": (await run_in_threadpool(keys.admit_policy, raw)).hex()}

    async def run(request: Request) -> object:
        raw = await read_body(request, _MAX_SMALL)
        return {"run": (await run_in_threadpool(runs.register, raw)).hex()}

    async def countersigner(_: Request) -> object:
        return {"key": b64url(runs.key.public_key().public_bytes_raw())}

    secrets = core.secrets
    return [
        Route(f"{ADMIN}/training/policy", authenticated(policy, secrets), methods=["POST"]),
        Route(f"{ADMIN}/training/run", authenticated(run, secrets), methods=["POST"]),
        Route(f"{ADMIN}/training/countersigner", authenticated(countersigner, secrets), methods=["GET"]),
    ]
