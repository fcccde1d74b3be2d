"""What the log tests share: where other people's vectors lie, and fixed keys."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def vectors_root() -> Path:
    return Path(os.environ.get("SEALWRIGHT_VECTORS", ROOT.parent / "shared" / "vectors")) / "tlog"
