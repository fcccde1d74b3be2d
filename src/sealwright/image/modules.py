"""The kernel modules of a guest: those that are asked for and what they need, in the order in which they are loaded."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from sealwright.errors import SettingsError
from sealwright.image.ocitar import Node, Tree

_FOLDER = re.compile(r"usr/lib/modules/[^/]+/kernel/.*\.ko(?:\.xz)?")
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)")
MAX_MODULE = 64 << 20  # bytes


def module_tree(kernel: Tree, wanted: Iterable[str], builtin: Iterable[str] = ()) -> dict[str, Node]:
    """Return `lib/modules/*.ko`, and `lib/modules/sealwright.list` with their load order.

    Args:
        kernel: the files of the kernel's package.
        wanted: names, with `_` for `-`. One that the kernel has built in need not be there.
        builtin: names that may be missing for that reason.

    Raises:
        SettingsError: `module-missing`.
    """
    files = {_name(path): node for path, node in kernel.items() if _FOLDER.fullmatch(path)}
    order: list[str] = []
    contents: dict[str, bytes] = {}
    for name in wanted:
        if name in files:
            _add(name, files, order, contents, frozenset())
        elif name not in set(builtin):
            raise SettingsError(f"the kernel has no module {name}", code="module-missing", stage="modules")
    tree = {f"lib/modules/{name}.ko": Node(mode=0o644, content=contents[name]) for name in order}
    listed = "".join(f"{name}.ko\n" for name in order)
    return {**tree, "lib/modules/sealwright.list": Node(mode=0o644, content=listed.encode())}


def _add(
    name: str,
    files: Mapping[str, Node],
    order: list[str],
    contents: dict[str, bytes],
    above: frozenset[str],
) -> None:
    if name in contents or name in above:
        return
    node = files.get(name)
    if node is None or node.content is None:
        raise SettingsError(f"the kernel has no module {name}", code="module-missing", stage="modules")
    content = _unpacked(name, node.content)
    for other in _depends(content):
        _add(other, files, order, contents, above | {name})
    contents[name] = content
    order.append(name)


def _unpacked(name: str, raw: bytes) -> bytes:
    if raw[:4] == b"\x7fELF":
        return raw
    try:
        unpacker = lzma.LZMADecompressor()
        content = unpacker.decompress(raw, MAX_MODULE)
    except lzma.LZMAError:
        content, unpacker = b"", None
    if unpacker is None or not unpacker.eof:
        raise SettingsError(f"module {name} is no xz file", code="package-malformed", stage="modules")
    return content


def _depends(content: bytes) -> list[str]:
    found = _DEPENDS.search(content)
    return (
        []
        if found is None or not found[1]
        else [one.replace("-", "_") for one in found[1].decode().split(",")]
    )


def _name(path: str) -> str:
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")
