"""Vendors' root certificates, pinned: facts with digest and source (`roots/index.json`).

Intermediates that vendors publish beside a root are kept too, so that evidence needs to bring the leaf only; they
are trusted no more than any other certificate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from cryptography import x509

from sealwright.endorsement.x509 import fingerprint, load_certificate, pem_blocks

Vendor = Literal["amd", "aws", "google", "intel", "nvidia", "nvidia-rim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedCertificate:
    """A certificate that came with this package."""

    name: str
    vendor: Vendor
    anchor: bool  # a root; else an intermediate
    sha256: bytes  # of its DER, 32 bytes
    source: str
    certificate: x509.Certificate


@cache
def pinned() -> tuple[PinnedCertificate, ...]:
    """Return every pinned certificate; its bytes have the digest that the index names.

    Raises:
        RuntimeError: the package was damaged.
    """
    folder = files("sealwright.endorsement") / "roots"
    index = json.loads((folder / "index.json").read_text())
    found = []
    for name, said in index.items():
        ((_, der),) = pem_blocks((folder / f"{name}.pem").read_bytes())
        certificate = load_certificate(der)
        if fingerprint(certificate).hex() != said["sha256"]:
            raise RuntimeError(f"the pinned certificate {name} is not the one that was pinned")
        found.append(
            PinnedCertificate(
                name=name,
                vendor=said["vendor"],
                anchor=said["kind"] == "anchor",
                sha256=bytes.fromhex(said["sha256"]),
                source=said["source"],
                certificate=certificate,
            )
        )
    return tuple(found)


def anchors(vendor: Vendor) -> tuple[x509.Certificate, ...]:
    """Return the pinned roots of a vendor."""
    return tuple(one.certificate for one in pinned() if one.vendor == vendor and one.anchor)


def intermediates(vendor: Vendor) -> tuple[x509.Certificate, ...]:
    """Return the intermediates that are kept beside a vendor's roots."""
    return tuple(one.certificate for one in pinned() if one.vendor == vendor and not one.anchor)
