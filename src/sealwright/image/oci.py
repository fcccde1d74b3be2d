"""An OCI image layout (image-spec 1.1), written and read back: blobs, manifests, index. No daemon, no clock.

Spec: docs/spec/container-image.md.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealwright.crypto.canonical import canonical, parse_json
from sealwright.errors import FormatError, SettingsError, UnavailableError, VerificationError
from sealwright.image.ocitar import Tree, write_layer

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"
MAX_JSON = 4 << 20  # bytes of a manifest, config or index
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A blob by type, digest and size."""

    media_type: str
    digest: str  # sha256:HEX
    size: int  # bytes
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    def to_json(self) -> dict[str, object]:
        """Return it as manifests and indexes hold it."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
            **({"annotations": dict(self.annotations)} if self.annotations else {}),
            **({"artifactType": self.artifact_type} if self.artifact_type else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> Descriptor:
        """Return a descriptor. Raises SettingsError: `image-malformed`."""
        try:
            made = cls(
                media_type=value["mediaType"],
                digest=value["digest"],
                size=value["size"],
                annotations=value.get("annotations", {}),
                artifact_type=value.get("artifactType", ""),
            )
        except (KeyError, TypeError, AttributeError):
            raise _malformed("a descriptor lacks its type, digest or size") from None
        texts = [made.media_type, made.artifact_type]
        if not isinstance(made.annotations, dict) or not all(isinstance(text, str) for text in texts):
            raise _malformed("a descriptor has members of the wrong type")
        if not isinstance(made.digest, str) or not _DIGEST.fullmatch(made.digest):
            raise _malformed("a digest is sha256 and 64 hexadecimal digits")
        if type(made.size) is not int or made.size < 0:
            raise _malformed("a size is a number of bytes")
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How a container of the image is started: the `config` member of the image's configuration."""

    entrypoint: Sequence[str]
    command: Sequence[str] = ()
    user: str
    environment: Mapping[str, str]
    folder: str = "/"
    labels: Mapping[str, str]
    ports: Sequence[int] = ()
    volumes: Sequence[str] = ()

    def to_json(self) -> dict[str, object]:
        """Return it in the form of image-spec, config.md."""
        members: dict[str, object] = {
            "User": self.user,
            "Env": [f"{name}={value}" for name, value in sorted(self.environment.items())],
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "WorkingDir": self.folder,
            "Labels": dict(self.labels),
            "ExposedPorts": {f"{port}/tcp": {} for port in self.ports},
            "Volumes": {path: {} for path in self.volumes},
            "StopSignal": "SIGTERM",
        }
        return {name: value for name, value in members.items() if value}


class LayoutWriter:
    """Writes a layout into an empty folder. `close` writes the index, and with it the layout is whole."""

    def __init__(self, root: Path) -> None:
        """Raises SettingsError: `output-exists`. UnavailableError: `output-failed`."""
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise SettingsError(
                f"{root} is there already, and not empty", code="output-exists", stage="output"
            )
        self._root, self._blobs = root, root / "blobs" / "sha256"
        self._index: list[Descriptor] = []
        try:
            self._blobs.mkdir(parents=True)
        except OSError as exc:
            raise _unwritable(root, exc) from exc

    def blob(self, content: bytes, media_type: str) -> Descriptor:
        """Add a blob."""
        digest = hashlib.sha256(content).hexdigest()
        self._write(self._blobs / digest, content)
        return Descriptor(media_type=media_type, digest=f"sha256:{digest}", size=len(content))

    def document(self, value: object, media_type: str) -> Descriptor:
        """Add a JSON document, in its canonical form."""
        return self.blob(canonical(value), media_type)

    def layer(self, tree: Tree, *, at: int) -> Descriptor:
        """Add a layer. Args: at: the time of every file, seconds since 1970."""
        handle, name = tempfile.mkstemp(dir=self._blobs, prefix=".layer-")
        path = Path(name)
        try:
            with open(handle, "w+b") as file:
                write_layer(file, tree, at=at)
                size = file.tell()
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            path.chmod(0o644)
            path.replace(self._blobs / digest)
        except OSError as exc:
            raise _unwritable(self._root, exc) from exc
        finally:
            path.unlink(missing_ok=True)
        return Descriptor(media_type=LAYER, digest=f"sha256:{digest}", size=size)

    def refer(self, descriptor: Descriptor, name: str) -> Descriptor:
        """List a manifest in the index under `name`; return its descriptor as listed."""
        if not _NAME.fullmatch(name) or any(one.annotations.get(REF_NAME) == name for one in self._index):
            raise SettingsError(f"{name!r} is no name, or is taken", code="image-name", stage="output")
        listed = Descriptor(
            media_type=descriptor.media_type,
            digest=descriptor.digest,
            size=descriptor.size,
            annotations={**descriptor.annotations, REF_NAME: name},
            artifact_type=descriptor.artifact_type,
        )
        self._index.append(listed)
        return listed

    def close(self) -> None:
        """Write `index.json` and `oci-layout`."""
        listed = sorted(self._index, key=lambda one: one.annotations[REF_NAME])
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [one.to_json() for one in listed]}
        self._write(self._root / "index.json", canonical(index))
        self._write(self._root / "oci-layout", canonical({"imageLayoutVersion": "1.0.0"}))

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.write_bytes(content)
            path.chmod(0o644)
        except OSError as exc:
            raise _unwritable(self._root, exc) from exc


