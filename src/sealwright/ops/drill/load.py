"""Load for drills: writes, releases of keys, releases under a budget, and races; every outcome is kept."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx2

from sealwright.crypto.encoding import b64url
from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.errors import SealwrightError, UnavailableError
from sealwright.ops.drill.asker import Budgeted

LIMIT_S = 60.0  # a request that has no answer by then was left hanging
TENANT, KID = "drill", "drill-key"
Kind = Literal["write", "release", "race", "budget"]
# What a request may be told when it is not granted. Anything else is a finding.
CLEAR = frozenset(
    {
        "not-the-writer",
        "writer-fenced",
        "store-unavailable",
        "state-uncertain",
        "log-closed",
        "log-timeout",
        "holder-unreachable",
        "clock-disagrees",
        "clock-back",
        "caller-exists",
        "log-rolled-back",
        "log-forked",
    }
)
# And who attests: the budget is spent, or another replica writes than the one that the handshake began with.
CLEAR_OF_BUDGET = CLEAR | {"budget-exhausted", "session-unknown", "broker-unreachable", "state-busy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request and how it ended."""

    kind: Kind
    name: str  # of the caller, or SHA-256 of the recipient (hex)
    at: float  # CLOCK_MONOTONIC, when it ended
    seconds: float
    status: int  # 0: the connection failed
    code: str

    @property
    def granted(self) -> bool:
        """Whether it was."""
        return self.status == 200

    @property
    def clear(self) -> bool:
        """Whether it was answered, or refused in a way that says why, or met a process that was not there."""
        clear = CLEAR_OF_BUDGET if self.kind == "budget" else CLEAR
        return self.granted or self.code in clear or self.code == "connection"


@dataclass
class Load:
    """Threads that ask the replicas in turn."""

    urls: Callable[[], Sequence[str]]
    token: str
    budgeted: Budgeted | None = None  # None: nobody asks under a budget
    threads: int = 8
    outcomes: list[Outcome] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _started: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin."""
        for index in range(self.threads):
            thread = threading.Thread(target=self._work, args=(index,), daemon=True)
            thread.start()
            self._started.append(thread)

    def stop(self) -> list[Outcome]:
        """End when each thread has its answer, and return all outcomes."""
        self._end.set()
        for thread in self._started:
            thread.join(2 * LIMIT_S)
        return self.outcomes

    def granted_since(self, at: float) -> Outcome | None:
        """Return the first write that was granted after `at`."""
        found = [one for one in list(self.outcomes) if one.granted and one.kind == "write" and one.at > at]
        return min(found, key=lambda one: one.at) if found else None

    def _work(self, index: int) -> None:
        with httpx2.Client(
            timeout=LIMIT_S, trust_env=False, headers={"authorization": f"Bearer {self.token}"}
        ) as http:
            while not self._end.is_set():
                number = next(self._numbers)
                urls = self.urls()
                outcome = self._ask(http, urls[(number + index) % len(urls)], number, index)
                self.outcomes.append(outcome)
                if not outcome.granted:
                    time.sleep(0.05)

    def _ask(self, http: httpx2.Client, url: str, number: int, index: int) -> Outcome:
        if index % 4 == 3 and self.budgeted is not None:
            return _attested(self.budgeted, url, f"b{number}")
        path = f"{url}/sealwright/v1/admin"
        if index % 4 == 1:
            public = HpkePrivateKey.generate(Kem.XWING).public.raw
            return _post(
                http,
                f"{path}/keys/{KID}/sealing-key",
                {"public_key": b64url(public)},
                "release",
                hashlib.sha256(public).hexdigest(),
            )
        kind: Kind = "race" if index % 4 == 2 else "write"
        # Neighbours in a race ask for the same name.
        name = f"r{number // 2 % 100_000}" if kind == "race" else f"w{number}"
        return _post(http, f"{path}/tenants/{TENANT}/callers", {"caller": name}, kind, name)


def _attested(budgeted: Budgeted, url: str, name: str) -> Outcome:
    start = time.monotonic()
    status, code = 200, ""
    try:
        budgeted.ask(url)
    except SealwrightError as error:
        code = error.code
        status = 0 if code == "broker-unreachable" else 503 if isinstance(error, UnavailableError) else 401
    now = time.monotonic()
    return Outcome(kind="budget", name=name, at=now, seconds=now - start, status=status, code=code)


def _post(http: httpx2.Client, url: str, body: dict[str, str], kind: Kind, name: str) -> Outcome:
    start = time.monotonic()
    status, code = 0, "connection"
    try:
        answer = http.post(url, json=body)
        status = answer.status_code
        code = "" if status == 200 else str(_code(answer))
    except httpx2.TimeoutException:
        code = "hanging"
    except httpx2.HTTPError:
        pass
    now = time.monotonic()
    return Outcome(kind=kind, name=name, at=now, seconds=now - start, status=status, code=code)


def _code(answer: httpx2.Response) -> object:
    try:
        return answer.json().get("code", "none")
    except ValueError:
        return "none"
