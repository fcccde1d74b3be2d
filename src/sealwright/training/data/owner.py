"""What an owner does before anything is trained: seal shards, and write the policy that lists them.

Spec: docs/spec/training-data.md, Sealing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.errors import UnavailableError
from sealwright.protocol.training_data import Kind, Shard
from sealwright.sealing import seal_file
from sealwright.training.data.tables import malformed, open_table

_SUFFIXES: dict[str, Kind] = {
    ".npz": "npz", ".parquet": "parquet", ".safetensors": "safetensors", ".txt": "text", ".jsonl": "text",
}  # fmt: skip


def kind_of(path: Path) -> Kind:
    """Return the kind of a file by its name. Raises ArtefactFormatError: `malformed-shard`."""
    kind = _SUFFIXES.get(path.suffix)
    if kind is None:
        raise malformed(f"a name ends with one of {', '.join(_SUFFIXES)}")
    return kind


def count_rows(path: Path, kind: Kind) -> int:
    """Return how many rows a plaintext file has, read as a worker will read it, to the last block.

    Raises:
        ArtefactFormatError: not of its kind. UnavailableError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as exc:
        raise UnavailableError(
            f"cannot read {path.name}: {exc.strerror}", code="input-unreadable", stage="input"
        ) from None
    try:
        table = open_table(fd, kind)
        try:
            for index in range(len(table.blocks)):
                table.block(index)
            return table.rows
        finally:
            table.close()
    finally:
        os.close(fd)


def seal_shard(
    source: Path,
    out: Path,
    *,
    name: str,
    dek: bytes,
    kid: str,
    owner: Ed25519PrivateKey,
    version: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Shard:
    """Seal a file as `out`, with its manifest beside it; return what the owner's policy says of it.

    Args:
        dek: the key that the broker holds under `kid`, 32 bytes.

    Raises:
        ArtefactFormatError: not a shard of its kind. UnavailableError: a file cannot be read or written.
    """
    kind = kind_of(source)
    rows = count_rows(source, kind)
    manifest = seal_file(source, out, dek=dek, kid=kid, signer=owner, version=version, progress=progress)
    return Shard(name=name, kid=kid, manifest_digest=manifest.manifest_digest, kind=kind, rows=rows)
