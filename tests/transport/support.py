"""Keys, streams and a gateway for the transport tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sealwright.crypto.hpke import HpkePrivateKey, Kem
from sealwright.transport.keys import GatewayKey, KeyConfig

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "transport.json").read_text())


def published() -> dict[str, Any]:
    """Return the published OHTTP vectors, which stay outside the repository."""
    root = os.environ.get("SEALWRIGHT_VECTORS", Path(__file__).parents[2].parent / "shared" / "vectors")
    path = Path(root) / "protocol" / "ehbp-chunked-ohttp-aci.json"
    if not path.exists():
        pytest.skip(f"published vectors are not here: {path.name}")
    vectors: dict[str, Any] = json.loads(path.read_text())
    return vectors


def gateway_key(kem: Kem = Kem.XWING, *, key_id: int = 1, seed: int = 7) -> GatewayKey:
    private = HpkePrivateKey.from_seed(kem, bytes([seed]) * 32)
    return GatewayKey(config=KeyConfig(key_id=key_id, public=private.public), private=private)
