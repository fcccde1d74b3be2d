"""A receipt file verified offline, in the steps of docs/spec/receipt.md. No I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from sealwright.appraisal.policy import TrustFile
from sealwright.client.receipts import ReceiptFile, check_enclave
from sealwright.client.verifier import VerifiedEnclave, renewed, verify_attestation
from sealwright.crypto.canonical import canonical
from sealwright.errors import CollateralError, MessageFormatError
from sealwright.protocol.lease import Lease
from sealwright.protocol.receipt import ReceiptStatement, verify_receipt
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.proof import LoggedEntry, LogProof


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """A receipt that holds, with all it rests on. `logged` is None only if the caller asked for no log."""

    statement: ReceiptStatement
    enclave: VerifiedEnclave
    logged: LoggedEntry | None
    values: dict[str, object]  # of the fields that were opened


def verify_receipt_file(
    file: ReceiptFile, *, trust: TrustFile, log_policy: LogPolicy | None
) -> VerifiedReceipt:
    """Return what a receipt file proves by `trust`, as of the time it was issued.

    Args:
        log_policy: whom to trust for the log; None: do not ask for a proof of logging.

    Raises:
        FormatError, VerificationError, RevokedError, CollateralError, AppraisalError: the stage names the
            step. A missing proof is `proof-missing`.
    """
    # 1. Formats. The time of issue is believed only once the signature below holds.
    statement = file.receipt.unverified_statement()
    issued = statement.predicate.issued
    # 2. The attestation, at the time of issue.
    enclave = _attestation(file, trust, issued)
    # 3. to 5. Signature by that keyset, commitment, and each opening that is given.
    statement = verify_receipt(file.receipt, enclave.keyset, config_digest=enclave.config_digest)
    check_enclave(statement, enclave)
    # 6. The log.
    logged = None if log_policy is None else _logged(file, statement, log_policy)
    return VerifiedReceipt(statement=statement, enclave=enclave, logged=logged, values=_values(file))


def _attestation(file: ReceiptFile, trust: TrustFile, issued: datetime) -> VerifiedEnclave:
    bundle = file.attestation.encode()
    if file.lease is None:
        return verify_attestation(bundle, nonce=file.nonce, trust=trust, at=issued)
    # The lease was renewed since: what the client did then is done again, each step at its own time.
    first = Lease.unverified(canonical(file.attestation.lease))
    at = min(issued, first.not_after - timedelta(seconds=1))
    enclave = verify_attestation(bundle, nonce=file.nonce, trust=trust, at=at)
    return renewed(enclave, canonical(file.lease), trust=trust, at=issued)


def _logged(file: ReceiptFile, statement: ReceiptStatement, policy: LogPolicy) -> LoggedEntry:
    if file.proof is None:
        raise CollateralError(
            "the receipt has no proof that it was logged; fetch it with `sealwright receipt proof`",
            code="proof-missing",
            stage="log",
        )
    return LogProof.parse(file.proof.encode()).verify(statement.log_entry(), policy)


def _values(file: ReceiptFile) -> dict[str, object]:
    try:
        return {name: json.loads(opening.value) for name, opening in file.receipt.fields.items()}
    except ValueError:
        raise MessageFormatError("the value of a field is not JSON", code="malformed-json") from None
