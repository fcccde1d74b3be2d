"""`sealwright tpm`: the owner's attestation CA, which vouches for the attestation keys of TPMs it has tried."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sealwright.attester.tpm.attester import primary_ak
from sealwright.attester.tpm.commands import Tpm
from sealwright.attester.tpm.enrol import activate, endorsement_certificates, enrol_request
from sealwright.attester.tpm.transport import connect
from sealwright.audit.given import folder
from sealwright.cli._group import Json, group
from sealwright.cli._keys import read_secret
from sealwright.cli._output import emit
from sealwright.cli._signing import write_new
from sealwright.client.receipt_store import replace_file
from sealwright.crypto.encoding import hex_decode
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import fingerprint, load_certificate, pem_blocks
from sealwright.errors import SettingsError, UnavailableError
from sealwright.protocol.tpm_ca import AttestationCa, new_attestation_ca
from sealwright.protocol.tpm_enrol import challenge, finish
from sealwright.sealing.files import io_errors
from sealwright.verify.context import Context

app = group("Enrol TPMs: vouch for attestation keys that were proved to stand in them.")
Ca = Annotated[Path, typer.Option("--ca", help="Folder of the attestation CA.")]
MACHINE_TPM = "/dev/tpmrm0"


@app.command("ca-new")
def ca_new(
    ca: Annotated[Path, typer.Argument(metavar="CA", help="Folder to make.")],
    name: Annotated[str, typer.Option(help="Of the CA, 1 to 64 characters.")] = "attestation CA",
    as_json: Json = False,
) -> None:
    """Make an attestation CA. Policies admit its TPMs by the fingerprint that this prints."""
    made = new_attestation_ca(name, at=datetime.now(UTC))
    key = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with io_errors("output-failed", f"cannot make {ca}"):
        ca.mkdir(mode=0o700)
    write_new(ca / "key.pem", key)
    write_new(ca / "root.pem", made.root.public_bytes(Encoding.PEM))
    write_new(ca / "revoked.json", b"[]\n")
    root = fingerprint(made.root).hex()
    emit({"ca": str(ca), "root": root}, as_json=as_json, lines=[f"CA    {ca}", f"root  {root}"])


@app.command()
def enrol(
    ca: Ca,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the certificates go, PEM; it must not exist.")
    ],
    machine: Annotated[str, typer.Option(help="What you call the machine, 1 to 64 characters.")],
    ek_root: Annotated[
        list[str], typer.Option(metavar="HEX", help="SHA-256 of a TPM maker's root certificate; repeat it.")
    ],
    tpm: Annotated[str, typer.Option(help="The TPM: a device, unix:PATH or tcp:HOST:PORT.")] = MACHINE_TPM,
    ek_chain: Annotated[
        list[Path] | None, typer.Option(help="The maker's certificates and CRLs; repeat it.", exists=True)
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that a TPM holds its attestation key, by credential activation, and certify that key.

    The file goes along with each quote: `enclave serve --attester tpm --endorsement FILE`.
    """
    authority = _load(ca)
    at = datetime.now(UTC)
    roots = frozenset(hex_decode(text, length=32, error=SettingsError) for text in ek_root)
    with Tpm(connect(tpm)) as client:
        certificate = _certified(client, authority, machine, roots, ek_chain or [], at)
    parts = [certificate, authority.root]
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in parts)
    pem += authority.crl(_revoked(ca), at=at).public_bytes(Encoding.PEM)
    write_new(out, pem)
    result: dict[str, object] = {
        "file": str(out),
        "machine": machine,
        "serial": f"{certificate.serial_number:x}",
        "root": fingerprint(authority.root).hex(),
        "until": certificate.not_valid_after_utc.isoformat(),
    }
    emit(result, as_json=as_json, lines=[f"{name:<8}{value}" for name, value in result.items()])


@app.command()
def revoke(
    serial: Annotated[str, typer.Argument(metavar="HEX", help="Serial number, as `tpm enrol` printed it.")],
    ca: Ca,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the new CRL goes, PEM.")],
    as_json: Json = False,
) -> None:
    """Take an attestation key's certificate back; give the CRL to brokers and clients."""
    authority = _load(ca)
    revoked = sorted({*_revoked(ca), int(serial, 16)})
    replace_file(ca / "revoked.json", (json.dumps([f"{one:x}" for one in revoked]) + "\n").encode())
    crl = authority.crl(revoked, at=datetime.now(UTC))
    replace_file(out, crl.public_bytes(Encoding.PEM))
    emit(
        {"crl": str(out), "revoked": len(revoked)},
        as_json=as_json,
        lines=[f"CRL      {out}", f"revoked  {len(revoked)}"],
    )


def _certified(
    client: Tpm,
    authority: AttestationCa,
    machine: str,
    roots: frozenset[bytes],
    chain: list[Path],
    at: datetime,
) -> x509.Certificate:
    found = endorsement_certificates(client)
    if not found:
        raise UnavailableError(
            "the TPM holds no certificate of an endorsement key; ask its maker for one",
            code="no-ek-certificate",
        )
    template = found[0][0]
    known = sum((folder(path) for path in chain), start=Endorsements())
    ak = primary_ak(client)
    try:
        request = enrol_request(client, ak, ek=template)
        asked, pending = challenge(request, known, context=Context(at=at, roots=roots), random=os.urandom)
        answer = activate(client, ak, asked, ek=template)
    finally:
        client.flush(ak.handle)
    return authority.certify(finish(pending, answer, at=datetime.now(UTC)), machine=machine, at=at)


def _load(ca: Path) -> AttestationCa:
    try:
        key = load_pem_private_key(read_secret(ca / "key.pem"), password=None)
        with io_errors("input-unreadable", f"cannot read {ca / 'root.pem'}"):
            ((_, der),) = pem_blocks((ca / "root.pem").read_bytes())
    except ValueError:
        raise SettingsError(f"{ca} is not an attestation CA", code="malformed-ca") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{ca} is not an attestation CA", code="malformed-ca")
    return AttestationCa(key=key, root=load_certificate(der))


def _revoked(ca: Path) -> list[int]:
    with io_errors("input-unreadable", f"cannot read {ca / 'revoked.json'}"):
        return [int(one, 16) for one in json.loads((ca / "revoked.json").read_text())]
