"""Inference receipts: DSSE over in-toto Statement v1. Spec: docs/spec/receipt.md."""

from __future__ import annotations

import hmac
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sealwright.crypto.canonical import canonical, parse_canonical
from sealwright.crypto.document import Count, Digest, Id16, Name, Record, Time, validated
from sealwright.crypto.statement import Statement, ed25519
from sealwright.errors import FormatError, MessageFormatError, VerificationError
from sealwright.protocol.commitment import (
    MAX_FIELDS,
    Leaf,
    LogEntry,
    Opening,
    commitment_root,
    verify_openings,
)
from sealwright.protocol.keyset import Keyset

MAX_RECEIPT = 256 * 1024  # bytes


class Sha256(Record):
    """in-toto digest set with the one algorithm we write."""

    sha256: Digest


class Subject(Record):
    """in-toto subject."""

    name: Annotated[str, Field(max_length=128)]
    digest: Sha256


class Predicate(Record):
    """What a receipt says in clear."""

    receipt_id: Id16
    sequence: Count
    issued: Time
    keyset_digest: Digest
    config_digest: Digest
    lease_id: Id16
    platform: Name
    confidential: bool
    commitment: Digest
    fields: Annotated[list[Leaf], Field(min_length=1, max_length=MAX_FIELDS)]


class ReceiptStatement(Statement):
    """The signed statement of one answer."""

    PAYLOAD_TYPE: ClassVar[str] = "application/vnd.in-toto+json"

    statement_type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = (
        "https://in-toto.io/Statement/v1"
    )
    subject: Annotated[list[Subject], Field(min_length=1, max_length=1)]
    predicateType: Literal["urn:sealwright:inference-receipt:v1"] = "urn:sealwright:inference-receipt:v1"
    predicate: Predicate

    @classmethod
    def of(cls, predicate: Predicate) -> ReceiptStatement:
        """Return the statement whose subject is the predicate's commitment."""
        name = f"receipt/{predicate.receipt_id.hex()}"
        return cls(
            subject=[Subject(name=name, digest=Sha256(sha256=predicate.commitment))], predicate=predicate
        )

    def log_entry(self) -> bytes:
        """Return the entry that the log holds for this receipt."""
        return LogEntry(type="receipt", commitment=self.predicate.commitment).encode()


class Receipt(Record):
    """What the caller gets: the envelope and the openings. `unverified_` until `verify_receipt`."""

    receipt: dict[str, object]
    fields: Annotated[dict[str, Opening], Field(max_length=MAX_FIELDS)]

    @classmethod
    def parse(cls, raw: bytes, *, error: type[FormatError] = MessageFormatError) -> Receipt:
        """Return the receipt in canonical JSON `raw`. Raises FormatError as `error`."""
        return validated(cls, parse_canonical(raw, limit=MAX_RECEIPT, error=error), error)

    def unverified_statement(self) -> ReceiptStatement:
        """Return the statement without proof, to learn which keyset to look for."""
        return ReceiptStatement.unverified(self.envelope())

    def envelope(self) -> bytes:
        """Return the DSSE envelope's canonical bytes."""

        return canonical(self.receipt)


def verify_receipt(receipt: Receipt, keyset: Keyset, *, config_digest: bytes) -> ReceiptStatement:
    """Return the statement, proved to be signed by this (already verified) keyset and to match its openings.

    Raises:
        MessageFormatError: `parse`. VerificationError: `signature`, `commitment`, `fields`.
    """
    statement = ReceiptStatement.verify(receipt.envelope(), [ed25519(keyset.receipt_key)], stage="signature")
    said = statement.predicate
    if not hmac.compare_digest(said.keyset_digest, keyset.digest()):
        raise VerificationError(
            "the receipt names another keyset", code="receipt-mismatch", stage="signature"
        )
    if not hmac.compare_digest(said.config_digest, config_digest):
        raise VerificationError(
            "the receipt names another config", code="receipt-mismatch", stage="signature"
        )
    subject = statement.subject[0]
    leaves = tuple(said.fields)
    root = commitment_root(leaves)
    if not (hmac.compare_digest(root, said.commitment) and hmac.compare_digest(root, subject.digest.sha256)):
        raise VerificationError(
            "the fields do not give the commitment", code="commitment-mismatch", stage="commitment"
        )
    if subject.name != f"receipt/{said.receipt_id.hex()}":
        raise VerificationError(
            "the subject is another receipt", code="commitment-mismatch", stage="commitment"
        )
    verify_openings(said.receipt_id, leaves, receipt.fields)
    return statement
