"""`sealwright image predict`: what a guest image measures to, without booting it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from sealwright.cli import _predict as parts
from sealwright.cli._files import time_option
from sealwright.cli._group import FILE, Json
from sealwright.cli._output import emit
from sealwright.crypto.encoding import hex_decode
from sealwright.errors import FormatError
from sealwright.image.predict.events import Algorithm, NotPredicted, PredictedEvent
from sealwright.image.predict.pcr import Boot
from sealwright.image.predict.targets import TARGETS, Inputs, Target, values
from sealwright.image.predict.tdx import PageOrder
from sealwright.image.predict.vmsa import Vmm

_IN = "What is measured"
_SB = "Secure Boot"
_VM = "Virtual machine"
_OUT = "Reference values"


# As in `TARGETS`; a test holds the two together.
Platform = Literal["tpm", "vtpm", "nitrotpm", "az-snp-vtpm", "az-tdx-vtpm", "snp", "tdx", "gcp-tdx", "nitro"]
SecureBootOff = Literal["off", "absent"]


def predict(
    platform: Annotated[Platform, typer.Option(help="Where the guest runs.")],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", exists=True, file_okay=False, help="What `image build` wrote."),
    ] = None,
    uki: Annotated[
        Path | None, typer.Option(help="Unified kernel image.", rich_help_panel=_IN, **FILE)
    ] = None,
    kernel: Annotated[Path | None, typer.Option(help="Kernel (SNP).", rich_help_panel=_IN, **FILE)] = None,
    initrd: Annotated[Path | None, typer.Option(help="Initrd (SNP).", rich_help_panel=_IN, **FILE)] = None,
    cmdline: Annotated[
        Path | None, typer.Option(help="File with the command line (SNP).", rich_help_panel=_IN, **FILE)
    ] = None,
    disk: Annotated[
        Path | None, typer.Option(help="Disk image: its partition table (TDX).", rich_help_panel=_IN, **FILE)
    ] = None,
    eif: Annotated[
        Path | None, typer.Option(help="Enclave image (Nitro Enclaves).", rich_help_panel=_IN, **FILE)
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="That signs the enclave image, PEM.", rich_help_panel=_IN, **FILE)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Enclave config.", rich_help_panel=_IN, **FILE)] = None,
    register: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=HEX", help="A value known from elsewhere.", rich_help_panel=_IN),
    ] = None,
    variables: Annotated[
        Path | None, typer.Option("--vars", help="OVMF_VARS file.", rich_help_panel=_SB, **FILE)
    ] = None,
    pk: Annotated[Path | None, typer.Option(help="Signature list.", rich_help_panel=_SB, **FILE)] = None,
    kek: Annotated[Path | None, typer.Option(help="Signature list.", rich_help_panel=_SB, **FILE)] = None,
    db: Annotated[Path | None, typer.Option(help="Signature list.", rich_help_panel=_SB, **FILE)] = None,
    dbx: Annotated[Path | None, typer.Option(help="Signature list.", rich_help_panel=_SB, **FILE)] = None,
    secure_boot: Annotated[
        SecureBootOff | None,
        typer.Option(
            help="off: switched off, or without keys; absent: firmware without Secure Boot.",
            rich_help_panel=_SB,
        ),
    ] = None,
    boot: Annotated[
        Boot, typer.Option(help="kernel: the firmware is given it (QEMU's -kernel).", rich_help_panel=_VM)
    ] = "disk",
    firmware: Annotated[
        Path | None, typer.Option(help="OVMF image (SNP, TDX).", rich_help_panel=_VM, **FILE)
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="VCPUS[:TYPE]", help="Of an SNP guest; repeat it.", rich_help_panel=_VM),
    ] = None,
    vmm: Annotated[Vmm, typer.Option(help="That fills the VMSA (SNP).", rich_help_panel=_VM)] = "qemu",
    features: Annotated[
        str | None, typer.Option(metavar="HEX", help="SEV_FEATURES; default: 1.", rich_help_panel=_VM)
    ] = None,
    direct_uki: Annotated[
        bool, typer.Option(help="SNP: -kernel is the unified kernel image.", rich_help_panel=_VM)
    ] = False,
    page_order: Annotated[
        PageOrder, typer.Option(help="TDX: how the VMM adds memory.", rich_help_panel=_VM)
    ] = "page",
    bank: Annotated[
        Algorithm | None, typer.Option(help="Of a TPM; default: the platform's.", rich_help_panel=_VM)
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Compare with a real event log.", **FILE)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where they go; it must not exist.", rich_help_panel=_OUT),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="A signer's private key; repeat it.", rich_help_panel=_OUT, **FILE),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the product.", rich_help_panel=_OUT)] = None,
    version: Annotated[int, typer.Option(min=1, help="Counts up.", rich_help_panel=_OUT)] = 1,
    days: Annotated[
        int, typer.Option(min=1, max=3660, help="How long they count.", rich_help_panel=_OUT)
    ] = 90,
    at: Annotated[
        str | None, typer.Option(metavar="RFC3339", help="Made at; default: now.", rich_help_panel=_OUT)
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Log directory.", rich_help_panel=_OUT, exists=True, file_okay=False),
    ] = None,
    log_key: Annotated[
        Path | None, typer.Option(help="The log's private key.", rich_help_panel=_OUT, **FILE)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a guest image measures to, from its files alone; with --out, sign it as reference values."""
    target = TARGETS[platform]
    algorithm = bank or target.algorithm
    _check_options(
        target, out=out, signs=bool(key and name), logs=(log, log_key), explains=explain is not None
    )
    _check_bank(target, algorithm)
    named = {"uki": uki, "kernel": kernel, "initrd": initrd, "cmdline": cmdline, "disk": disk}
    inputs = Inputs(
        guest=parts.guest_files(folder, named),
        boot=boot,
        state=parts.secure_boot(variables, {"pk": pk, "kek": kek, "db": db, "dbx": dbx}, secure_boot),
        firmware=parts.firmware(firmware),
        shapes=parts.shapes(shape or (), vmm, features),
        page_order=page_order,
        direct_uki=direct_uki,
        eif=parts.enclave_image(eif),
        certificate=parts.certificate(certificate),
        algorithm=algorithm,
    )
    predictions = target.predictions(inputs)
    registers = values(predictions) | _config(target, config, algorithm)
    registers |= _known(register or [], registers)
    if explain is not None and target.layout is not None:
        parts.check_log(predictions[0], explain, layout=target.layout, algorithm=algorithm)
    index = None
    if out is not None:
        product = parts.Product(name=name or "", version=version, days=days)
        document = parts.reference_values(target, registers, product, time_option(at, datetime.now(UTC)))
        to = None if log is None or log_key is None else (log, log_key)
        index = parts.publish(document, out, key or [], to)
    missing = [one for one in predictions[0].missing if one.register not in registers]
    _emit(target, registers, predictions[0].events, missing, out=out, index=index, as_json=as_json)


