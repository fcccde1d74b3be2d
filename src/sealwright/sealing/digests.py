"""The digests of a plaintext: BLAKE3, and SHA-256 where it is asked for."""

from __future__ import annotations

import hashlib
import hmac

from blake3 import blake3

from sealwright.errors import VerificationError
from sealwright.sealing.manifest import Entry


class Digests:
    """Both digests, fed in order."""

    def __init__(self, *, sha256: bool) -> None:
        self._blake3 = blake3()
        self._sha256 = hashlib.sha256() if sha256 else None

    def update(self, plain: memoryview) -> None:
        """Add the next bytes."""
        self._blake3.update(plain)
        if self._sha256 is not None:
            self._sha256.update(plain)

    def entry(self, path: str, length: int) -> Entry:
        """Return the file list's entry for what was fed."""
        sha256 = None if self._sha256 is None else self._sha256.digest()
        return Entry(path=path, length=length, blake3=self._blake3.digest(), sha256=sha256)

    def check(self, entry: Entry) -> None:
        """Refuse a plaintext other than the one the owner sealed.

        Raises:
            VerificationError: stage `plaintext-digest`.
        """
        same = hmac.compare_digest(self._blake3.digest(), entry.blake3)
        if self._sha256 is not None and entry.sha256 is not None:
            same &= hmac.compare_digest(self._sha256.digest(), entry.sha256)
        if not same:
            raise VerificationError(
                "the plaintext is not the one that was sealed",
                code="wrong-plaintext",
                stage="plaintext-digest",
            )
