"""The images `broker`, `enclave` and `client`, from a lock, a folder of packages and the project's own wheel.

Spec: docs/spec/container-image.md.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sealwright.crypto.encoding import rfc3339
from sealwright.errors import SettingsError
from sealwright.image.oci import Descriptor, LayoutWriter, Runtime, write_image, write_referrer
from sealwright.image.ocibom import BOM, bill
from sealwright.image.ocilock import Lock, Package, pinned, read_package
from sealwright.image.ocipackages import PYTHON, SITE, deb_tree, wheel_tree
from sealwright.image.ocisign import SigningKey, signature_name, write_signature
from sealwright.image.ocitar import Node, Tree, merged

Kind = Literal["broker", "enclave", "client"]
USER = 65532  # owns its own state and nothing else
MAX_WHEEL = 64 << 20  # bytes
_STATE = ("var/lib/sealwright", "var/lib/sealwright-collateral", "run/sealwright")
_TEXT: Mapping[Kind, str] = {
    "broker": "appraises enclaves, holds keys and releases them; with its log",
    "enclave": "serves sealed models; on platform software as a container, on others inside a confidential VM",
    "client": "connect, verify, receipt and log: what callers and auditors use",
}
_PORTS: Mapping[Kind, tuple[int, ...]] = {"broker": (8420,), "enclave": (8443,), "client": ()}
_FORBIDDEN = re.compile(
    r"(?:.*/)?s?bin/(?:a|ba|da|c|k|tc|z|tr)?sh|(?:.*/)?s?bin/(?:busybox|toybox|apt|apt-get|dpkg|ssh|sshd|su|sudo|perl|curl|wget)"
)
_PROGRAM = b"""#!/usr/bin/python3 -IB
import sys

from sealwright.cli import main

sys.exit(main())
"""
_WHEEL = re.compile(r"sealwright-([A-Za-z0-9.]+)-py3-none-any\.whl", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image that was written."""

    image: Descriptor
    bom: Descriptor
    signature: Descriptor | None


def build(
    kind: Kind,
    lock: Lock,
    packages: Path,
    wheel: Path,
    out: Path,
    *,
    key: SigningKey | None = None,
    reference: str = "",
) -> Built:
    """Write an image, its bill of materials and, with a key, its signature as an OCI layout.

    Args:
        packages: folder of the files that the lock names.
        wheel: the project's own.
        out: folder of the layout: empty or absent.
        reference: the repository that the signature is for.

    Raises:
        SettingsError, VerificationError, UnavailableError: a package is not there, or another one.
    """
    debian = [one for one in lock.debian if kind in one.images]
    wheels = [one for one in lock.wheels if kind in one.images]
    own, content = own_wheel(wheel)
    system = _system(packages, debian)
    libraries = merged(wheel_tree(pinned(packages, one)) for one in wheels)
    project = {**wheel_tree(content), "usr/bin/sealwright": _program()}
    check_contents(merged([system, libraries, project]))
    writer = LayoutWriter(out)
    at, created = lock.seconds, rfc3339(lock.at)
    labels = _labels(kind, own.version, created)
    image = write_image(
        writer,
        [("Debian packages", system), ("wheels", libraries), (f"sealwright {own.version}", project)],
        _runtime(kind, labels),
        at=at,
        created=created,
        architecture=lock.architecture,
        annotations=labels,
    )
    listed = writer.refer(image, kind)
    content = bill(lock, debian, [*wheels, own], image=kind, manifest=image.digest)
    bom = write_referrer(writer, image, content, artifact_type=BOM, annotations={})
    writer.refer(bom, f"{kind}.sbom")
    signature = None
    if key is not None:
        signature = writer.refer(write_signature(writer, image, key, reference), signature_name(image))
    writer.close()
    return Built(image=listed, bom=bom, signature=signature)


def own_wheel(wheel: Path) -> tuple[Package, bytes]:
    """Return the project's own wheel, as a package and its bytes.

    Raises:
        SettingsError: `package-malformed`. UnavailableError: `input-unreadable`.
    """
    found = _WHEEL.fullmatch(wheel.name)
    if found is None:
        raise SettingsError(
            f"{wheel.name} is no wheel of this project", code="package-malformed", stage="packages"
        )
    content = read_package(wheel, limit=MAX_WHEEL)
    sha256 = hashlib.sha256(content).digest()
    package = Package.model_construct(
        file=wheel.name, name="sealwright", version=found[1], sha256=sha256, images=["broker"]
    )
    return package, content


