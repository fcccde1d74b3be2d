"""What the tests of sealing share: keys, a sink that shows what it got, an artefact to open."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.sealing import Manifest, open_into, read_manifest

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
