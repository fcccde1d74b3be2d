"""Small sealed artefacts, made for each test that asks."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.sealing.support import DEK, OWNER, SMALL, Sealed

from sealwright.sealing import manifest_path, seal_file


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Sealed]:
    """Return a function that seals `plain` with small segments; each artefact in a folder of its own."""
    numbers = itertools.count()

    def seal(
        plain: bytes, *, dek: bytes = DEK, version: int = 1, sha256: bool = False, **more: object
    ) -> Sealed:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        source, out = folder / "weights.bin", folder / "weights.bin.sealed"
        source.write_bytes(plain)
        manifest = seal_file(
            source,
            out,
            dek=dek,
            kid="weights",
            signer=OWNER,
            version=version,
            sha256=sha256,
            segment_bytes=SMALL,
            **more,  # type: ignore[arg-type]
        )
        assert json.loads(manifest_path(out).read_bytes())
        return Sealed(path=out, plain=plain, manifest=manifest, dek=dek)

    return seal
