"""The files of a guest: its root, and its initrd. Spec: docs/spec/guest-image.md, Contents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from sealwright.errors import SettingsError
from sealwright.image.guest import INITRD_FILES
from sealwright.image.modules import module_tree
from sealwright.image.ocibuild import check_contents, skeleton
from sealwright.image.ocilock import Lock, Part, pinned
from sealwright.image.ocipackages import PYTHON, deb_tree, wheel_tree
from sealwright.image.ocitar import Node, Tree, merged
from sealwright.image.toolbox import Toolbox, unpack

NFT = "usr/sbin/nft"
STUB = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
TOOLS = (PYTHON, "usr/bin/mksquashfs", "usr/bin/zstd")
# What the initrd's Python imports from; the rest of the library is in the root.
_PYTHON_LIBRARY = "usr/lib/python3.13/"
INITRD_SITE = "usr/lib/sealwright"
# Disks and networks of QEMU and the clouds, TEEs' interfaces, TPM, verity, the packet filter.
MODULES = [
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "virtio_rng",
    "nvme",
    "sd_mod",
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    "hv_utils",
    "gve",
    "ena",
    "dm_mod",
    "dm_verity",
    "squashfs",
    "configfs",
    "tsm",
    "sev_guest",
    "tdx_guest",
    "tpm_crb",
    "tpm_tis",
    "nf_tables",
    "nft_ct",
    "nf_conntrack",
    "button",
    "evdev",
]
# In some kernels these are built in.
MAY_BE_BUILT_IN = [
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "virtio_rng",
    "nvme",
    "sd_mod",
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    "hv_utils",
    "gve",
    "ena",
    "configfs",
    "tsm",
    "sev_guest",
    "tdx_guest",
    "tpm_crb",
    "tpm_tis",
    "button",
    "evdev",
    "dm_mod",
    "squashfs",
]
_INIT = f"""#!/usr/bin/python3.13 -ISB
import sys

sys.path.append("/{INITRD_SITE}")
from sealwright.image.guest.initrd import main

main()
"""
_COMPILE = """
import importlib._bootstrap_external as machinery, importlib.util, json, os, sys
root, listed = sys.argv[1], json.load(open(sys.argv[2]))
for path in listed:
    with open(os.path.join(root, path), "rb") as file:
        source = file.read()
    try:
        code = compile(source, "/" + path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        continue
    folder, name = os.path.split(path)
    os.makedirs(os.path.join(root, folder, "__pycache__"), exist_ok=True)
    made = os.path.join(root, folder, "__pycache__", name[:-3] + ".cpython-313.pyc")
    with open(made, "wb") as file:
        file.write(machinery._code_to_hash_pyc(code, importlib.util.source_hash(source), False))
"""
_IMPORTED = """
import json, sys
sys.path.append(sys.argv[1])
import sealwright.image.guest.initrd, encodings.idna, encodings.utf_16_le, encodings.ascii
names = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(json.dumps(sorted(name for name in names if name)))
"""


def packages(lock: Lock, folder: Path, part: Part, programs: Sequence[str] = ()) -> Tree:
    """Return the files of a part's Debian packages, one tree.

    Raises:
        SettingsError, VerificationError, UnavailableError: a package is missing, another one, or malformed.
    """
    chosen = [one for one in lock.debian if part in one.images]
    return merged(deb_tree(pinned(folder, one), programs)[0] for one in chosen)


def kernel_of(tree: Tree) -> tuple[bytes, str]:
    """Return the kernel in the files of its package, and its version. Raises SettingsError: `image-incomplete`."""
    found = [(path, node.content) for path, node in tree.items() if path.startswith("boot/vmlinuz-")]
    if len(found) != 1 or found[0][1] is None:
        raise SettingsError("the packages bring not one kernel", code="image-incomplete", stage="packages")
    return found[0][1], found[0][0].removeprefix("boot/vmlinuz-")


def root_tree(lock: Lock, folder: Path, wheel: bytes, toolbox: Toolbox) -> Tree:
    """Return the root: Debian's files, wheels, the project, compiled. Raises as `packages`."""
    system = packages(lock, folder, "guest", (PYTHON, NFT))
    libraries = merged(wheel_tree(pinned(folder, one)) for one in lock.wheels if "guest" in one.images)
    tree = merged([skeleton(), _mount_points(), system, libraries, wheel_tree(wheel)])
    check_contents(tree)
    if NFT not in tree:
        raise SettingsError("the packages bring no nft", code="image-incomplete", stage="packages")
    return merged([tree, compiled(tree, toolbox)])


def initrd_tree(lock: Lock, folder: Path, kernel: Tree, toolbox: Toolbox) -> Tree:
    """Return the initrd: Python with what its start imports, our modules, kernel modules. Raises as `packages`."""
    system = packages(lock, folder, "initrd", (PYTHON,))
    own = {
        f"{INITRD_SITE}/sealwright/{name}": Node(mode=0o644, content=_source(name)) for name in INITRD_FILES
    }
    chosen = _imported(merged([system, own]), toolbox)
    kept = {
        path: node for path, node in system.items() if not path.startswith(_PYTHON_LIBRARY) or path in chosen
    }
    libraries = {
        path: node for path, node in kept.items() if not path.startswith(("usr/share/", "etc/", "var/"))
    }
    links = {name: Node(mode=0o777, target=f"usr/{name}") for name in ("bin", "sbin", "lib64")}
    start = {
        "init": Node(mode=0o755, content=_INIT.encode()),
        "usr/bin/python3": Node(mode=0o777, target="python3.13"),
        **{f"lib/{name}": Node(mode=0o777, target=f"../usr/lib/{name}") for name in ("x86_64-linux-gnu",)},
        **{f"usr/{name}": Node() for name in ("bin", "sbin", "lib", "lib64")},
        **{name: Node() for name in ("dev", "proc", "run", "sys", "sysroot", "tmp")},
    }
    tree = merged([links, start, libraries, own, module_tree(kernel, MODULES, MAY_BE_BUILT_IN)])
    return merged([tree, compiled(tree, toolbox)])


def compiled(tree: Tree, toolbox: Toolbox) -> Tree:
    """Return byte code of a tree's Python files, checked against nothing when it is loaded: verity does that."""
    sources = {path: node for path, node in tree.items() if path.endswith(".py") and node.content is not None}
    root = toolbox.work() / "sources"
    unpack(root, sources)
    listed = root.parent / "listed.json"
    listed.write_text(json.dumps(sorted(sources)))
    toolbox.python(_COMPILE, [str(root), str(listed)])
    made = sorted(root.rglob("*.pyc"))
    return {str(path.relative_to(root)): Node(mode=0o644, content=path.read_bytes()) for path in made}


def _imported(tree: Tree, toolbox: Toolbox) -> set[str]:
    """Return the library's files that the start of the initrd imports, found by importing it."""
    root = toolbox.work() / "initrd"
    unpack(root, tree)
    said = toolbox.run(
        PYTHON,
        ["-S", "-B", "-c", _IMPORTED, str(root / INITRD_SITE)],
        environment={"PYTHONHOME": str(root / "usr")},
    )
    found: list[str] = json.loads(said)
    return {str(Path(name).relative_to(root)) for name in found if Path(name).is_relative_to(root)}


def _source(name: str) -> bytes:
    return (files("sealwright") / name).read_bytes()


def _mount_points() -> Mapping[str, Node]:
    hosts = Node(mode=0o644, content=b"")  # process 1 binds another over it
    return {"etc/hosts": hosts, **{name: Node() for name in ("dev", "proc", "run", "sys")}}
