"""A guest image, from a lock, a folder of packages and the project's own wheel: the same bytes wherever it is built.

Spec: docs/spec/guest-image.md.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Count, Digest, Document, Record
from sealwright.crypto.encoding import digest
from sealwright.errors import SettingsError, UnavailableError, VerificationError
from sealwright.image.cpio import cpio
from sealwright.image.disk import ESP, ROOT_X86_64, VERITY_X86_64, Part, write_disk
from sealwright.image.fat import SECTOR, write_esp
from sealwright.image.guestroot import STUB, TOOLS, initrd_tree, kernel_of, packages, root_tree
from sealwright.image.hashtree import BLOCK, HashTree, hash_tree
from sealwright.image.ocibom import bill
from sealwright.image.ocibuild import own_wheel
from sealwright.image.ocilock import Lock
from sealwright.image.ocilock import Package as LockedPackage
from sealwright.image.ocitar import Tree, write_layer
from sealwright.image.predict.pe import PeImage
from sealwright.image.provenance import guest_provenance
from sealwright.image.toolbox import Toolbox
from sealwright.image.uki import unified_kernel_image

MANIFEST = "image.json"
FILES = (
    "cmdline",
    "disk.raw",
    "guest.efi",
    "initrd",
    "kernel",
    "provenance.json",
    "root.img",
    "sbom.cdx.json",
    "verity.img",
)
# What the kernel is told besides the root: nothing of it is left to a host.
COMMAND_LINE = "console=ttyS0 quiet loglevel=3 panic=-1 lockdown=confidentiality init_on_alloc=1 slab_nomerge vsyscall=none"
ZSTD_LEVEL = "15"
Say = Callable[[str], None]


class File(Record):
    """One file of an image."""

    name: Literal[
        "cmdline",
        "disk.raw",
        "guest.efi",
        "initrd",
        "kernel",
        "provenance.json",
        "root.img",
        "sbom.cdx.json",
        "verity.img",
    ]
    sha256: Digest
    size: Count  # bytes


class GuestImage(Document):
    """`image.json`: every file of an image by digest, and what its command line says."""

    format: Literal["sealwright-guest-image/v1"] = "sealwright-guest-image/v1"
    name: Annotated[str, Field(max_length=64)]
    version: Annotated[str, Field(max_length=64)]
    architecture: Literal["amd64", "arm64"]
    lock: Digest  # SHA-256 of the lock's canonical JSON
    root_hash: Digest
    kernel: Annotated[str, Field(max_length=128)]
    command_line: Annotated[str, Field(max_length=2048)]
    files: Annotated[list[File], Field(min_length=len(FILES), max_length=len(FILES))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What is put on the disk."""

    kernel: bytes
    kernel_version: str
    initrd: bytes
    stub: bytes
    tree: HashTree
    command_line: str
    uki: bytes


def build_guest(
    lock: Lock, folder: Path, wheel: Path, out: Path, *, name: str = "chat", say: Say = lambda _text: None
) -> GuestImage:
    """Write an image's files and `image.json` into `out`, and return the manifest.

    Args:
        folder: of the files that the lock names.
        wheel: the project's own.
        out: a folder that is empty or absent.
        say: is told each step.

    Raises:
        SettingsError, VerificationError, UnavailableError: a package is not there, another one, or malformed; a program
            of the packages failed.
    """
    own, content = own_wheel(wheel)
    _make(out)
    with Toolbox(packages(lock, folder, "tools", TOOLS)) as toolbox:
        say("root: unpacking and compiling")
        tree = _root(lock, folder, content, out, toolbox, say)
        say("initrd")
        kernel_tree = packages(lock, folder, "kernel")
        kernel, version = kernel_of(kernel_tree)
        initrd = _initrd(cpio(initrd_tree(lock, folder, kernel_tree, toolbox)), toolbox)
    command_line = f"{COMMAND_LINE} {tree.command_line}"
    stub = _file(packages(lock, folder, "stub"), STUB)
    sections = {
        ".osrel": _os_release(name, own.version),
        ".cmdline": command_line.encode(),
        ".uname": version.encode(),
        ".initrd": initrd,
        ".linux": kernel,
    }
    parts = _Parts(
        kernel=kernel,
        kernel_version=version,
        initrd=initrd,
        stub=stub,
        tree=tree,
        command_line=command_line,
        uki=unified_kernel_image(stub, sections),
    )
    say("disk")
    _write_files(out, parts)
    return _finish(lock, out, parts, own, name)


