"""Small sealed artefacts, made once for each test that asks."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.sealing import Manifest, manifest_path, open_into, read_manifest, seal_file

DEK = bytes(range(32))
OWNER = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
SMALL = 128  # bytes a segment: many segments in a small file


class Kept:
    """A sink that shows what it was given, and how it ended."""

    def __init__(self) -> None:
        self.plain = bytearray()
        self.ended: list[str] = []

    def start(self, length: int) -> None:
        self.plain = bytearray(length)

    def write(self, offset: int, data: memoryview) -> None:
        self.plain[offset : offset + len(data)] = data

    def commit(self) -> None:
        self.ended.append("commit")

    def abort(self) -> None:
        self.ended.append("abort")


@dataclass
class Sealed:
    """An artefact on disk, with what is needed to open it."""

    path: Path
    plain: bytes
    manifest: Manifest
    dek: bytes = DEK

    def open(self, *, manifest: Manifest | None = None, dek: bytes | None = None, threads: int = 2) -> bytes:
        """Open as an enclave does; the plaintext, or the error, with the sink left as it must be."""
        kept = Kept()
        envelope = read_manifest(self.path)
        wanted = (manifest or self.manifest).manifest_digest
        genuine = Manifest.verify(envelope, [OWNER.public_key()], wanted)
        try:
            open_into(self.path, genuine, dek or self.dek, kept, threads=threads, segment_bytes=SMALL)
        except BaseException:
            assert kept.ended == ["abort"]
            raise
        assert kept.ended == ["commit"]
        return bytes(kept.plain)


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
