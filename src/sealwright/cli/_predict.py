"""What `image predict` reads, says, signs and logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import typer
from cryptography import x509

from sealwright.appraisal.reference import ReferenceValues
from sealwright.appraisal.signed import REFERENCE_VALUES
from sealwright.cli._keys import read_secret
from sealwright.cli._signing import signed, write_new
from sealwright.client.trust_source import read_file
from sealwright.crypto.encoding import rfc3339
from sealwright.endorsement.x509 import load_certificate, pem_blocks
from sealwright.errors import SettingsError, VerificationError
from sealwright.evidence.eventlog import MAX_LOG, EventLog
from sealwright.image.eif import Eif
from sealwright.image.predict.events import Algorithm, NotPredicted, PredictedEvent, Prediction
from sealwright.image.predict.explain import Difference, explain
from sealwright.image.predict.files import GuestFiles, in_folder
from sealwright.image.predict.firmware import MAX_FIRMWARE, Firmware
from sealwright.image.predict.reader import MAX_FILE
from sealwright.image.predict.secureboot import MAX_DATABASE, SecureBoot
from sealwright.image.predict.snp import SNP_ACTIVE, SnpShape
from sealwright.image.predict.targets import Target
from sealwright.image.predict.varstore import MAX_STORE
from sealwright.image.predict.vmsa import Vmm
from sealwright.protocol.commitment import LogEntry
from sealwright.protocol.enclave_config import MAX_CONFIG, EnclaveConfig
from sealwright.tlog.keys import Signer
from sealwright.tlog.posix import PosixLog
from sealwright.tlog.proof import LogProof
from sealwright.verify.eventlog import Layout

MAX_CERTIFICATE = 64 * 1024  # bytes


def guest_files(folder: Path | None, named: dict[str, Path | None]) -> GuestFiles:
    """Return the parts of a guest: those of the folder, and those named one by one in their place."""
    found = {} if folder is None else in_folder(folder)
    return GuestFiles.read(found | {name: path for name, path in named.items() if path is not None})


def secure_boot(
    variables: Path | None, databases: dict[str, Path | None], said: str | None
) -> SecureBoot | None:
    """Return Secure Boot's state: of a store, of databases (on, unless said to be off), or without keys; None: not said."""
    given = {name: path for name, path in databases.items() if path is not None}
    if (variables is not None and (given or said is not None)) or (given and said == "absent"):
        raise typer.BadParameter("give --vars; or --pk, --kek and --db; or --secure-boot")
    if variables is not None:
        return SecureBoot.from_variables(read_file(variables, limit=MAX_STORE))
    if given:
        if not {"pk", "kek", "db"} <= given.keys():
            raise typer.BadParameter("give all of --pk, --kek and --db")
        raw = {name: read_file(path, limit=MAX_DATABASE) for name, path in given.items()}
        return SecureBoot(
            enabled=said is None, pk=raw["pk"], kek=raw["kek"], db=raw["db"], dbx=raw.get("dbx", b"")
        )
    return None if said is None else SecureBoot(enabled=False, built_in=said == "off")


def firmware(path: Path | None) -> Firmware | None:
    """Return the firmware in a file."""
    return None if path is None else Firmware.parse(read_file(path, limit=MAX_FIRMWARE))


def enclave_image(path: Path | None) -> Eif | None:
    """Return the enclave image in a file."""
    return None if path is None else Eif.parse(read_file(path, limit=MAX_FILE))


def certificate(path: Path | None) -> x509.Certificate | None:
    """Return the one certificate in a PEM file. Raises FormatError."""
    if path is None:
        return None
    blocks = list(pem_blocks(read_file(path, limit=MAX_CERTIFICATE)))
    if len(blocks) != 1:
        raise SettingsError(f"{path} does not hold one certificate", code="input-missing")
    return load_certificate(blocks[0][1])


def shapes(texts: Sequence[str], vmm: Vmm, features: str | None) -> list[SnpShape]:
    """Return shapes of `VCPUS` or `VCPUS:TYPE`."""
    number = SNP_ACTIVE if features is None else _hex_number(features)
    found = []
    for text in texts:
        vcpus, _, kind = text.partition(":")
        if not (vcpus.isascii() and vcpus.isdecimal()):
            raise typer.BadParameter("write VCPUS or VCPUS:TYPE, such as 4:EPYC-Milan", param_hint="--shape")
        named = {"vcpu_type": kind} if kind else {}
        found.append(SnpShape(vcpus=int(vcpus[:6]), vmm=vmm, features=number, **named))
    return found


