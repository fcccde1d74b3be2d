"""A small source in git, with parts beside it: what a release is built from in a second or two."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sealwright.appraisal.reference import ReferenceValues
from sealwright.appraisal.signed import REFERENCE_VALUES, Signers
from sealwright.crypto.dsse import Envelope
from sealwright.ops.release import files
from sealwright.ops.release.assemble import Parts, assemble
from sealwright.ops.release.logged import log_release
from sealwright.ops.release.manifest import PROOF, SIGNATURES, ReleaseManifest, with_signature
from sealwright.ops.release.verify import ReleaseTrust
from sealwright.ops.release.wheel import Source
from sealwright.tlog.keys import Signer
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.posix import PosixLog

ROOT = Path(__file__).resolve().parents[2]
AT = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
_PROJECT = """
[build-system]
requires = ["hatchling==1.33.0"]
build-backend = "hatchling.build"

[project]
name = "toy-thing"
version = "1.2.3"
requires-python = ">=3.11"

[tool.hatch.build.targets.wheel]
packages = ["toy_thing"]
"""


def git(folder: Path, *arguments: str) -> None:
    """Run git as an author who is nobody, at a fixed time."""
    said = {
        "GIT_AUTHOR_NAME": "n",
        "GIT_AUTHOR_EMAIL": "n@example.org",
        "GIT_COMMITTER_NAME": "n",
        "GIT_COMMITTER_EMAIL": "n@example.org",
        "GIT_AUTHOR_DATE": "2026-05-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2026-05-01T00:00:00Z",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=os.environ | said
    )


def make_source(folder: Path, *, text: str = "ANSWER = 42\n") -> Source:
    """Return a commit of a small project with the lock files of this one."""
    (folder / "toy_thing").mkdir(parents=True)
    (folder / "toy_thing/__init__.py").write_text(text)
    (folder / "toy_thing/data.txt").write_text("data\n" * 100)
    (folder / "pyproject.toml").write_text(_PROJECT)
    (folder / "requirements").mkdir()
    for name in ("base.txt", "demo.txt", "build.txt", "licences.json"):
        (folder / "requirements" / name).write_bytes((ROOT / "requirements" / name).read_bytes())
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return Source.of(folder)


def make_image(folder: Path) -> Path:
    """Return a folder like a guest image's: files, and what names them."""
    folder.mkdir()
    contents = {"disk.raw": b"a disk" * 1000, "guest.efi": b"a kernel"}
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)
    named = [
        {"name": name, "sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        for name, raw in contents.items()
    ]
    (folder / "image.json").write_text(json.dumps({"format": "sealwright-guest-image/v1", "files": named}))
    return folder


def make_layout(folder: Path) -> Path:
    """Return an OCI layout of one blob."""
    blob = b"a layer"
    digest = hashlib.sha256(blob).hexdigest()
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "blobs/sha256" / digest).write_bytes(blob)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text("{}")
    return folder


def make_values(path: Path, key: Ed25519PrivateKey, **changes: object) -> Path:
    """Return a file of signed reference values."""
    values = {
        "name": "toy-guest",
        "version": 7,
        "created": AT - timedelta(days=1),
        "expires": AT + timedelta(days=90),
        "platform": "snp",
        "registers": {"measurement": ["5f" * 48]},
        "config_register": "host_data",
    }
    document = ReferenceValues.model_validate(values | changes)
    path.write_bytes(Envelope.sign(REFERENCE_VALUES, document.encode(), key).encode())
    return path


@dataclass(slots=True, kw_only=True)
class Stand:
    """Two builders, a log, and one release, signed by both."""

    root: Path
    first: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    second: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    log: Signer = field(
        default_factory=lambda: Signer(name="log.test/releases", key=Ed25519PrivateKey.generate())
    )
    source: Source = field(init=False)
    parts: Parts = field(init=False)
    manifest: ReleaseManifest = field(init=False)

    def __post_init__(self) -> None:
        self.source = make_source(self.root / "source")
        self.parts = Parts(
            image=make_image(self.root / "image"),
            oci=(make_layout(self.root / "enclave"),),
            reference_values=(make_values(self.root / "snp.json", self.first),),
        )
        self.manifest = assemble(
            self.source, self.folder, self.parts, builder="urn:test:first", clock=lambda: AT
        )
        PosixLog.open(self.made(self.root / "log"), self.log, create=True).close()
        self.sign(self.first, self.second)
        files.write(self.folder / PROOF, log_release(self.manifest, self.root / "log", self.log))

    @property
    def folder(self) -> Path:
        """The release."""
        return self.root / "release"

    def made(self, path: Path) -> Path:
        """Return a folder that is there."""
        path.mkdir(exist_ok=True)
        return path

    def sign(self, *keys: Ed25519PrivateKey) -> None:
        """Add signatures to the release."""
        path = self.folder / SIGNATURES
        added = Envelope.sign(self.manifest.PAYLOAD_TYPE, self.manifest.encode(), *keys)
        files.write(path, with_signature(path.read_bytes() if path.exists() else None, added))

    def trust(self, *, threshold: int = 2) -> ReleaseTrust:
        """Return trust in both builders and the log."""
        keys = [key.public_key().public_bytes_raw() for key in (self.first, self.second)]
        return ReleaseTrust(
            signers=Signers(keys=keys, threshold=threshold),
            log=LogPolicy.of_key(self.log.vkey.encode()),
            reference_signers=Signers(keys=keys, threshold=1),
        )
