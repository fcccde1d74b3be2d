"""Sealed artefacts: format, manifest, signing, opening into memory (docs/spec/sealed-artefact.md)."""

from sealwright.sealing.lazy import SealedFile, SealedFolder
from sealwright.sealing.location import Location, locate
from sealwright.sealing.manifest import Entry, Manifest, manifest_path
from sealwright.sealing.memory import open_memfd
from sealwright.sealing.open import Progress, Sink, open_into, open_to_file, open_to_folder, read_manifest
from sealwright.sealing.remote import locate_url
from sealwright.sealing.rewrap import rewrap
from sealwright.sealing.seal import Sealing, seal_file, seal_folder

__all__ = [
    "Entry",
    "Location",
    "Manifest",
    "Progress",
    "SealedFile",
    "SealedFolder",
    "Sealing",
    "Sink",
    "locate",
    "locate_url",
    "manifest_path",
    "open_into",
    "open_memfd",
    "open_to_file",
    "open_to_folder",
    "read_manifest",
    "rewrap",
    "seal_file",
    "seal_folder",
]
