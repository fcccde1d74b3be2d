"""The workload: serve sealed models to attested clients. Entry `sealwright.inference.main:main`.

Order: fork the zygote while there is no secret; make keys; attest; lease; release; open the models into
sealed memory; load the engines; serve. Any failure before the last step ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial

import uvicorn
import uvloop

from sealwright.attester.software import confine_engine
from sealwright.enclave.app import EnclaveApp
from sealwright.enclave.artefacts import MAX_PAYLOAD, EnclavePayload, OpenedModel, open_artefact
from sealwright.enclave.broker_client import BrokerClient
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.identity import Identity
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.enclave.notes import Note, silence_libraries, to_stderr
from sealwright.enclave.runtime import Enclave
from sealwright.enclave.workload import Workload
from sealwright.errors import SettingsError
from sealwright.inference import llamacpp
from sealwright.inference.engine import Engine
from sealwright.inference.parameters import EngineParameters
from sealwright.inference.service import ChatService, ServedModel
from sealwright.inference.zygote import Zygote
from sealwright.protocol.enclave_config import MAX_CONFIG, EnclaveConfig

BACKLOG = 1024  # connections
MAX_CONNECTIONS = 1024  # open at once; beyond them requests are answered 503
KEEP_ALIVE_S = 5  # an idle connection
GRACE_S = 10  # seconds for requests that are under way when the process is told to end

_forked: list[Zygote] = []  # what `prefork` leaves for `main`: the platform calls them one after the other


def prefork(workload: Workload) -> None:
    """Fork the zygote. The platform calls this before it takes away sockets, and before any secret."""
    locked = workload.claims.get("swap") == "mlock"
    confine = partial(confine_engine, memory_locked=locked)
    _forked.append(Zygote.start(llamacpp.run, confine=confine, prepare=llamacpp.prepare))


def main(workload: Workload) -> int:
    """Serve until told to end; return the exit code."""
    silence_libraries()
    zygote = _forked.pop()
    try:
        uvloop.run(_until_signal(workload, zygote))
    finally:
        zygote.close()
    return 0


async def _until_signal(workload: Workload, zygote: Zygote) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(workload, zygote, stop=stop, note=to_stderr)


async def serve(workload: Workload, zygote: Zygote, *, stop: asyncio.Event, note: Note) -> None:
    """Attest, open the models, and serve them until `stop` is set.

    Raises:
        SealwrightError: not allowed to serve, or the models cannot be opened.
    """
    if workload.listener is None:
        raise SettingsError("an enclave that serves needs a listener", code="no-listener", stage="start")
    config = EnclaveConfig.parse(workload.config, limit=MAX_CONFIG, error=SettingsError)
    payload = EnclavePayload.parse(workload.unverified_payload, limit=MAX_PAYLOAD)
    payload.check(config)
    enclave = _enclave(workload, config, payload, note)
    opened = await asyncio.to_thread(_open_models, enclave, workload.extra_fds, payload, config)
    models = await _start_engines(opened, zygote, config, note)
    app = EnclaveApp(
        enclave,
        ChatService(enclave, models, note=note),
        note=note,
        ready=lambda: "ending" if stop.is_set() else not_ready(enclave, models),
    )
    keeping = asyncio.create_task(enclave.keep(partial(_stop_tenant, models)), name="leases")
    keeping.add_done_callback(partial(_keeper_ended, stop=stop, note=note))
    note("serving", models=len(models), config_digest=config.digest().hex())
    try:
        await _serve_http(app, workload.listener, stop)
    finally:
        keeping.cancel()
        for model in models.values():
            await model.engine.close()
        await enclave.flush()
    note("ended")


def not_ready(enclave: Enclave, models: Mapping[tuple[str, str], ServedModel]) -> str:
    """Return why no tenant can be answered now, as a code; empty: one that holds a lease has all its engines.

    One tenant's revoked lease does not take the enclave away from the others.
    """
    if enclave.stopped:
        return enclave.stopped
    in_force = enclave.in_force()
    if not in_force:
        return "no-lease"
    down = {tenant for (tenant, _), model in models.items() if not model.engine.up}
    return "" if set(in_force) - down else "engine-unavailable"


async def _serve_http(app: EnclaveApp, listener: socket.socket, stop: asyncio.Event) -> None:
    server = _Server(app)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        stopping.cancel()
        await serving


def _keeper_ended(task: asyncio.Task[None], *, stop: asyncio.Event, note: Note) -> None:
    """Nobody keeps the leases any more: without one that is a reason to end, not to go on."""
    if not task.cancelled() and (error := task.exception()) is not None:
        note("internal-error", kind=type(error).__name__)
        stop.set()


def _enclave(workload: Workload, config: EnclaveConfig, payload: EnclavePayload, note: Note) -> Enclave:
    clock = EnclaveClock()
    identity = Identity(
        config=config,
        config_bytes=workload.config,
        config_digest=config.digest(),
        keys=EnclaveKeys.generate(config.suite, created=datetime.now(UTC)),
        openings=payload.openings,
        quote=workload.quote,
        platform=workload.platform,
    )
    brokers = [BrokerClient(address, workload.connect, clock) for address in config.brokers]
    return Enclave(identity, brokers, clock, note=note)


def _open_models(
    enclave: Enclave, fds: Mapping[str, int], payload: EnclavePayload, config: EnclaveConfig
) -> list[OpenedModel]:
    session, grants = enclave.begin()
    threads = min(config.engine.threads, 8)
    try:
        return [
            open_artefact(
                opening.tenant,
                entry,
                payload,
                fds,
                partial(session.release, grants[opening.tenant], entry.kid, entry.manifest_digest),
                threads=threads,
            )
            for opening in payload.openings
            for entry in opening.artefacts
        ]
    finally:
        session.close()


async def _start_engines(
    opened: list[OpenedModel], zygote: Zygote, config: EnclaveConfig, note: Note
) -> dict[tuple[str, str], ServedModel]:
    models = {}
    for model in opened:
        engine = Engine(
            zygote,
            model.model_fd,
            EngineParameters.of(config.engine),
            note=partial(note, kid=model.entry.kid),
        )
        await engine.start()
        models[model.tenant, model.entry.model] = ServedModel(entry=model.entry, engine=engine)
    return models


async def _stop_tenant(models: Mapping[tuple[str, str], ServedModel], tenant: str) -> None:
    for (owner, _), model in models.items():
        if owner == tenant:
            await model.engine.close()


class _Server(uvicorn.Server):
    """uvicorn on a listener that it was given, silent, and without handlers of its own for signals."""

    def __init__(self, app: EnclaveApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `main`: uvicorn would end the process before the last receipts are logged."""
        yield
