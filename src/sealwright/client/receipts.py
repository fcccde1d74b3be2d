"""Receipts on the caller's side: checked against what was sent and got, and written to files.

Spec: docs/spec/receipt.md.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, Literal, Self

from sealwright.client.verifier import VerifiedEnclave
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import Bytes32, Record, validated
from sealwright.crypto.encoding import b64url_decode
from sealwright.errors import CollateralError, VerificationError
from sealwright.protocol.attestation import AttestationBundle
from sealwright.protocol.receipt import Receipt, ReceiptStatement, verify_receipt

RECEIPT_TRAILER = b"sealwright-receipt"
MAX_RECEIPT_FILE = 2 << 20  # bytes


class ReceiptFile(Record):
    """Everything an auditor needs to verify one answer offline. Nothing in it is believed before that."""

    format: Literal["sealwright-receipt/v1"] = "sealwright-receipt/v1"
    receipt: Receipt
    attestation: AttestationBundle
    nonce: Bytes32
    lease: dict[str, Any] | None = None  # DSSE; of a lease renewed since the attestation
    proof: str | None = None  # `.tlog-proof` text

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Return the receipt file in JSON `raw`. Raises MessageFormatError."""
        return validated(cls, parse_json(raw, limit=MAX_RECEIPT_FILE))

    def encode(self) -> bytes:
        """Return the file's bytes: indented JSON, proof null while there is none."""
        return json.dumps({"proof": None, **self.to_json()}, indent=1).encode() + b"\n"

    def with_proof(self, proof: str) -> Self:
        """Return this file with the text of a `.tlog-proof`."""
        return self.model_copy(update={"proof": proof})

    def entry(self) -> bytes:
        """Return the log entry that this receipt, still unverified, must have."""
        return self.receipt.unverified_statement().log_entry()

    def entry_digest(self) -> str:
        """Return SHA-256 of the log entry, hex: what its proof is asked for by."""
        return hashlib.sha256(self.entry()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReceipt:
    """A receipt that was proved to be the attested enclave's, for this very request and answer."""

    statement: ReceiptStatement
    file: ReceiptFile

    @property
    def receipt_id(self) -> str:
        """The id, hex."""
        return self.statement.predicate.receipt_id.hex()


def answer_receipt(
    trailer: bytes, enclave: VerifiedEnclave, *, request_digest: bytes, response_digest: bytes
) -> AnswerReceipt:
    """Return the receipt in a sealed trailer, proved to be `enclave`'s and about these two bodies.

    Args:
        trailer: value of the trailer field: base64url of the receipt's JSON.
        request_digest, response_digest: SHA-256 of the bodies as sent and got, 32 bytes.

    Raises:
        MessageFormatError, VerificationError: as `verify_receipt`; `receipt-mismatch`: another request,
            answer, lease, platform or confidentiality.
    """
    receipt = Receipt.parse(b64url_decode(trailer.decode("ascii", "replace")))
    statement = verify_receipt(receipt, enclave.keyset, config_digest=enclave.config_digest)
    check_enclave(statement, enclave)
    for name, digest in (("request", request_digest), ("response", response_digest)):
        opening = receipt.fields.get(name)
        if opening is None or not hmac.compare_digest(opening.value, canonical(digest.hex())):
            raise VerificationError(
                f"the receipt is about another {name}", code="receipt-mismatch", stage="fields"
            )
    lease = enclave.lease_envelope
    file = ReceiptFile(
        receipt=receipt,
        attestation=AttestationBundle.parse(enclave.bundle),
        nonce=enclave.nonce,
        lease=None if lease is None else parse_json(lease),
    )
    return AnswerReceipt(statement=statement, file=file)


def check_enclave(statement: ReceiptStatement, enclave: VerifiedEnclave) -> None:
    """Prove that a receipt names the lease, in force when it was issued, and the platform and confidentiality that the evidence shows.

    Raises:
        VerificationError: `receipt-mismatch`; `lease-not-yet`. RevokedError: `lease-ended`: the answer
            began when its lease was not in force.
    """
    said = statement.predicate
    # One keyset serves many tenants: the lease is what says whose answer this was.
    if said.lease_id != enclave.lease.lease_id:
        raise VerificationError(
            "the receipt is of another lease, perhaps another tenant's",
            code="receipt-mismatch",
            stage="signature",
        )
    enclave.lease.check_time(said.issued)
    if (said.platform, said.confidential) != (enclave.appraisal.platform, enclave.confidential):
        raise VerificationError(
            "the receipt names another platform than the evidence", code="receipt-mismatch", stage="signature"
        )


def receipt_of(response: object) -> AnswerReceipt:
    """Return the verified receipt of an answer that came through one of our transports.

    Args:
        response: an httpx or httpx2 response, or an OpenAI stream or raw response that holds one.

    Raises:
        CollateralError: `receipt-not-yet`: read the stream to its end first; `receipt-missing`: the answer
            has none. MessageFormatError, VerificationError: it does not hold.
        TypeError: not a response of ours.
    """
    for candidate in (
        response,
        getattr(response, "http_response", None),
        getattr(response, "response", None),
    ):
        found = getattr(candidate, "extensions", {}).get("sealwright")
        if found is not None:
            made = found()
            if not isinstance(made, AnswerReceipt):
                break
            return made
    raise TypeError(
        "not an answer of a Sealwright client: pass the httpx response, the OpenAI stream, or the result of "
        "with_raw_response / with_streaming_response"
    )


def missing(ended: bool) -> CollateralError:
    """Return the error for an answer without a receipt (yet)."""
    if not ended:
        return CollateralError(
            "the receipt comes at the end of the answer: read it to its end first",
            code="receipt-not-yet",
            stage="receipt",
        )
    return CollateralError("this answer carries no receipt", code="receipt-missing", stage="receipt")
