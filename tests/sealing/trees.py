"""Folders to seal, and their artefacts: what the tests of folders share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.sealing.support import DEK, OWNER, SMALL

from sealwright.sealing import Location, Manifest, Sealing, locate, open_to_folder, seal_folder

TREE = {
    "config.json": b'{"layers": 2}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 3,
    "model-00002-of-00002.safetensors": b"",
    "tokenizer/merges.txt": b"a b\n" * 100,
    "tokenizer/deep/er/vocab.bin": b"\x00" * (SMALL * 2),
}
SEALING = Sealing(dek=DEK, kid="model", signer=OWNER, version=1, segment_bytes=SMALL)


def write_tree(folder: Path, tree: dict[str, bytes]) -> Path:
    """Write files by path below `folder`."""
    for path, raw in tree.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(raw)
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the files below `folder` by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sealed_tree(where: Path, tree: dict[str, bytes], **more: object) -> Path:
    """Seal a tree; return the artefact's folder."""
    source = write_tree(where / "model", tree)
    seal_folder(source, where / "model.sealed", replace(SEALING, **more))  # type: ignore[arg-type]
    return where / "model.sealed"


def verified(location: Location) -> Manifest:
    """Return the manifest, checked as the owner does."""
    return Manifest.verify_signed(location.envelope(), [OWNER.public_key()])


def opened(artefact: Path | Location, to: Path, **more: object) -> dict[str, bytes]:
    """Open an artefact into a folder; return its files."""
    location = locate(artefact) if isinstance(artefact, Path) else artefact
    open_to_folder(location, verified(location), DEK, to, segment_bytes=SMALL, **more)  # type: ignore[arg-type]
    return read_tree(to)