def signed_disk(image: Path, signed: Path, out: Path) -> bytes:
    """Write the image's disk with its boot program signed for Secure Boot; return the disk's SHA-256.

    Args:
        image: folder that `build_guest` wrote.
        signed: the same program with a signature.

    Raises:
        VerificationError: `image-digest`: it is another program. FormatError: `malformed-pe`.
        UnavailableError: `input-unreadable`, `output-failed`.
    """
    try:
        uki, plain = signed.read_bytes(), (image / "guest.efi").read_bytes()
    except OSError as exc:
        raise _unreadable(signed, exc) from exc
    if PeImage.parse(uki).authenticode("sha256") != PeImage.parse(plain).authenticode("sha256"):
        raise VerificationError(
            f"{signed} is another program than the image's guest.efi", code="image-digest", stage="sign"
        )
    try:
        with out.open("x+b") as disk:
            resigned_disk(image, uki, disk)
            disk.seek(0)
            return hashlib.file_digest(disk, "sha256").digest()
    except OSError as exc:
        raise UnavailableError(
            f"cannot write {out}: {exc.strerror}", code="output-failed", stage="output"
        ) from exc


def resigned_disk(image: Path, uki: bytes, out: BinaryIO) -> None:
    """Write the image's disk with another boot program, whatever it is: for tests of what refuses it.

    Args:
        image: folder that `build_guest` wrote.

    Raises:
        UnavailableError: `input-unreadable`.
    """
    manifest = read_image(image)
    try:
        with (image / "root.img").open("rb") as root, (image / "verity.img").open("rb") as verity:
            _disk(out, uki, root, verity, manifest.root_hash)
    except OSError as exc:
        raise _unreadable(image, exc) from exc


def read_image(folder: Path) -> GuestImage:
    """Return an image's manifest; its files are not looked at. Raises UnavailableError, SettingsError."""
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as exc:
        raise _unreadable(folder / MANIFEST, exc) from exc
    return GuestImage.parse(raw, error=SettingsError)


def _root(lock: Lock, folder: Path, wheel: bytes, out: Path, toolbox: Toolbox, say: Say) -> HashTree:
    tree = root_tree(lock, folder, wheel, toolbox)
    say(f"root: {len(tree)} files, packed")
    _squash(tree, out / "root.img", lock, toolbox)
    with (out / "root.img").open("rb") as data:
        made = hash_tree(data, digest("sealwright/verity/v1", lock_digest(lock)))
    (out / "verity.img").write_bytes(made.levels)
    return made


