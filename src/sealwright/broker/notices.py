"""Has anything changed that a lease rests on? Answered as soon as it has, so that its holder asks for another.

A notice is a hint and proves nothing: the enclave attests anew, and is told then. Spec: docs/spec/life-cycle.md, Push.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sealwright.broker.core import Core
from sealwright.broker.http import read_body
from sealwright.broker.rows import KeyRow, LeaseRow
from sealwright.broker.state import View
from sealwright.broker.verdict import generations
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.document import Id16, Record, validated
from sealwright.crypto.encoding import digest
from sealwright.errors import UnavailableError

HOLD_S = 15.0  # how long an answer is held back when there is nothing to say
LOOK_S = 0.1
MAX_WAITING = 256
MAX_WAITING_ALIKE = 4  # for the same lease: whoever knows one cannot take every place
MAX_REQUEST = 16 * 1024  # bytes
PATH = "/sealwright/v1/notices"


class NoticeRequest(Record):
    """Body of a request: the leases that one enclave holds."""

    leases: Annotated[list[Id16], Field(min_length=1, max_length=256)]


def grounds(view: View, kids: Iterable[str]) -> bytes:
    """Return a digest (32 bytes) of what a lease over these keys rests on: what decides of them, and revocations."""
    keys = [row for kid in sorted(kids) if (row := view.get(KeyRow, "key", kid)) is not None]
    rows = [row for key in keys for row in generations(view, key)]
    revoked = sorted(row_id for kind, row_id in view.rows if kind == "revocation")
    return digest("sealwright/grounds/v1", len(rows), *(_decides(row) for row in rows), *revoked)


def _decides(row: KeyRow) -> bytes:
    admitted = b"" if row.admitted is None else row.admitted.manifest_digest
    return digest(*row.row_key, row.status, row.policy.digest(), admitted)


class Notices:
    """Tells which leases rest on what no longer stands. One look at the rows serves all who wait."""

    def __init__(self, core: Core, *, hold_s: float = HOLD_S, limit: int = MAX_WAITING) -> None:
        """Args: hold_s: s; limit: requests that may wait at a time."""
        self._state = core.state
        self._hold_s, self._limit = hold_s, limit
        self._waiting: Counter[bytes] = Counter()  # by the first lease that was named
        self._view: View | None = None

    async def changed(self, leases: Sequence[bytes]) -> list[bytes]:
        """Return those of `leases` that are to be renewed now, as soon as there are any; none after a while.

        Raises:
            UnavailableError: `too-many-waiting`.
        """
        first = leases[0]
        if self._waiting.total() >= self._limit or self._waiting[first] >= MAX_WAITING_ALIKE:
            raise UnavailableError(
                "too many enclaves wait for notices", code="too-many-waiting", stage="notices"
            )
        self._waiting[first] += 1
        try:
            return await self._wait(leases)
        finally:
            self._waiting[first] -= 1
            self._waiting += Counter()  # forget those of which none waits

    async def _wait(self, leases: Sequence[bytes]) -> list[bytes]:
        seen = -1
        for _ in range(max(1, int(self._hold_s / LOOK_S))):
            epoch = self._state.anchor.epoch
            if epoch != seen:
                seen = epoch
                known, found = await run_in_threadpool(self._look, leases)
                if found or not known:
                    return found
            await asyncio.sleep(LOOK_S)
        return []

    def _look(self, leases: Sequence[bytes]) -> tuple[bool, list[bytes]]:
        """Say whether one of the leases is known, and which are to be renewed."""
        with self._state.lock:
            if self._view is None or self._view.epoch != self._state.anchor.epoch:
                self._view = self._state.view()
            known = any(("lease", lease.hex()) in self._view.rows for lease in leases)
            return known, [lease for lease in leases if not _stands(self._view, lease)]


def _stands(view: View, lease: bytes) -> bool:
    # One that is not known any more stands until its end: nobody can make enclaves ask by forgetting.
    row = view.get(LeaseRow, "lease", lease.hex())
    if row is None or row.grounds is None or row.kids is None:
        return True
    return hmac.compare_digest(row.grounds, grounds(view, row.kids))


def notice_routes(notices: Notices) -> list[BaseRoute]:
    """Return the route that enclaves wait on."""

    async def post(request: Request) -> Response:
        raw = await read_body(request, MAX_REQUEST)
        asked = validated(NoticeRequest, parse_json(raw, limit=MAX_REQUEST))
        found = await notices.changed(asked.leases)
        return JSONResponse({"changed": [lease.hex() for lease in found]})

    return [Route(PATH, post, methods=["POST"])]