def _system(folder: Path, packages: Iterable[Package]) -> Tree:
    trees: list[Tree] = [skeleton()]
    for package in packages:
        tree, control = deb_tree(pinned(folder, package))
        # Where scanners look for the packages of an image without dpkg.
        status = {f"var/lib/dpkg/status.d/{package.name}": Node(mode=0o644, content=control)}
        trees += [tree, status]
    system = merged(trees)
    return merged([system, _certificates(system)])


def skeleton() -> Tree:
    """Return what every image has besides its packages."""
    accounts = f"root:x:0:0:root:/:/none\nsealwright:x:{USER}:{USER}:sealwright:/:/none\n"
    release = 'PRETTY_NAME="Sealwright on Debian GNU/Linux 13"\nID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'
    return {
        "etc/passwd": Node(mode=0o644, content=accounts.encode()),
        "etc/group": Node(mode=0o644, content=f"root:x:0:\nsealwright:x:{USER}:\n".encode()),
        "etc/os-release": Node(mode=0o644, content=release.encode()),
        # Read by the quoter, which looks for libraries where the loader does.
        "etc/ld.so.conf": Node(mode=0o644, content=b"include /etc/ld.so.conf.d/*.conf\n"),
        "etc/nsswitch.conf": Node(mode=0o644, content=b"passwd: files\ngroup: files\nhosts: files dns\n"),
        "tmp": Node(mode=0o1777),
        "usr/bin/python3": Node(mode=0o777, target="python3.13"),
        **{name: Node(mode=0o777, target=f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")},
        **{f"usr/{name}": Node() for name in ("bin", "sbin", "lib", "lib64")},
        **{path: Node(mode=0o700, owner=USER) for path in _STATE},
        **{name: Node() for name in ("dev", "proc", "sys", "models")},
    }


def _certificates(system: Tree) -> Tree:
    """Return the one file of CA certificates that update-ca-certificates would have made."""
    prefix = "usr/share/ca-certificates/"
    found = [node.content or b"" for path, node in sorted(system.items()) if path.startswith(prefix)]
    content = b"".join(one if one.endswith(b"\n") else one + b"\n" for one in found if one)
    return {"etc/ssl/certs/ca-certificates.crt": Node(mode=0o644, content=content)} if content else {}


def _program() -> Node:
    return Node(mode=0o755, content=_PROGRAM)


def check_contents(tree: Tree) -> None:
    """Refuse an image with a shell or a way to install one, or without its interpreter."""
    for path, node in tree.items():
        names = [path, posixpath.normpath(posixpath.join(posixpath.dirname(path), node.target))]
        if any(_FORBIDDEN.fullmatch(name) for name in names[: 2 if node.target else 1]):
            raise SettingsError(f"{path} has no place in an image", code="image-forbidden", stage="packages")
    if PYTHON not in tree or f"{SITE}/sealwright/cli/__init__.py" not in tree:
        raise SettingsError(
            "the packages bring no Python 3.13, or the wheel no sealwright",
            code="image-incomplete",
            stage="packages",
        )


def _labels(kind: Kind, version: str, created: str) -> dict[str, str]:
    prefix = "org.opencontainers.image"
    return {
        f"{prefix}.title": f"sealwright-{kind}",
        f"{prefix}.description": _TEXT[kind],
        f"{prefix}.version": version,
        f"{prefix}.created": created,
        f"{prefix}.licenses": "Apache-2.0",
        f"{prefix}.base.name": "debian:trixie packages",
    }


def _runtime(kind: Kind, labels: Mapping[str, str]) -> Runtime:
    return Runtime(
        entrypoint=("/usr/bin/sealwright",),
        command=("--help",),
        user=f"{USER}:{USER}",
        environment={"PATH": "/usr/bin", "LANG": "C.UTF-8"},
        folder="/",
        labels=labels,
        ports=_PORTS[kind],
        volumes=() if kind == "client" else ("/var/lib/sealwright",),
    )