def _hex_number(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise typer.BadParameter("write a number in hex", param_hint="--features") from None


def config_digest(path: Path | None) -> bytes | None:
    """Return `config_digest` of an enclave config file. Raises SettingsError, FormatError."""
    if path is None:
        return None
    raw = read_file(path, limit=MAX_CONFIG)
    return EnclaveConfig.parse(raw, limit=MAX_CONFIG, error=SettingsError).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What names reference values, and how long they count."""

    name: str
    version: int
    days: int


def reference_values(
    target: Target, registers: dict[str, list[bytes]], product: Product, now: datetime
) -> ReferenceValues:
    """Return the document. Raises SettingsError `malformed-document`."""
    return ReferenceValues.from_json(
        {
            "name": product.name,
            "version": product.version,
            "created": rfc3339(now),
            "expires": rfc3339(now + timedelta(days=product.days)),
            "platform": target.platform,
            "registers": {name: [value.hex() for value in some] for name, some in registers.items()},
            "config_register": target.config_register,
        },
        error=SettingsError,
    )


def publish(
    document: ReferenceValues, out: Path, keys: Sequence[Path], log: tuple[Path, Path] | None
) -> int | None:
    """Sign the document, log its digest, and write both to files that must not exist; return the entry's index.

    It is logged first: what is signed, and lies about, is in the log.

    Args:
        log: the log's directory, and the file with its private key; None: it is not logged.

    Raises:
        SettingsError: `unwritable-file`, or a key. LogFormatError, UnavailableError, VerificationError: the log.
    """
    envelope = signed(document.encode(), REFERENCE_VALUES, keys)
    if out.exists() or (log is not None and proof_path(out).exists()):
        raise SettingsError(f"cannot write {out}: it is there already", code="unwritable-file")
    entry = LogEntry(type="reference-values", commitment=document.digest()).encode()
    proof = None if log is None else _logged(entry, *log)
    write_new(out, envelope)
    if proof is None:
        return None
    write_new(proof_path(out), proof.encode())
    return proof.index


def _logged(entry: bytes, directory: Path, key: Path) -> LogProof:
    try:
        signer = Signer.parse(read_secret(key).decode("ascii").strip())
    except UnicodeDecodeError:
        raise SettingsError(f"{key.name} is no note signer key", code="malformed-key") from None
    log = PosixLog.open(directory, signer)
    try:
        return log.prove(log.append([entry]))
    finally:
        log.close()


def proof_path(out: Path) -> Path:
    """Return where the log proof of reference values goes."""
    return out.with_name(out.name + ".tlog-proof")


def check_log(prediction: Prediction, path: Path, *, layout: Layout, algorithm: Algorithm) -> None:
    """Prove that an event log is as predicted. Whether the log is what was measured is another question.

    Raises:
        VerificationError: `prediction-differs`: names the event that differs first; stage: its register.
            `bank-not-in-log`. EvidenceFormatError: it is no event log.
    """
    log = EventLog.parse(read_file(path, limit=MAX_LOG))
    if algorithm not in log.banks:
        raise VerificationError(
            f"the log has no {algorithm} digests", code="bank-not-in-log", stage="event-log"
        )
    found = explain(prediction, log, layout=layout, algorithm=algorithm)
    if found:
        raise VerificationError(_told(found), code="prediction-differs", stage=found[0].register)


def _told(differences: Sequence[Difference]) -> str:
    first, *others = differences
    also = f"; also {', '.join(one.register for one in others)}" if others else ""
    return first.line() + also


def event_json(event: PredictedEvent) -> dict[str, object]:
    """Return an event as JSON values."""
    digest = None if event.digest is None else event.digest.hex()
    return {"register": event.register, "what": event.what, "digest": digest}


def missing_json(one: NotPredicted) -> dict[str, object]:
    """Return a register that is not predicted as JSON values."""
    return {"register": one.register, "reason": one.reason}
