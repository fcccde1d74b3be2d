"""What somebody who checks a file has beside it: collateral, and an outage policy of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sealwright.audit.detect import spelled
from sealwright.endorsement.bag import MAX_BLOB, MAX_BLOBS, Endorsements
from sealwright.errors import EvidenceFormatError, SettingsError
from sealwright.verify.context import CollateralKind, Tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Collateral, and how much of it may be missing or stale."""

    collateral: Endorsements = field(default_factory=Endorsements)
    outage: Mapping[CollateralKind, Tolerance] = field(default_factory=dict)


def folder(path: Path) -> Endorsements:
    """Return the endorsements in a file, or in every file of a folder, as vendors serve them.

    Raises:
        SettingsError: it cannot be read. EvidenceFormatError: a file is none; the message names it.
    """
    try:
        files = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}", code="unreadable-file") from exc
    if len(files) > MAX_BLOBS:
        raise SettingsError(f"{path} has {len(files)} files, over {MAX_BLOBS}", code="too-large")
    found = Endorsements()
    for file in files:
        found += _one(file)
    return found


def _one(file: Path) -> Endorsements:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BLOB + 1)
        return Endorsements.detect([_served(raw)])
    except OSError as exc:
        raise SettingsError(f"cannot read {file}: {exc.strerror}", code="unreadable-file") from exc
    except EvidenceFormatError as exc:
        raise EvidenceFormatError(f"{file.name}: {exc}", code=exc.code, stage=exc.stage) from exc


def _served(raw: bytes) -> bytes:
    """Return DER that a text spells (a PCCS serves CRLs in hex; OCSP responses are kept in base64), or `raw`."""
    text = spelled(raw)
    return text if text is not None and text[:1] == b"\x30" else raw
