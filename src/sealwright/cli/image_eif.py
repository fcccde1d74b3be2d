"""`sealwright image eif`: an enclave image for AWS Nitro Enclaves, the same bytes from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealwright.cli._group import FILE, Json
from sealwright.cli._output import emit
from sealwright.cli._signing import write_new
from sealwright.client.trust_source import read_file
from sealwright.image.eif import Eif
from sealwright.image.predict.files import MAX_COMMAND_LINE, command_line
from sealwright.image.predict.nitro import predict_nitro
from sealwright.image.predict.reader import MAX_FILE


def eif(
    kernel: Annotated[Path, typer.Option(help="Kernel.", **FILE)],
    cmdline: Annotated[Path, typer.Option(help="File with the command line.", **FILE)],
    ramdisk: Annotated[list[Path], typer.Option(help="Ramdisk; the first starts the others.", **FILE)],
    name: Annotated[str, typer.Option(help="Of the image.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where it goes; it must not exist.")],
    image_version: Annotated[str, typer.Option(help="Of the image.")] = "1",
    arm64: Annotated[bool, typer.Option("--arm64", help="For Graviton; default: x86-64.")] = False,
    as_json: Json = False,
) -> None:
    """Write an enclave image (EIF), unsigned, and say what it measures to."""
    image = Eif.make(
        read_file(kernel, limit=MAX_FILE),
        command_line(read_file(cmdline, limit=MAX_COMMAND_LINE + 1)),
        [read_file(path, limit=MAX_FILE) for path in ramdisk],
        name=name,
        version=image_version,
        arm64=arm64,
    )
    write_new(out, image.encode())
    registers = {name: value.hex() for name, value in predict_nitro(image).registers.items()}
    lines = [f"file      {out}", *[f"register  {name:12} {value}" for name, value in registers.items()]]
    emit({"file": str(out), "registers": registers}, as_json=as_json, lines=lines)