def _check_options(
    target: Target, *, out: Path | None, signs: bool, logs: tuple[Path | None, Path | None], explains: bool
) -> None:
    if (out is not None) != signs:
        raise typer.BadParameter("--out, --key and --name are given together")
    if len({path is None for path in logs}) == 2 or (logs[0] is not None and out is None):
        raise typer.BadParameter("--log, --log-key and --out are given together")
    if explains and target.layout is None:
        raise typer.BadParameter("this platform keeps no event log", param_hint="--explain")


def _check_bank(target: Target, algorithm: Algorithm) -> None:
    """A register of a TEE has one size; only TPMs have banks, and a NitroTPM's documents hold one of them."""
    if algorithm != target.algorithm and target.platform in ("snp", "tdx", "nitro"):
        raise typer.BadParameter("this platform has one bank only", param_hint="--bank")


def _config(target: Target, path: Path | None, algorithm: Algorithm) -> dict[str, list[bytes]]:
    digest = parts.config_digest(path)
    if digest is None:
        return {}
    return {name: [value] for name, value in target.config(digest, algorithm).items()}


def _known(options: list[str], predicted: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    """Return values known from elsewhere; what is predicted is not replaced."""
    found: dict[str, list[bytes]] = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator or name in predicted:
            raise typer.BadParameter(
                "write NAME=HEX, of a register that is not predicted", param_hint="--register"
            )
        try:
            found.setdefault(name, []).append(hex_decode(text))
        except FormatError as exc:
            raise typer.BadParameter(str(exc), param_hint="--register") from None
    return found


def _emit(
    target: Target,
    registers: dict[str, list[bytes]],
    events: tuple[PredictedEvent, ...],
    missing: list[NotPredicted],
    *,
    out: Path | None,
    index: int | None,
    as_json: bool,
) -> None:
    result: dict[str, object] = {
        "platform": target.platform,
        "config_register": target.config_register,
        "registers": {name: [value.hex() for value in some] for name, some in registers.items()},
        "events": [parts.event_json(event) for event in events],
        "not_predicted": [parts.missing_json(one) for one in missing],
        "file": None if out is None else str(out),
        "log_index": index,
    }
    lines = [
        f"platform  {target.platform}, config in {target.config_register}",
        *[f"register  {name:12} {value.hex()}" for name, some in registers.items() for value in some],
        *[f"NOT KNOWN {one.register:12} {one.reason}" for one in missing],
        *([] if out is None else [f"file      {out}"]),
        *([] if index is None or out is None else [f"logged    entry {index}, {parts.proof_path(out)}"]),
    ]
    emit(result, as_json=as_json, lines=lines)
