"""A worker's side of the broker: attest, ask for shards, hand checkpoints over. Spec: docs/spec/training-data.md, Routes.

Everything that comes back is checked under a root that the worker's measured config names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.encoding import b64url_decode, hex_decode
from sealwright.crypto.hpke import HpkePrivateKey
from sealwright.crypto.statement import ed25519
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    FormatError,
    UnavailableError,
    VerificationError,
)
from sealwright.protocol.lease import BrokerKeys, verify_broker_keys
from sealwright.protocol.training_data import TRAINING_PATH, DataRequest
from sealwright.protocol.worker import WorkerEvidence
from sealwright.training.checkpoint.attested import issued_at, verified_result
from sealwright.training.data.shard import Released, open_release

_MAX_ANSWER = 1 << 20  # bytes


class Answer(Protocol):
    """An HTTP answer: see `sealwright.enclave.http.Answer`."""

    @property
    def status(self) -> int:
        """The status."""

    @property
    def body(self) -> bytes:
        """The body."""


Request = Callable[[str, str, bytes], Answer]
"""Asks (method, path, body): `HttpConnection.request` of the enclave, or a test's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What the broker says of a worker: goes beside checkpoints, with the evidence."""

    evidence: WorkerEvidence
    result: str  # EAR, compact JWT
    issued: datetime  # when the broker issued it
    broker_keys: BrokerKeys
    broker_keys_envelope: bytes  # DSSE


class TrainingBroker:
    """One broker."""

    def __init__(self, request: Request, root: bytes) -> None:
        """Args: root: Ed25519, 32 bytes, of the worker's own config."""
        self._request, self._root = request, root
        self._nonces: set[bytes] = set()

    def enrol(
        self, make: Callable[[bytes], WorkerEvidence], kids: Sequence[str], *, at: datetime | None
    ) -> Enrolment:
        """Return the broker's result about evidence that `make` makes over its nonce.

        Args:
            kids: keys that the worker will ask for, and the checkpoint's.
            at: the worker's time; none: it knows none yet, and the result's time of issue is taken.

        Raises:
            AppraisalError: refused. VerificationError: not this broker, or a nonce that was used. UnavailableError.
        """
        said = self._json("POST", "/nonce", b"")
        nonce = b64url_decode(_text(said, "nonce"), length=32)
        if nonce in self._nonces:
            raise VerificationError("the broker's nonce was used before", code="nonce-used", stage="nonce")
        self._nonces.add(nonce)
        evidence = make(nonce)
        body = json.dumps({"evidence": evidence.to_json(), "kids": list(kids)}).encode()
        said = self._json("POST", "/enrol", body)
        envelope = canonical(said.get("broker_keys"))
        token = _text(said, "token")
        keys = BrokerKeys.verify(envelope, [ed25519(self._root)], stage="broker")
        issued = issued_at(verified_result(token.encode(), evidence, keys))
        verify_broker_keys(envelope, [self._root], at=at or issued)
        return Enrolment(
            evidence=evidence, result=token, issued=issued, broker_keys=keys, broker_keys_envelope=envelope
        )

    def release(
        self, request: DataRequest, sign: Ed25519PrivateKey, tee: HpkePrivateKey, enrolment: Enrolment
    ) -> Released:
        """Return a shard's key for one epoch. Where the answer is lost, the same request may be sent again.

        Raises:
            AppraisalError: refused. FormatError, VerificationError: not the broker's answer to it.
        """
        raw = self._ask("POST", "/data", request.sign(sign))
        return open_release(raw, request, broker=enrolment.broker_keys, tee=tee)

    def advance(self, statement: bytes) -> bytes:
        """Hand a checkpoint's statement (DSSE) over as the newest of its lineage; return its `.tlog-proof`, unverified."""
        return self._ask("POST", "/checkpoints", statement)

    def newest(self, lineage: bytes) -> tuple[int, bytes] | None:
        """Return version and digest of the lineage's newest checkpoint; None: it has none."""
        answer = self._request("GET", f"{TRAINING_PATH}/lineages/{lineage.hex()}", b"")
        if answer.status == 404:
            return None
        said = _object(_checked(answer))
        version = said.get("version")
        if not isinstance(version, int) or isinstance(version, bool):
            raise _malformed()
        return version, hex_decode(_text(said, "statement"), length=32)

    def _json(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        return _object(self._ask(method, path, body))

    def _ask(self, method: str, path: str, body: bytes) -> bytes:
        return _checked(self._request(method, f"{TRAINING_PATH}{path}", body))


def _checked(answer: Answer) -> bytes:
    if answer.status == 200:
        return answer.body
    try:
        code = _text(_object(answer.body), "code")
    except (UnavailableError, FormatError):
        code = ""
    code = code if code.replace("-", "").isalnum() and len(code) <= 64 else ""
    if answer.status in (400, 401, 403, 409):
        text = f"the broker refused ({code or answer.status}); its owner sees why: sealwright broker decisions list"
        raise AppraisalError([AppraisalFailure(text, code=code or "broker-refused")], stage="broker")
    raise UnavailableError(
        f"the broker cannot answer now ({code or answer.status})", code="broker-unreachable", stage="broker"
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        said = parse_json(raw, limit=_MAX_ANSWER)
    except FormatError:
        said = None
    if not isinstance(said, dict):
        raise _malformed()
    return said


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str):
        raise _malformed()
    return value


def _malformed() -> UnavailableError:
    return UnavailableError("what answers is not a broker", code="malformed-answer", stage="answer")
