"""Sealed artefacts: format, manifest, signing, opening into memory (docs/spec/sealed-artefact.md)."""

from sealwright.sealing.manifest import Entry, Manifest, manifest_path
from sealwright.sealing.memory import open_memfd
from sealwright.sealing.open import Progress, Sink, open_into, open_to_file, read_manifest
from sealwright.sealing.seal import seal_file

__all__ = [
    "Entry",
    "Manifest",
    "Progress",
    "Sink",
    "manifest_path",
    "open_into",
    "open_memfd",
    "open_to_file",
    "read_manifest",
    "seal_file",
]
