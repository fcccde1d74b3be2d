"""`sealwright refvalues`: what a build measures to, signed by whoever built it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from sealwright.appraisal.reference import MAX_REFERENCE_VALUES, ReferenceValues
from sealwright.appraisal.signed import REFERENCE_VALUES, Signers
from sealwright.cli._files import read_input, time_option
from sealwright.cli._group import Json, group
from sealwright.cli._output import emit
from sealwright.cli._signing import KeyFiles, Out, signed, write_new
from sealwright.crypto.document import validated
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import rfc3339
from sealwright.errors import SettingsError

app = group("Make, sign and check reference values: what a build measures to.")
File = Annotated[Path, typer.Argument(help="Signed reference values.", exists=True, dir_okay=False)]


@app.command()
def new(
    out: Out,
    name: Annotated[str, typer.Option(help="Of the product: versions of one name replace each other.")],
    platform: Annotated[str, typer.Option(help="snp, tdx, sgx, nitro, tpm, az-snp-vtpm or az-tdx-vtpm.")],
    register: Annotated[
        list[str], typer.Option(metavar="NAME=HEX", help="A value of a register; repeat it for more.")
    ],
    key: KeyFiles,
    version: Annotated[int, typer.Option(min=1, help="Counts up.")] = 1,
    config_register: Annotated[str, typer.Option(help="The register that holds config_digest.")] = "",
    days: Annotated[int, typer.Option(min=1, max=3660, help="How long they count.")] = 90,
    as_json: Json = False,
) -> None:
    """Sign reference values of one build."""
    now = datetime.now(UTC)
    values = ReferenceValues.from_json(
        {
            "name": name,
            "version": version,
            "created": rfc3339(now),
            "expires": rfc3339(now + timedelta(days=days)),
            "platform": platform,
            "registers": _registers(register),
            "config_register": config_register,
        },
        error=SettingsError,
    )
    write_new(out, signed(values.encode(), REFERENCE_VALUES, key))
    _emit(values, out, as_json)


@app.command()
def show(
    file: File,
    signer: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A key (base64url) that has to have signed.")
    ] = None,
    threshold: Annotated[int, typer.Option(min=1, max=16, help="How many of them.")] = 1,
    at: Annotated[str | None, typer.Option(metavar="RFC3339", help="As of this time; default: now.")] = None,
    as_json: Json = False,
) -> None:
    """Show reference values; with --signer, prove who signed them and that they are in force."""
    envelope = Envelope.parse(read_input(file), error=SettingsError)
    payload = envelope.unverified_payload
    if signer:
        signers = validated(Signers, {"keys": signer, "threshold": threshold}, SettingsError)
        payload = signers.check(envelope, REFERENCE_VALUES, stage="reference-values")
    values = ReferenceValues.parse(payload, limit=MAX_REFERENCE_VALUES, error=SettingsError)
    if signer:
        values.check_time(time_option(at, datetime.now(UTC)))
    _emit(values, file, as_json, checked=bool(signer))


def _registers(options: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for option in options:
        name, separator, value = option.partition("=")
        if not separator:
            raise typer.BadParameter("write NAME=HEX", param_hint="--register")
        found.setdefault(name, []).append(value)
    return found


def _emit(values: ReferenceValues, file: Path, as_json: bool, *, checked: bool = True) -> None:
    lines = [
        f"file      {file}",
        f"build     {values.name} {values.version}, platform {values.platform}",
        f"in force  {rfc3339(values.created)} to {rfc3339(values.expires)}",
        *[f"register  {name} {value.hex()}" for name, some in values.registers.items() for value in some],
        f"config    in {values.config_register or 'no register of its own'}",
        *([] if checked else ["NOT CHECKED  who signed them (give --signer)"]),
    ]
    result: dict[str, object] = {"file": str(file), "verified": checked, "reference_values": values.to_json()}
    emit(result, as_json=as_json, lines=lines)
