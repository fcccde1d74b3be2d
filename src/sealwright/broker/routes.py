"""Routes for enclaves and for everyone: decode, ask, encode. Spec: docs/spec/key-release.md."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from sealwright.broker import proofs
from sealwright.broker.core import Core
from sealwright.broker.guest import Guests
from sealwright.broker.http import read_body
from sealwright.broker.journal import MAX_JOURNAL, Journal
from sealwright.broker.problems import problem
from sealwright.broker.session import Broker
from sealwright.broker.sessions import SESSION_LIFE
from sealwright.broker.supply import Brought, Supply
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import hex_decode
from sealwright.errors import (
    CollateralError,
    FormatError,
    LogFormatError,
    MessageFormatError,
    SealwrightError,
    VerificationError,
)
from sealwright.protocol.kbs import (
    KBS_VERSION,
    KEYSET_FORM,
    MAX_ATTEST,
    MAX_AUTH,
    SESSION_COOKIE,
    AttestRequest,
    AuthRequest,
    Challenge,
    LeaseRequest,
    encode_nonce,
    is_keyset_form,
    parse_message,
)
from sealwright.protocol.kbs_guest import SELECTED, GuestAttestRequest
from sealwright.protocol.use import PARAMETER, Use
from sealwright.tlog.tiles import CHECKPOINT, Fetch

MAX_LEASE_REQUEST = 4 * 1024  # bytes
MAX_BEARER = 64 * 1024  # characters
HEALTH_S = 1.0  # seconds that an answer about the rows holds
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SESSION = re.compile(r"[0-9a-f]{32}", re.ASCII)

Endpoint = Callable[[Request], Awaitable[Response]]


def kbs_routes(broker: Broker, guests: Guests, core: Core, supply: Supply | None = None) -> list[BaseRoute]:
    """Return the routes of the KBS protocol, in our keyset form and the guests' of Confidential Containers.

    Args:
        supply: what brings collateral that evidence needs.
    """
    return [
        Route("/kbs/v0/auth", _auth(broker, guests), methods=["POST"]),
        Route("/kbs/v0/attest", _attest(broker, guests, supply), methods=["POST"]),
        Route("/kbs/v0/sealwright/lease", _lease(broker, core), methods=["POST"]),
        Route("/kbs/v0/resource/{repository}/{kind}/{tag}", _resource(broker, guests), methods=["GET"]),
    ]


def public_routes(
    core: Core, journal: Journal, fetch: Fetch, *, monotonic: Callable[[], float] = time.monotonic
) -> list[BaseRoute]:
    """Return the routes that anyone may ask: keys, proofs, the log; and the journal, which checks signatures."""
    return [
        Route("/healthz", _healthy(Health(partial(rows_hold, core), monotonic), "serving"), methods=["GET"]),
        Route("/readyz", _healthy(Health(partial(_can_decide, core), monotonic), "ready"), methods=["GET"]),
        Route("/sealwright/v1/broker-keys", _broker_keys(core), methods=["GET"]),
        Route("/sealwright/v1/journal", _journal(journal), methods=["POST"]),
        Route("/sealwright/v1/proofs/{entry}", _proof(core), methods=["GET"]),
        Route("/log/{path:path}", _log(fetch), methods=["GET"]),
    ]


def _auth(broker: Broker, guests: Guests) -> Endpoint:
    async def post(request: Request) -> Response:
        raw = await read_body(request, MAX_AUTH)
        asked = parse_json(raw, limit=MAX_AUTH)
        if (
            isinstance(asked, dict)
            and isinstance(asked.get("version"), str)
            and asked["version"] != KBS_VERSION
        ):
            return problem(401, "kbs-version", kbs=True)
        message = parse_message(AuthRequest, raw, limit=MAX_AUTH)
        if message.wants_keyset():
            session = await run_in_threadpool(broker.auth, message)
            extra = {"sealwright": KEYSET_FORM}
        else:
            session, chosen = await run_in_threadpool(guests.auth, message)
            extra = {SELECTED: chosen}
        challenge = Challenge.model_validate(
            {"nonce": encode_nonce(session.challenge), "extra-params": extra}
        )
        answer = JSONResponse(challenge.to_json())
        answer.set_cookie(
            SESSION_COOKIE,
            session.session_id,
            max_age=int(SESSION_LIFE.total_seconds()),
            expires=session.ends,
            path="/kbs/v0",
            httponly=True,
            samesite="strict",
        )
        return answer

    return post


def _attest(broker: Broker, guests: Guests, supply: Supply | None) -> Endpoint:
    async def post(request: Request) -> Response:
        raw = await read_body(request, MAX_ATTEST)
        if is_keyset_form(parse_json(raw, limit=MAX_ATTEST)):
            asked = parse_message(AttestRequest, raw, limit=MAX_ATTEST)
            session = session_of(request)
            evidence_of, attest = (
                partial(broker.evidence_of, session, asked),
                partial(broker.attest, session, asked),
            )
        else:
            guest = parse_message(GuestAttestRequest, raw, limit=MAX_ATTEST)
            session = session_of(request)
            evidence_of, attest = (
                partial(guests.evidence_of, session, guest),
                partial(guests.attest, session, guest),
            )
        if supply is None or not supply.fetches:
            return JSONResponse({"token": await run_in_threadpool(attest)})
        evidence = await run_in_threadpool(evidence_of)
        peer = "" if request.client is None else request.client.host
        brought = Brought() if evidence is None else await supply.bring(evidence, peer)
        try:
            token = await run_in_threadpool(attest)
        except CollateralError:
            if brought.pending is not None:
                raise brought.pending from None  # it is lacking, and on its way
            raise
        supply.proved(brought)
        return JSONResponse({"token": token})

    return post


def _lease(broker: Broker, core: Core) -> Endpoint:
    async def post(request: Request) -> Response:
        raw = await read_body(request, MAX_LEASE_REQUEST)
        asked = parse_message(LeaseRequest, raw, limit=MAX_LEASE_REQUEST)
        given = await run_in_threadpool(broker.lease, session_of(request), asked)
        envelopes = {"lease": given.envelope, "callers": given.callers, "broker_keys": core.broker_keys()}
        return JSONResponse({name: json.loads(envelope) for name, envelope in envelopes.items()})

    return post


def _resource(broker: Broker, guests: Guests) -> Endpoint:
    async def get(request: Request) -> Response:
        path = [name_of(request, member) for member in ("repository", "kind", "tag")]
        session = _session_or_token(request)
        if await run_in_threadpool(guests.has, session):
            answer = await run_in_threadpool(guests.resource, session, "/".join(path))
            return JSONResponse(answer.to_json())
        if path[1] != "key":
            return problem(404, "resource-unknown", kbs=True)
        named = request.query_params.get(PARAMETER)
        use = None if named is None else Use.from_text(named)
        release = await run_in_threadpool(broker.resource, session, path[0], path[2], use)
        return Response(release, media_type="application/json")

    return get


class Health:
    """What one check found. Anyone may ask, and it costs a hash of all rows: once a second at most."""

    def __init__(self, look: Callable[[], None], monotonic: Callable[[], float]) -> None:
        """Args: look: raises what is wrong."""
        self._look, self._monotonic = look, monotonic
        self._lock = threading.Lock()
        self._until = float("-inf")
        self._refused: SealwrightError | None = None

    def check(self) -> None:
        """Raise what the last check raised, after another one if that was long ago."""
        with self._lock:
            if self._monotonic() >= self._until:
                self._refused = self._found()
                self._until = self._monotonic() + HEALTH_S
            if self._refused is not None:
                raise self._refused

    def _found(self) -> SealwrightError | None:
        try:
            self._look()
        except SealwrightError as error:
            return error.with_traceback(None)
        return None


def rows_hold(core: Core) -> None:
    """Prove that the rows are those of the last decision. Raises SealwrightError."""
    with core.state.lock:
        core.state.now()
        core.state.view()


def _can_decide(core: Core) -> None:
    """No decision is answered before it is in the log: without a place to write, none can be made."""
    rows_hold(core)
    core.state.ledger.check_writable()


def _healthy(health: Health, text: str) -> Endpoint:
    async def get(_request: Request) -> Response:
        await run_in_threadpool(health.check)
        return PlainTextResponse(text)

    return get


def _broker_keys(core: Core) -> Endpoint:
    async def get(_request: Request) -> Response:
        return Response(core.broker_keys(), media_type="application/json")

    return get


def _journal(journal: Journal) -> Endpoint:
    async def post(request: Request) -> Response:
        raw = await read_body(request, MAX_JOURNAL)
        return JSONResponse({"logged": await run_in_threadpool(journal.add, raw)})

    return post


def _proof(core: Core) -> Endpoint:
    async def get(request: Request) -> Response:
        try:
            entry = hex_decode(request.path_params["entry"], length=32)
        except FormatError:
            return problem(404, "proof-unknown", kbs=False)
        found = await run_in_threadpool(proofs.prove, core.state, entry)
        if found is None:
            return problem(404, "proof-unknown", kbs=False)
        return Response(found, media_type="text/plain; charset=utf-8")

    return get


def _log(fetch: Fetch) -> Endpoint:
    async def get(request: Request) -> Response:
        path = request.path_params["path"]
        try:
            raw = await run_in_threadpool(fetch, path)
        except (FileNotFoundError, LogFormatError):
            return problem(404, "tile-unknown", kbs=False)
        if path == CHECKPOINT:
            headers = {"cache-control": "no-store"}
            return Response(raw, media_type="text/plain; charset=utf-8", headers=headers)
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return Response(raw, media_type="application/octet-stream", headers=headers)

    return get


def name_of(request: Request, member: str) -> str:
    """Return a name in the path. Raises MessageFormatError: `malformed-name`."""
    value = request.path_params[member]
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise MessageFormatError(f"{member} is not a name", code="malformed-name")
    return value


def session_of(request: Request) -> str:
    """Return the session named by the cookie. Raises VerificationError: `session-unknown`."""
    session_id = request.cookies.get(SESSION_COOKIE, "")
    if not _SESSION.fullmatch(session_id):
        raise VerificationError("no session cookie; begin with auth", code="session-unknown", stage="session")
    return session_id


def _session_or_token(request: Request) -> str:
    """Return the token of the request, or the id of its session. A cookie goes before a token, as in Trustee."""
    try:
        return session_of(request)
    except VerificationError:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_BEARER:
            raise
        return token