def write_image(
    out: LayoutWriter,
    layers: Iterable[tuple[str, Tree]],
    runtime: Runtime,
    *,
    at: int,
    created: str,
    architecture: str,
    annotations: Mapping[str, str],
) -> Descriptor:
    """Add an image and return its manifest's descriptor.

    Args:
        layers: what each holds, in words, and its tree; the lowest first.
        at: the time of every file, seconds since 1970; created: the same in RFC 3339.
        architecture: Go's name, such as amd64.
        annotations: of the manifest.
    """
    descriptors, history = [], []
    for said, tree in layers:
        descriptors.append(out.layer(tree, at=at))
        history.append({"created": created, "created_by": said})
    config = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": runtime.to_json(),
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in descriptors]},
        "history": history,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": out.document(config, CONFIG).to_json(),
        "layers": [layer.to_json() for layer in descriptors],
        "annotations": dict(annotations),
    }
    return out.document(manifest, MANIFEST)


def write_referrer(
    out: LayoutWriter,
    subject: Descriptor,
    content: bytes,
    *,
    artifact_type: str,
    annotations: Mapping[str, str],
) -> Descriptor:
    """Add an artefact about `subject`, as image-spec 1.1 attaches it, and return its manifest's descriptor."""
    empty = out.blob(b"{}", EMPTY)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": empty.to_json(),
        "layers": [out.blob(content, artifact_type).to_json()],
        "subject": Descriptor(
            media_type=subject.media_type, digest=subject.digest, size=subject.size
        ).to_json(),
        "annotations": dict(annotations),
    }
    written = out.document(manifest, MANIFEST)
    return Descriptor(
        media_type=MANIFEST, digest=written.digest, size=written.size, artifact_type=artifact_type
    )


class LayoutReader:
    """Reads a layout; what it returns has the digest that led to it."""

    def __init__(self, root: Path) -> None:
        """Read the index. Raises SettingsError: `image-malformed`; UnavailableError: `input-unreadable`."""
        self._root = root
        if _json(_read(root / "oci-layout", MAX_JSON)).get("imageLayoutVersion") != "1.0.0":
            raise _malformed("oci-layout names another version than 1.0.0")
        listed = _json(_read(root / "index.json", MAX_JSON)).get("manifests")
        if not isinstance(listed, list):
            raise _malformed("the index lists no manifests")
        self.index = [Descriptor.from_json(one) for one in listed]

    def named(self, name: str) -> Descriptor:
        """Return the descriptor listed as `name`. Raises SettingsError: `image-name`."""
        found = [one for one in self.index if one.annotations.get(REF_NAME) == name]
        if len(found) != 1:
            raise SettingsError(f"{len(found)} manifests are listed as {name!r}", code="image-name")
        return found[0]

    def document(self, descriptor: Descriptor) -> dict[str, Any]:
        """Return a JSON blob. Raises VerificationError: `image-digest`."""
        return _json(self.blob(descriptor, limit=MAX_JSON))

    def blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a small blob, checked. Raises SettingsError: `too-large`; VerificationError: `image-digest`."""
        if descriptor.size > limit:
            raise SettingsError(f"a blob of {descriptor.size} bytes is over {limit}", code="too-large")
        raw = _read(self._path(descriptor), limit)
        if len(raw) != descriptor.size or not _is(hashlib.sha256(raw).hexdigest(), descriptor):
            raise _not_it(descriptor)
        return raw

    def check(self, descriptor: Descriptor) -> None:
        """Prove that a blob of any size is the one described. Raises VerificationError: `image-digest`."""
        path = self._path(descriptor)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                found = hashlib.file_digest(file, "sha256").hexdigest() if size == descriptor.size else ""
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        if not _is(found, descriptor):
            raise _not_it(descriptor)

    def check_image(self, descriptor: Descriptor) -> dict[str, Any]:
        """Prove that an image is whole, config and layers; return its manifest."""
        manifest = self.document(descriptor)
        layers = manifest.get("layers")
        if manifest.get("mediaType") != MANIFEST or not isinstance(layers, list):
            raise _malformed("this is no image manifest")
        described = [Descriptor.from_json(layer) for layer in layers]
        config = self.document(Descriptor.from_json(manifest.get("config")))
        rootfs = config.get("rootfs")
        diffs = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if {one.media_type for one in described} - {LAYER} or diffs != [one.digest for one in described]:
            raise _malformed("the layers are not those of the configuration")
        for layer in described:
            self.check(layer)
        return manifest

    def _path(self, descriptor: Descriptor) -> Path:
        return self._root / "blobs" / "sha256" / descriptor.digest.removeprefix("sha256:")


def _is(found: str, descriptor: Descriptor) -> bool:
    return hmac.compare_digest(f"sha256:{found}", descriptor.digest)


def _json(raw: bytes) -> dict[str, Any]:
    value = parse_json(raw, limit=MAX_JSON, error=SettingsError)
    if not isinstance(value, dict):
        raise _malformed("an object is wanted")
    return value


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if len(raw) > limit:
        raise SettingsError(f"{path} is over the limit of {limit} bytes", code="too-large")
    return raw


def _malformed(why: str) -> FormatError:
    return SettingsError(f"no OCI image layout: {why}", code="image-malformed", stage="layout")


def _not_it(descriptor: Descriptor) -> VerificationError:
    return VerificationError(
        f"the blob {descriptor.digest} is another one", code="image-digest", stage="layout"
    )


def _unreadable(path: Path, exc: OSError) -> UnavailableError:
    return UnavailableError(f"cannot read {path}: {exc.strerror}", code="input-unreadable", stage="layout")


def _unwritable(path: Path, exc: OSError) -> UnavailableError:
    return UnavailableError(f"cannot write {path}: {exc.strerror}", code="output-failed", stage="output")
