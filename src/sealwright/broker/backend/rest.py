"""JSON over HTTPS to a key backend: pinned, bounded, retried only where nothing changes by it.

Spec: docs/spec/key-backends.md, Network.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from sealwright.broker.backend.base import denied, malformed, unavailable
from sealwright.crypto.canonical import parse_json
from sealwright.errors import FormatError, SettingsError
from sealwright.protocol.body import PLAIN, parts

MAX_ANSWER = 1 << 20  # bytes
_OVERLOADED = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a backend answered."""

    status: int
    body: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether it did what was asked."""
        return 200 <= self.status < 300


class Rest:
    """One backend's HTTP interface. May be used from several threads."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        timeout_s: float,
        ca_file: Path | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            ca_file: the only roots that are trusted; None: the system's.
            transport: in place of the network, for tests.

        Raises:
            SettingsError: `backend-url-insecure`, `backend-ca-malformed`.
        """
        check_url(url)
        self._name = name
        self._http = httpx2.Client(
            base_url=url,
            timeout=timeout_s,
            trust_env=False,
            verify=_context(ca_file) if url.startswith("https:") else False,
            transport=transport,
        )

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str],
        again: bool = True,
    ) -> Answer:
        """Return an answer, whatever its status, but for one that says "later".

        Args:
            again: nothing changes when this is asked twice.

        Raises:
            UnavailableError: `backend-unavailable`, `backend-answer-malformed`.
        """
        for tries_left in (1, 0) if again else (0,):
            try:
                answer = self._once(method, path, body, headers)
            except httpx2.HTTPError as exc:
                if tries_left and not isinstance(exc, httpx2.ReadTimeout):
                    continue
                raise unavailable(self._name, type(exc).__name__) from None
            if answer.status not in _OVERLOADED:
                return answer
        raise unavailable(self._name, f"HTTP {answer.status}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _once(
        self, method: str, path: str, body: Mapping[str, object] | None, headers: Mapping[str, str]
    ) -> Answer:
        raw = bytearray()
        with self._http.stream(method, path, json=body, headers={**headers, **PLAIN}) as answer:
            for chunk in parts(answer):
                raw += chunk
                if len(raw) > MAX_ANSWER:
                    raise malformed(self._name, f"it is over {MAX_ANSWER} bytes")
        if not raw and answer.status_code != 200:
            return Answer(answer.status_code, {})
        try:
            parsed = parse_json(bytes(raw), limit=MAX_ANSWER)
        except FormatError:
            parsed = None
        if not isinstance(parsed, dict):
            if answer.status_code >= 400:  # a proxy's page
                return Answer(answer.status_code, {})
            raise malformed(self._name, "it is not a JSON object")
        return Answer(answer.status_code, parsed)


class CachedToken:
    """A bearer token that is fetched when it is needed, and again at half of its life."""

    def __init__(self, fetch: Callable[[], tuple[str, float]], monotonic: Callable[[], float]) -> None:
        """Args: fetch: returns (token, seconds it lives)."""
        self._fetch, self._monotonic = fetch, monotonic
        self._token, self._renew_at = "", 0.0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        """Return a token. Raises UnavailableError as `fetch`."""
        with self._lock:
            now = self._monotonic()
            if not self._token or now >= self._renew_at:
                self._token, life_s = self._fetch()
                self._renew_at = now + life_s / 2
            return self._token

    def forget(self) -> None:
        """Fetch the next one: this one was refused."""
        with self._lock:
            self._token = ""


def check_url(url: str) -> None:
    """Refuse plain HTTP but to this machine. Raises SettingsError: `backend-url-insecure`."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme == "https" and parsed.host and not parsed.userinfo:
        return
    if parsed.scheme == "http" and _is_loopback(parsed.host) and not parsed.userinfo:
        return
    raise SettingsError(
        "a key backend's url is https://…, or http:// on a loopback address", code="backend-url-insecure"
    )


def text(answer: Answer, name: str, *path: str) -> str:
    """Return a text member of an answer. Raises UnavailableError: `backend-answer-malformed`."""
    value: object = answer.body
    for member in path:
        value = value.get(member) if isinstance(value, Mapping) else None
    if not isinstance(value, str) or not value.isascii():
        raise malformed(name, f"it has no {'.'.join(path)}")
    return value


def refused(answer: Answer, name: str) -> Exception:
    """Return the error of an answer that nothing else explains."""
    if answer.status in (401, 403):
        return denied(name, f"HTTP {answer.status}")
    if answer.status >= 500:
        return unavailable(name, f"HTTP {answer.status}")
    return malformed(name, f"HTTP {answer.status}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return ssl.create_default_context()
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=str(ca_file))
    except (OSError, ssl.SSLError):
        raise SettingsError(f"{ca_file} holds no certificates in PEM", code="backend-ca-malformed") from None
    return context
