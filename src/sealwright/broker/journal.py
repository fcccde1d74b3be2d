"""Receipts from enclaves into the log. Spec: docs/spec/broker-state.md; framing: docs/spec/key-release.md."""

from __future__ import annotations

import hmac
import struct
from typing import Annotated

from pydantic import Field

from sealwright.broker.core import Core
from sealwright.broker.rows import LeaseRow
from sealwright.broker.state import View
from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Digest, Document, Record
from sealwright.crypto.encoding import joined
from sealwright.crypto.hpke import open_from
from sealwright.crypto.statement import ed25519
from sealwright.errors import MessageFormatError, SealwrightError, VerificationError
from sealwright.protocol.commitment import commitment_root
from sealwright.protocol.receipt import ReceiptStatement

MAX_JOURNAL = 1 << 20  # bytes of a request
MAX_ENTRIES = 256
INFO = joined("sealwright/journal/v1")


class JournalEntry(Record):
    """One receipt (DSSE)."""

    receipt: dict[str, object]


class JournalBatch(Document):
    """What an enclave posts, inside the seal."""

    entries: Annotated[list[JournalEntry], Field(min_length=1, max_length=MAX_ENTRIES)]
    keyset_digest: Digest


class Journal:
    """Takes batches of receipts. May be called from several threads."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add(self, raw: bytes) -> int:
        """Log the receipts of a sealed batch, and return how many: all of them, each proved to be logged.

        A receipt that is sent twice is logged once.

        Raises:
            MessageFormatError: not a batch. VerificationError: a receipt is not by a keyset that this
                broker leased to.
        """
        batch = _open(self._core, raw)
        try:
            with self._core.state.lock:
                view = self._core.state.view()
            key = _receipt_key(view, batch)
            said = [_statement(entry, key, batch.keyset_digest) for entry in batch.entries]
            for one in said:
                _check_lease(view, one.predicate.lease_id, batch.keyset_digest)
        except SealwrightError as error:
            self._core.refuse(error, action="journal", keyset_digest=batch.keyset_digest)
            raise
        self._log({one.log_entry(): one.predicate.lease_id for one in said})
        return len(batch.entries)

    def _log(self, receipts: dict[bytes, bytes]) -> None:
        state = self._core.state
        with state.lock:
            known = state.store.known_receipts(list(receipts))
            tickets = [state.ledger.submit(entry) for entry in receipts if entry not in known]
        for ticket in tickets:
            state.ledger.settle(ticket)
        with state.lock:
            state.store.add_receipts([(ticket.entry, receipts[ticket.entry]) for ticket in tickets])


def seal_frame(enc: bytes, ciphertext: bytes) -> bytes:
    """Return the body of a journal request."""
    return joined(enc, ciphertext)


def _open(core: Core, raw: bytes) -> JournalBatch:
    enc, rest = _item(raw)
    ciphertext, rest = _item(rest)
    if rest:
        raise _malformed()
    try:
        plain = open_from(core.secrets.journal, enc, INFO, b"", ciphertext)
    except VerificationError:
        raise VerificationError(
            "the batch is not sealed to this broker's journal key",
            code="journal-sealed-elsewhere",
            stage="open",
        ) from None
    return JournalBatch.parse(plain, limit=MAX_JOURNAL)


def _item(raw: bytes) -> tuple[bytes, bytes]:
    if len(raw) < 4:
        raise _malformed()
    (length,) = struct.unpack(">I", raw[:4])
    if len(raw) < 4 + length:
        raise _malformed()
    return raw[4 : 4 + length], raw[4 + length :]


def _receipt_key(view: View, batch: JournalBatch) -> bytes:
    for row in view.all(LeaseRow, "lease"):
        if hmac.compare_digest(row.keyset_digest, batch.keyset_digest):
            return row.receipt_key
    raise VerificationError(
        "this broker gave no lease to that keyset, or long ago", code="keyset-not-leased", stage="journal"
    )


def _statement(entry: JournalEntry, key: bytes, keyset_digest: bytes) -> ReceiptStatement:
    statement = ReceiptStatement.verify(canonical(entry.receipt), [ed25519(key)], stage="journal")
    said = statement.predicate
    if not hmac.compare_digest(said.keyset_digest, keyset_digest):
        raise VerificationError("the receipt names another keyset", code="receipt-mismatch", stage="journal")
    root = commitment_root(tuple(said.fields))
    for committed in (said.commitment, statement.subject[0].digest.sha256):
        if not hmac.compare_digest(root, committed):
            raise VerificationError(
                "the fields do not give the commitment", code="commitment-mismatch", stage="journal"
            )
    return statement


def _check_lease(view: View, lease_id: bytes, keyset_digest: bytes) -> None:
    # Else one enclave's receipts would count as another's, and hide that some of those are missing.
    row = view.get(LeaseRow, "lease", lease_id.hex())
    if row is not None and not hmac.compare_digest(row.keyset_digest, keyset_digest):
        raise VerificationError(
            "the receipt names another keyset's lease", code="receipt-mismatch", stage="journal"
        )


def _malformed() -> MessageFormatError:
    return MessageFormatError("not a journal batch: u32 length and bytes, twice", code="malformed-journal")
