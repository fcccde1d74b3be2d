"""Receipts that `connect` keeps: the last ones in memory, all of them as files if a directory is given."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path

from sealwright.client.receipts import ReceiptFile
from sealwright.client.trust_source import read_file
from sealwright.errors import SettingsError

MAX_KEPT = 1024  # receipts in memory
_ID = re.compile(r"[0-9a-f]{32}")


class ReceiptStore:
    """By receipt id, hex."""

    def __init__(self, directory: Path | None) -> None:
        """Args: directory: where the files go; it is made if it is not there."""
        self._kept: OrderedDict[str, ReceiptFile] = OrderedDict()
        self._directory = directory
        if directory is not None:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as exc:
                raise SettingsError(
                    f"cannot make {directory}: {exc.strerror}", code="unreadable-file"
                ) from exc

    def put(self, receipt_id: str, file: ReceiptFile) -> None:
        """Keep a receipt, or a newer form of it."""
        self._kept[receipt_id] = file
        self._kept.move_to_end(receipt_id)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        if self._directory is not None:
            replace_file(self._directory / f"{receipt_id}.receipt.json", file.encode())

    def get(self, receipt_id: str) -> ReceiptFile | None:
        """Return a receipt, if it is here."""
        if not _ID.fullmatch(receipt_id):
            return None
        if receipt_id in self._kept:
            return self._kept[receipt_id]
        if self._directory is None or not (path := self._directory / f"{receipt_id}.receipt.json").exists():
            return None
        return ReceiptFile.parse(read_file(path, limit=4 << 20))


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` in one step, readable by its owner only."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    create_private(aside, data)
    os.replace(aside, path)


def create_private(path: Path, data: bytes) -> None:
    """Create a file that only its owner may read; it must not exist."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
