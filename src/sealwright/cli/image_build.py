"""`sealwright image build`: a guest image, measured from firmware to workload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sealwright.cli._group import FILE, FOLDER, Json
from sealwright.cli._output import emit, note


def build(
    lock: Annotated[Path, typer.Option(help="The packages by digest: deploy/oci/lock.json.", **FILE)],
    packages: Annotated[Path, typer.Option(metavar="DIR", help="The files that the lock names.", **FOLDER)],
    wheel: Annotated[Path, typer.Option(help="Sealwright's own wheel.", **FILE)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the image goes; empty or absent.")],
    name: Annotated[str, typer.Option(help="Name of the image.")] = "chat",
    as_json: Json = False,
) -> None:
    """Build a guest image from pinned packages: the same bytes wherever it is built. Needs no root."""
    from sealwright.image.guestimage import build_guest
    from sealwright.image.ocilock import read_lock

    made = build_guest(
        read_lock(lock), packages, wheel, out, name=name, say=lambda text: note(f"image: {text}")
    )
    sizes = {file.name: file.size for file in made.files}
    emit(
        made.to_json(),
        as_json=as_json,
        lines=[
            f"root hash     {made.root_hash.hex()}",
            f"kernel        {made.kernel}",
            *(f"{file.name:14}{file.sha256.hex()}  {sizes[file.name]:>12,} bytes" for file in made.files),
            f"next:  sealwright image predict {out} --platform tpm",
        ],
    )


def sign_disk(
    image: Annotated[Path, typer.Argument(help="Folder that `image build` wrote.", **FOLDER)],
    signed: Annotated[Path, typer.Argument(help="guest.efi, signed for Secure Boot.", **FILE)],
    out: Annotated[Path, typer.Option(help="Where the disk goes.")],
    as_json: Json = False,
) -> None:
    """Write the image's disk with its boot program signed: the same program, or it is refused."""
    from sealwright.image.guestimage import signed_disk

    digest = signed_disk(image, signed, out)
    emit(
        {"disk": str(out), "sha256": digest.hex()},
        as_json=as_json,
        lines=[f"disk    {out}", f"sha256  {digest.hex()}"],
    )
