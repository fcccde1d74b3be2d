"""Where a client's trust comes from: a file, read again for each request, or a trust file in memory."""

from __future__ import annotations

import os
from pathlib import Path

from sealwright.appraisal.policy import TrustFile
from sealwright.appraisal.yaml import MAX_YAML
from sealwright.errors import SettingsError, VerificationError

Trust = str | os.PathLike[str] | TrustFile


class TrustSource:
    """Loads a trust file, and again when its bytes have changed. What cannot be read is not trusted.

    An older version than one that was loaded before is refused until the process ends, signed or not.
    """

    def __init__(self, trust: Trust) -> None:
        """Args: trust: a path, or the trust file itself."""
        self._path = None if isinstance(trust, TrustFile) else Path(trust)
        self._loaded = trust if isinstance(trust, TrustFile) else None
        self._raw = b""

    def load(self) -> TrustFile:
        """Return the trust file as it is now.

        Raises:
            SettingsError: it cannot be read, or is not a trust file. VerificationError: `version-rollback`.
        """
        if self._path is not None:
            raw = read_file(self._path)
            if self._loaded is None or raw != self._raw:
                self._loaded, self._raw = self._newer(TrustFile.load(raw)), raw
        if self._loaded is None:
            raise RuntimeError("a trust source has a path or a trust file")
        return self._loaded

    def _newer(self, found: TrustFile) -> TrustFile:
        if self._loaded is not None and found.version < self._loaded.version:
            raise VerificationError(
                f"the trust file is of version {found.version}, and one of version {self._loaded.version} was in use; "
                "if it shall count all the same, start this program again",
                code="version-rollback",
                stage="version",
            )
        return found


def read_file(path: Path, *, limit: int = MAX_YAML) -> bytes:
    """Return the bytes of a settings file, bounded.

    Raises:
        SettingsError: it cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}", code="unreadable-file") from exc
    if len(raw) > limit:
        raise SettingsError(f"{path} is over the limit of {limit} bytes", code="too-large")
    return raw
