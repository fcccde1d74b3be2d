"""A broker as agents of training reach it: through whatever connects them. Spec: docs/spec/training.md, Broker.

Answers are checked under the broker's root before anything in them is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import AppraisalError, AppraisalFailure, MessageFormatError, UnavailableError
from sealwright.protocol.training_data import TRAINING_PATH
from sealwright.protocol.worker import WorkerEvidence

_MAX = 4 << 20  # bytes of an answer
_REFUSALS = (400, 401, 403, 404, 409, 410)


class Http(Protocol):
    """One request; returns status and body."""

    def __call__(self, method: str, path: str, body: bytes, kind: str, /) -> tuple[int, bytes]:
        """Raises UnavailableError: not reached."""
        ...


class TrainingBroker:
    """The broker's answers to agents and drivers."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def keys(self) -> bytes:
        """Return its working keys (DSSE), for `verify_broker_keys`."""
        return self._asked("GET", "/sealwright/v1/broker-keys")

    def nonce(self) -> bytes:
        """Return a nonce that evidence has to answer (32 bytes)."""
        found = self._json("POST", f"{TRAINING_PATH}/nonce").get("nonce")
        if not isinstance(found, str):
            raise _malformed()
        return b64url_decode(found, length=32)

    def enrol(self, evidence: WorkerEvidence, kids: Sequence[str]) -> tuple[str, bytes]:
        """Return the broker's result about evidence, an EAR, and its working keys (DSSE). Raises BrokerSaysNo."""
        said = json.dumps({"evidence": evidence.to_json(), "kids": list(kids)}).encode()
        match self._json("POST", f"{TRAINING_PATH}/enrol", said):
            case {"token": str(token), "broker_keys": dict(keys)}:
                return token, canonical(keys)
        raise _malformed()

    def release(self, request: bytes) -> bytes:
        """Return the answer to a data request (DSSE), for `open_release`. Raises BrokerSaysNo."""
        return self._asked("POST", f"{TRAINING_PATH}/data", request)

    def checkpoint(self, statement: bytes) -> bytes:
        """Have a checkpoint statement (DSSE) logged as the newest; return its `.tlog-proof`. Raises BrokerSaysNo."""
        return self._asked("POST", f"{TRAINING_PATH}/checkpoints", statement)

    def countersign(self, call: bytes) -> bytes:
        """Return the countersigner's answer to a call."""
        return self._asked("POST", f"{TRAINING_PATH}/countersign", call)

    def _json(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        found = parse_json(self._asked(method, path, body), limit=_MAX)
        if not isinstance(found, dict):
            raise _malformed()
        return found

    def _asked(self, method: str, path: str, body: bytes = b"") -> bytes:
        status, answer = self._http(method, path, body, "application/octet-stream")
        if status == 200:
            return answer
        code = _code(answer)
        if status in _REFUSALS:
            raise BrokerSaysNo(code or "broker-refused")
        raise UnavailableError(
            f"the broker cannot answer now ({status})", code=code or "broker-unreachable", stage="broker"
        )


class BrokerSaysNo(AppraisalError):
    """The broker's own refusal; its code is shown."""

    def __init__(self, code: str) -> None:
        text = f"the broker refused ({code}): its owner sees why with `sealwright broker decisions list`"
        super().__init__([AppraisalFailure(text, code=code)], stage="broker")


def _code(body: bytes) -> str:
    try:
        said = parse_json(body, limit=_MAX)
    except MessageFormatError:
        return ""
    code = said.get("code") if isinstance(said, dict) else None
    fine = isinstance(code, str) and len(code) <= 64 and code.replace("-", "").isalnum() and code.isascii()
    return str(code) if fine else ""


def _malformed() -> UnavailableError:
    return UnavailableError("the broker's answer is not in its form", code="malformed-answer", stage="broker")
