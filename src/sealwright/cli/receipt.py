"""`sealwright receipt`: show and verify receipts of answers, offline."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sealwright.audit.receipts import VerifiedReceipt, verify_receipt_file
from sealwright.cli._files import load_trust, read_input
from sealwright.cli._group import Json, group
from sealwright.cli._output import emit
from sealwright.client.proofs import fetch_proof
from sealwright.client.receipts import ReceiptFile
from sealwright.crypto.encoding import rfc3339
from sealwright.protocol.receipt import Predicate
from sealwright.tlog.policy import LogPolicy

app = group("Show and verify receipts of answers.")

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A receipt file.")]
Trust = Annotated[
    Path, typer.Option("--trust", exists=True, dir_okay=False, help="The trust file to verify by.")
]


@app.command()
def show(file: File, as_json: Json = False) -> None:
    """Show what a receipt claims. Nothing is verified."""
    found = ReceiptFile.parse(read_input(file))
    said = found.receipt.unverified_statement().predicate
    has_proof = found.proof is not None
    result = {"verified": False, **_said(said), "proof": has_proof, "entry_digest": found.entry_digest()}
    lines = [*_lines(said), f"proof         {'in the file' if has_proof else 'none yet'}"]
    emit(result, as_json=as_json, lines=[*lines, "not verified: see `sealwright receipt verify`"])


@app.command()
def verify(
    file: File,
    trust: Trust,
    log_policy: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A log policy in place of the trust file's."),
    ] = None,
    no_log: Annotated[bool, typer.Option("--no-log", help="Do not ask for a proof of logging.")] = False,
    open_: Annotated[
        list[str] | None, typer.Option("--open", metavar="FIELD", help="Print the value of this field.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a receipt offline: attestation at its time of issue, signature, commitment, fields, log."""
    found, trusted = ReceiptFile.parse(read_input(file)), load_trust(trust)
    policy = None if no_log else LogPolicy.parse(_policy(log_policy, trusted.log_policy))
    verified = verify_receipt_file(found, trust=trusted, log_policy=policy)
    opened = _opened(verified, open_ or [])
    emit(_result(verified, opened), as_json=as_json, lines=_verdict(verified, opened))


@app.command()
def proof(
    file: File,
    url: Annotated[str, typer.Option(metavar="URL", help="Of the broker that logged it.")],
    as_json: Json = False,
) -> None:
    """Fetch the proof that a receipt was logged, and put it into the file. It is verified by `verify`."""
    found = ReceiptFile.parse(read_input(file))
    text = asyncio.run(fetch_proof(url, found.entry_digest()))
    file.write_bytes(found.with_proof(text).encode())
    emit(
        {"verified": False, "file": str(file)},
        as_json=as_json,
        lines=[f"proof added to {file}, not verified"],
    )


def _policy(path: Path | None, text: str) -> bytes:
    return text.encode() if path is None else read_input(path)


def _opened(verified: VerifiedReceipt, names: list[str]) -> dict[str, object]:
    for name in names:
        if name not in verified.values:
            known = ", ".join(sorted(verified.values)) or "none"
            raise typer.BadParameter(
                f"the file opens no field {name!r} (it opens: {known})", param_hint="--open"
            )
    return {name: verified.values[name] for name in names}


def _said(said: Predicate) -> dict[str, object]:
    return {
        "confidential": said.confidential,
        "platform": said.platform,
        "receipt_id": said.receipt_id.hex(),
        "sequence": said.sequence,
        "issued": rfc3339(said.issued),
        "keyset_digest": said.keyset_digest.hex(),
        "config_digest": said.config_digest.hex(),
        "lease_id": said.lease_id.hex(),
        "commitment": said.commitment.hex(),
        "fields": [leaf.name for leaf in said.fields],
    }


def _lines(said: Predicate) -> list[str]:
    word = "yes" if said.confidential else f"NO: platform {said.platform} protects nothing from the host"
    return [
        f"confidential  {word}",
        f"receipt       {said.receipt_id.hex()}, answer {said.sequence} of its enclave",
        f"issued        {rfc3339(said.issued)}",
        f"keyset        {said.keyset_digest.hex()}",
        f"config        {said.config_digest.hex()}",
        f"fields        {', '.join(leaf.name for leaf in said.fields)}",
    ]


def _result(verified: VerifiedReceipt, opened: dict[str, object]) -> dict[str, object]:
    logged = verified.logged
    log = (
        None
        if logged is None
        else {
            "origin": logged.origin,
            "index": logged.index,
            "size": logged.size,
            "quorum": logged.checkpoint.quorum,
        }
    )
    said = _said(verified.statement.predicate)
    return {"confidential": said.pop("confidential"), "verified": True, **said, "log": log, "opened": opened}


def _verdict(verified: VerifiedReceipt, opened: dict[str, object]) -> list[str]:
    logged = verified.logged
    lease = verified.enclave.lease
    return [
        *_lines(verified.statement.predicate),
        "attestation   genuine and allowed by the trust file at the time of issue",
        f"lease         of tenant {lease.tenant}, until {rfc3339(lease.not_after)}",
        "signature     by the attested keyset; commitment and fields hold",
        "log           NOT CHECKED (--no-log)"
        if logged is None
        else f"log           entry {logged.index} of {logged.size} in {logged.origin}",
        *[f"{name:<13} {value}" for name, value in opened.items()],
    ]
