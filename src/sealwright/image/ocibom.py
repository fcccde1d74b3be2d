"""What an image is made of, as a CycloneDX 1.6 document: the packages of the lock, and nothing that was guessed."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from urllib.parse import quote

from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import digest, rfc3339
from sealwright.image.ocilock import Lock, Package

BOM = "application/vnd.cyclonedx+json"


def bill(
    lock: Lock, debian: Iterable[Package], wheels: Iterable[Package], *, image: str, manifest: str
) -> bytes:
    """Return the bill of materials.

    Args:
        image: the image's name.
        manifest: the digest of its manifest, sha256:HEX.
    """
    components = [_component(one, f"pkg:deb/debian/{_quoted(one.name)}@{_quoted(one.version)}"
                             f"?arch={lock.architecture}&distro=trixie") for one in debian]  # fmt: skip
    components += [_component(one, f"pkg:pypi/{_quoted(one.name)}@{_quoted(one.version)}") for one in wheels]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Of the content, so that two builds have the same one.
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest('sealwright/bom/v1', manifest)[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": rfc3339(lock.at),
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": f"sealwright-{image}",
                "version": manifest,
                "hashes": [{"alg": "SHA-256", "content": manifest.removeprefix("sha256:")}],
            },
        },
        "components": sorted(components, key=lambda one: str(one["purl"])),
        "dependencies": [{"ref": "image", "dependsOn": sorted(str(one["bom-ref"]) for one in components)}],
    }
    return canonical(document)


def _component(package: Package, purl: str) -> dict[str, object]:
    return {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": package.sha256.hex()}],
    }


def _quoted(text: str) -> str:
    return quote(text, safe="")
