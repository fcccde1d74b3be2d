"""Receipts of answers, and the journal they wait in until the broker has logged them. Spec: docs/spec/receipt.md."""

from __future__ import annotations

import json
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sealwright.crypto.canonical import canonical
from sealwright.enclave.keyset import EnclaveKeys
from sealwright.errors import UnavailableError
from sealwright.protocol.commitment import Commitment
from sealwright.protocol.lease import Lease
from sealwright.protocol.receipt import Predicate, Receipt, ReceiptStatement

BATCH = 64  # receipts handed over at once; some 3 KiB each
NOT_CONFIDENTIAL = frozenset({"software", "tpm"})  # platforms that hide nothing from the host


class Journal:
    """Receipts that are not logged yet. Room is taken before an answer begins, so that none goes without."""

    def __init__(self, limit: int) -> None:
        """Args: limit: receipts waiting and promised together, of the config."""
        self._limit = limit
        self._promised = 0
        self._waiting: deque[dict[str, Any]] = deque()

    @contextmanager
    def room(self) -> Iterator[None]:
        """Keep room for one receipt while an answer is made.

        Raises:
            UnavailableError: the backlog is full (`receipt-backlog-full`).
        """
        if self._promised + len(self._waiting) >= self._limit:
            raise UnavailableError(
                "receipts wait to be logged; no new request is taken",
                code="receipt-backlog-full",
                stage="journal",
            )
        self._promised += 1
        try:
            yield
        finally:
            self._promised -= 1

    def put(self, envelope: dict[str, Any]) -> None:
        """Add a receipt (DSSE, JSON values), within `room`."""
        self._waiting.append(envelope)

    def batch(self) -> list[dict[str, Any]]:
        """Return the oldest receipts, which stay until `logged`."""
        return [self._waiting[at] for at in range(min(BATCH, len(self._waiting)))]

    def logged(self, count: int) -> None:
        """Forget the oldest `count` receipts."""
        for _ in range(count):
            self._waiting.popleft()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a receipt says of one answer; the bodies only by their SHA-256."""

    tenant: str
    caller: str
    kid: str
    manifest_digest: bytes
    model: str
    decision: str  # of the guard
    status: str  # complete, cancelled, failed
    request: bytes  # SHA-256 of the body as the caller sent it
    response: bytes  # SHA-256 of the body as the caller gets it
    tokens_in: int
    tokens_out: int
    transport: str
    checkpoint: bytes | None = None  # digest of its statement, where the tenant's list names one

    def fields(self) -> Mapping[str, bytes]:
        """Return the fields to commit to, as canonical JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: canonical(value.hex() if isinstance(value, bytes) else value)
            for name, value in values.items()
            if value is not None
        }


class ReceiptIssuer:
    """Signs receipts of one keyset, numbers them, and puts them into the journal."""

    def __init__(
        self,
        keys: EnclaveKeys,
        *,
        config_digest: bytes,
        platform: str,
        journal: Journal,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Args: random: bytes of a length."""
        self._keys = keys
        self._config_digest = config_digest
        self._platform = platform
        self._journal = journal
        self._random = random
        self._sequence = 0
        self._answers: Counter[bytes] = Counter()

    def new_id(self) -> bytes:
        """Return the id (16 bytes) of a receipt to come; it stands in the head of its answer."""
        return self._random(16)

    def answers(self, lease_id: bytes) -> int:
        """Return how many answers were given under a lease."""
        return self._answers[lease_id]

    def issue(self, receipt_id: bytes, lease: Lease, answer: Answer, *, started: datetime) -> bytes:
        """Return the caller's receipt (canonical JSON), signed and in the journal.

        Args:
            started: when `lease` was found in force and the answer begun; it may end after its lease.
        """
        commitment = Commitment.make(answer.fields(), record_id=receipt_id, random=self._random)
        predicate = Predicate(
            receipt_id=receipt_id,
            sequence=self._sequence,
            issued=started,
            keyset_digest=self._keys.digest,
            config_digest=self._config_digest,
            lease_id=lease.lease_id,
            platform=self._platform,
            confidential=self._platform not in NOT_CONFIDENTIAL,
            commitment=commitment.root,
            fields=list(commitment.leaves),
        )
        envelope: dict[str, Any] = json.loads(ReceiptStatement.of(predicate).sign(self._keys.receipt))
        self._sequence += 1
        self._answers[lease.lease_id] += 1
        self._journal.put(envelope)
        receipt = Receipt(receipt=envelope, fields=dict(commitment.openings))
        return canonical(receipt.to_json())