def _squash(tree: Tree, place: Path, lock: Lock, toolbox: Toolbox) -> None:
    """Pack a tree into a squashfs of whole blocks."""
    packed = toolbox.work() / "root.tar"
    with packed.open("wb") as file:
        write_layer(file, tree, at=lock.seconds)
    options = [
        "-tar",
        "-comp",
        "zstd",
        "-Xcompression-level",
        ZSTD_LEVEL,
        "-b",
        "131072",
        "-noappend",
        "-quiet",
    ]
    options += ["-no-progress", "-no-xattrs", "-reproducible", "-mkfs-time", str(lock.seconds)]
    # The archive has no entry of its root, which would else have this machine's time and mask.
    options += ["-root-mode", "755", "-root-uid", "0", "-root-gid", "0", "-root-time", str(lock.seconds)]
    with packed.open("rb") as archive:
        toolbox.run("usr/bin/mksquashfs", ["-", str(place), *options], stdin=archive)
    packed.unlink()
    with place.open("r+b") as image:
        image.truncate(-(-image.seek(0, 2) // BLOCK) * BLOCK)
    place.chmod(0o644)


def _initrd(archive: bytes, toolbox: Toolbox) -> bytes:
    place = toolbox.work() / "initrd.cpio"
    place.write_bytes(archive)
    # Its own window and no threads: what a kernel unpacks, and the same bytes on any number of processors.
    return toolbox.run("usr/bin/zstd", ["-q", "-c", "--single-thread", "-19", str(place)])


def _write_files(out: Path, parts: _Parts) -> None:
    for name, content in {
        "kernel": parts.kernel,
        "initrd": parts.initrd,
        "cmdline": parts.command_line.encode(),
        "guest.efi": parts.uki,
    }.items():
        (out / name).write_bytes(content)
        (out / name).chmod(0o644)
    with (
        (out / "root.img").open("rb") as root,
        (out / "verity.img").open("rb") as verity,
        (out / "disk.raw").open("w+b") as disk,
    ):
        _disk(disk, parts.uki, root, verity, parts.tree.root_hash)


def _disk(out: BinaryIO, uki: bytes, root: BinaryIO, verity: BinaryIO, root_hash: bytes) -> None:
    with tempfile.TemporaryFile() as esp:
        sectors = write_esp(esp, uki)
        # Discoverable Partitions: root and hash tree carry the halves of the root hash as their GUIDs.
        parts = [
            Part(
                kind=ESP, guid=digest("sealwright/esp/v1", uki)[:16], name="esp", content=esp, sectors=sectors
            ),
            _part(ROOT_X86_64, root_hash[:16], "sealwright-root", root),
            _part(VERITY_X86_64, root_hash[16:], "sealwright-verity", verity),
        ]
        write_disk(out, parts, seed=root_hash + hashlib.sha256(uki).digest())


def _part(kind: bytes, guid: bytes, name: str, content: BinaryIO) -> Part:
    return Part(kind=kind, guid=guid, name=name, content=content, sectors=content.seek(0, 2) // SECTOR)


def _finish(lock: Lock, out: Path, parts: _Parts, own: LockedPackage, name: str) -> GuestImage:
    used = [one for one in lock.debian if {"guest", "initrd", "kernel", "stub"} & set(one.images)]
    wheels = [*(one for one in lock.wheels if "guest" in one.images), own]
    uki = hashlib.sha256(parts.uki).hexdigest()
    (out / "sbom.cdx.json").write_bytes(
        bill(lock, used, wheels, image=f"guest-{name}", manifest=f"sha256:{uki}")
    )
    measured = {one: _described(out / one) for one in FILES if one != "provenance.json"}
    subjects = {one: found.sha256 for one, found in measured.items()}
    tools = [one for one in lock.debian if "tools" in one.images]
    statement = guest_provenance(
        subjects,
        [*used, *tools, *wheels],
        lock_digest=lock_digest(lock),
        at=lock.at,
        name=name,
        version=own.version,
    )
    (out / "provenance.json").write_bytes(canonical(statement))
    for extra in ("sbom.cdx.json", "provenance.json", "disk.raw", "verity.img"):
        (out / extra).chmod(0o644)
    manifest = GuestImage(
        name=name,
        version=own.version,
        architecture=lock.architecture,
        lock=lock_digest(lock),
        root_hash=parts.tree.root_hash,
        kernel=parts.kernel_version,
        command_line=parts.command_line,
        files=[_described(out / one) for one in FILES],
    )
    (out / MANIFEST).write_bytes(manifest.encode())
    (out / MANIFEST).chmod(0o644)
    return manifest


def lock_digest(lock: Lock) -> bytes:
    """Return SHA-256 (32 bytes) of a lock's canonical JSON."""
    return hashlib.sha256(canonical(lock.to_json())).digest()


def _described(path: Path) -> File:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
        return File.model_validate({"name": path.name, "sha256": sha256, "size": file.tell()})


def _file(tree: Tree, path: str) -> bytes:
    node = tree.get(path)
    if node is None or node.content is None:
        raise SettingsError(f"the packages bring no {path}", code="image-incomplete", stage="packages")
    return node.content


def _os_release(name: str, version: str) -> bytes:
    said: Mapping[str, str] = {
        "ID": "sealwright",
        "NAME": "Sealwright guest",
        "PRETTY_NAME": f"Sealwright guest {name} {version}",
        "VERSION_ID": version,
    }
    return "".join(f'{key}="{value}"\n' for key, value in said.items()).encode()


def _make(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is there already, and not empty", code="output-exists", stage="output")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UnavailableError(
            f"cannot write {out}: {exc.strerror}", code="output-failed", stage="output"
        ) from exc
    if shutil.disk_usage(out).free < 2 << 30:
        raise UnavailableError("an image needs 2 GiB of disk", code="output-failed", stage="output")


def _unreadable(path: Path, exc: OSError) -> UnavailableError:
    return UnavailableError(f"cannot read {path}: {exc.strerror}", code="input-unreadable", stage="image")
