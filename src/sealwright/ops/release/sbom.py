"""The SBOM of a wheel: CycloneDX 1.6 from its lock files, the same wherever it is made.

Spec: docs/spec/release.md, SBOM. No I/O.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.errors import ArtefactFormatError, SettingsError, VerificationError
from sealwright.ops.release.lock import Pin, pins

LICENCES = "requirements/licences.json"
MAX_SBOM = 8 << 20  # bytes
_NAMESPACE = uuid.UUID("6f9dbb40-5f1c-5d55-9a1d-0d3f7a0f5b11")  # of our serial numbers


def make_sbom(
    *, name: str, version: str, sha256: str, dated: str, required: str, optional: str, licences: bytes
) -> bytes:
    """Return the SBOM as canonical JSON.

    Args:
        sha256: of the wheel, hex.
        dated: time of the source, RFC 3339.
        required, optional: texts of the lock files of the bare wheel, and with its extras.
        licences: `requirements/licences.json`: package to SPDX expression.

    Raises:
        SettingsError: `malformed-lock`, `licence-unknown`.
    """
    needed = pins(required)
    more = {package: pin for package, pin in pins(optional).items() if package not in needed}
    known = _licences(licences)
    components = [_component(one, pin, "required", known) for one, pin in needed.items()]
    components += [_component(one, pin, "optional", known) for one, pin in more.items()]
    components.sort(key=lambda component: str(component["bom-ref"]))
    main = _purl(name, version)
    return canonical(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, sha256)}",
            "version": 1,
            "metadata": {
                "timestamp": dated,
                "lifecycles": [{"phase": "build"}],
                "component": {
                    "type": "application",
                    "bom-ref": main,
                    "name": name,
                    "version": version,
                    "purl": main,
                    "hashes": [{"alg": "SHA-256", "content": sha256}],
                    "licenses": [{"expression": "Apache-2.0"}],
                },
            },
            "components": components,
            "dependencies": [
                {"ref": main, "dependsOn": sorted(_purl(one, pin.version) for one, pin in needed.items())}
            ],
        }
    )


def check_sbom(raw: bytes, *, name: str, version: str, sha256: str) -> None:
    """Check that an SBOM is CycloneDX 1.6 and of this wheel.

    Raises:
        ArtefactFormatError: `malformed-sbom`. VerificationError: `sbom-mismatch`.
    """
    match parse_json(raw, limit=MAX_SBOM, error=ArtefactFormatError):
        case {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "metadata": {"component": {"name": str(of), "version": str(at), "hashes": list(hashes)}},
            "components": list(components),
        } if components:
            pass
        case _:
            raise ArtefactFormatError(
                "the SBOM is not CycloneDX 1.6 of one component", code="malformed-sbom", stage="sbom"
            )
    if (of, at, hashes) != (name, version, [{"alg": "SHA-256", "content": sha256}]):
        raise VerificationError(
            "the SBOM is of another wheel than the release's", code="sbom-mismatch", stage="sbom"
        )


def _component(name: str, pin: Pin, scope: str, licences: Mapping[str, str]) -> dict[str, Any]:
    if name not in licences:
        raise SettingsError(
            f"{LICENCES} does not say the licence of {name}: read it, and add it",
            code="licence-unknown",
            stage="sbom",
        )
    purl = _purl(name, pin.version)
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": pin.version,
        "purl": purl,
        "scope": scope,
        "licenses": [{"expression": licences[name]}],
        "externalReferences": [{"type": "distribution", "url": purl, "hashes": _hashes(pin.sha256)}],
    }


def _hashes(digests: Sequence[str]) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest} for digest in digests]


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def _licences(raw: bytes) -> Mapping[str, str]:
    found = parse_json(raw, error=SettingsError)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise SettingsError(
            f"{LICENCES} maps packages to SPDX expressions", code="licence-unknown", stage="sbom"
        )
    return found
