"""Refusals told to a webhook: signed, in order, never waited for. Spec: docs/spec/events.md."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from sealwright.broker.files import read_secret
from sealwright.broker.ocsf import refusal_event
from sealwright.errors import FormatError, SettingsError

MAX_QUEUED = 1024
TRIES = 6  # of one event, then it is dropped
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
TIMEOUT_S = 5.0
MIN_SECRET = 32  # bytes
SIGNATURE, TIMESTAMP = "sealwright-signature", "sealwright-timestamp"
_LABEL = b"sealwright/event/v1"

Count = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where events go, and the secret that they are authenticated with."""

    url: str
    secret: bytes = field(repr=False)

    @classmethod
    def load(cls, url: str, secret_file: Path) -> Hook:
        """Return a hook. Raises SettingsError: `event-url`, `event-secret`, `broker-files-exposed`."""
        check_url(url)
        secret = read_secret(secret_file).strip()
        if len(secret) < MIN_SECRET:
            raise SettingsError(
                f"the events' secret has fewer than {MIN_SECRET} bytes: `openssl rand -hex 32`",
                code="event-secret",
            )
        return cls(url=url, secret=secret)


def check_url(url: str) -> None:
    """Prove that events may go there: https, or http to loopback; no credentials; no link-local address.

    Raises:
        SettingsError: `event-url`.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise SettingsError("the events' address is no URL", code="event-url") from None
    address = None
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
    loopback = address is not None and address.is_loopback
    refused = (
        not host
        or parts.username is not None
        or parts.fragment
        or not (parts.scheme == "https" or (parts.scheme == "http" and loopback))
        or (address is not None and (address.is_link_local or address.is_multicast or address.is_unspecified))
    )
    if refused:
        raise SettingsError(
            "events go to https://…, or to http:// and a loopback address; without credentials in the address",
            code="event-url",
        )


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return what authenticates an event: HMAC-SHA-256, hex. Spec: docs/spec/events.md, Signature."""
    message = b"\n".join([_LABEL, timestamp.encode(), body])
    return "v1=" + hmac.new(secret, message, hashlib.sha256).hexdigest()


def encode(event: Mapping[str, object]) -> bytes:
    """Return an event as it is sent."""
    return json.dumps(event, sort_keys=True, separators=(",", ":")).encode()


class Events:
    """A bounded queue of refusals, and the thread that sends them."""

    def __init__(
        self,
        hook: Hook,
        *,
        origin: str,
        count: Count = lambda _: None,
        transport: httpx2.BaseTransport | None = None,
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        """Args: origin: name of the broker's log; count: takes each outcome; transport: for tests."""
        self._hook, self._origin, self._count = hook, origin, count
        self._first_wait_s = first_wait_s
        self._queue: queue.Queue[Mapping[str, object]] = queue.Queue(MAX_QUEUED)
        self._ended = threading.Event()
        self._http = httpx2.Client(
            timeout=TIMEOUT_S, trust_env=False, follow_redirects=False, transport=transport
        )

    def __call__(self, fields: Mapping[str, object]) -> None:
        """Take a decision; refusals are queued, or dropped where too many wait. Never waits, never raises."""
        if fields.get("verdict") != "refuse":
            return
        try:
            self._queue.put_nowait(dict(fields))
        except queue.Full:
            self._count("dropped")
            return
        self._count("queued")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Send while the block runs; what is queued at its end is dropped after one try each."""
        thread = threading.Thread(target=self._run, name="events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(2 * TIMEOUT_S)
            self._http.close()

    def send(self, fields: Mapping[str, object]) -> int | None:
        """Send one event once; return the status, or None where there was no answer."""
        body = encode(refusal_event(fields, origin=self._origin))
        stamp = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            TIMESTAMP: stamp,
            SIGNATURE: signature(self._hook.secret, stamp, body),
        }
        try:
            with self._http.stream("POST", self._hook.url, content=body, headers=headers) as answer:
                return answer.status_code  # the body is of no interest, and may be long
        except httpx2.HTTPError:
            return None

    def _run(self) -> None:
        while not (self._ended.is_set() and self._queue.empty()):
            try:
                fields = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._deliver(fields)

    def _deliver(self, fields: Mapping[str, object]) -> None:
        wait = self._first_wait_s
        for _ in range(TRIES):
            try:
                status = self.send(fields)
            except (FormatError, KeyError, TypeError, ValueError):
                break  # never twice what cannot be written
            if status is not None and 200 <= status < 300:
                self._count("sent")
                return
            self._count("failed")
            if self._ended.wait(wait):
                break
            wait = min(wait * 2, LONGEST_WAIT_S)
        self._count("dropped")
