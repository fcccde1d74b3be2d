"""`sealwright image oci` and `oci-verify`: container images, built without a daemon, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sealwright.cli._group import FILE, FOLDER, Json
from sealwright.cli._output import emit


def oci(
    kind: Annotated[Literal["broker", "enclave", "client"], typer.Argument(help="Which image.")],
    lock: Annotated[Path, typer.Option(help="The packages by digest: deploy/oci/lock.json.", **FILE)],
    packages: Annotated[Path, typer.Option(metavar="DIR", help="The files that the lock names.", **FOLDER)],
    wheel: Annotated[Path, typer.Option(help="Sealwright's own wheel.", **FILE)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the OCI layout goes; empty or absent.")],
    key: Annotated[
        Path | None, typer.Option(help="Sign with this private key: P-256 or Ed25519, PEM.", **FILE)
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Repository that the signature is for, such as registry.example/broker.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Build a container image from pinned packages: an OCI layout, the same bytes wherever it is built."""
    from sealwright.image.ocibuild import build
    from sealwright.image.ocilock import read_lock, read_package
    from sealwright.image.ocisign import load_signing_key

    if (key is None) != (not reference):
        raise typer.BadParameter("a signature needs both --key and --reference")
    signing = None if key is None else load_signing_key(read_package(key, limit=1 << 16))
    built = build(kind, read_lock(lock), packages, wheel, out, key=signing, reference=reference)
    signature = None if built.signature is None else built.signature.digest
    emit(
        {"image": built.image.digest, "sbom": built.bom.digest, "signature": signature, "layout": str(out)},
        as_json=as_json,
        lines=[
            f"image      {built.image.digest}",
            f"sbom       {built.bom.digest}",
            f"signature  {signature or 'none: give --key'}",
            f"next:  skopeo copy oci:{out}:{kind} docker://REPOSITORY",
        ],
    )


def oci_verify(
    layout: Annotated[Path, typer.Argument(help="Folder of an OCI layout.", **FOLDER)],
    name: Annotated[str, typer.Argument(help="Name of the image in it: broker, enclave or client.")],
    key: Annotated[Path, typer.Option(help="The signer's public key, PEM.", **FILE)],
    reference: Annotated[str, typer.Option(help="Repository that it was signed for.")],
    as_json: Json = False,
) -> None:
    """Prove that an image is whole, and signed by this key for this repository."""
    from sealwright.image.oci import LayoutReader
    from sealwright.image.ocilock import read_package
    from sealwright.image.ocisign import load_verifying_key, verify_signature

    public = load_verifying_key(read_package(key, limit=1 << 16))
    reader = LayoutReader(layout)
    image = reader.named(name)
    verify_signature(reader, image, public, reference)
    reader.check_image(image)
    emit(
        {"image": image.digest, "reference": reference},
        as_json=as_json,
        lines=[f"image      {image.digest}", f"signed for {reference}"],
    )
