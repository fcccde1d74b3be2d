"""Artefacts in object stores, read by ranges through fsspec (extra `remote`). Spec: docs/spec/sealed-artefact.md.

The store is not trusted: what it gives is proved like a file of the host's. Nothing is written to a disk here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sealwright.errors import SettingsError, UnavailableError, VerificationError
from sealwright.sealing.files import Source
from sealwright.sealing.location import MANIFEST, Location, bounded, ciphertext_name

_CLOUDS = ("s3", "gs", "az", "abfs", "abfss", "https")

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class RemoteSource:
    """An object, read at offsets. Its length is what the store said when it was opened."""

    def __init__(self, store: AbstractFileSystem, path: str) -> None:
        """Ask for its length. Raises UnavailableError `store-failed`."""
        self._store, self._path = store, path
        self.size = _length(store, path)

    def holds(self, length: int) -> bool:
        """Return whether it has this length."""
        return self.size == length

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`.

        Raises:
            VerificationError: `file-truncated`: fewer bytes, or more, than were asked for.
            UnavailableError: `store-failed`.
        """
        if not out:
            return
        try:
            got = self._store.cat_file(self._path, start=offset, end=offset + len(out))
        except Exception as exc:  # each store has errors of its own
            raise _failed(exc) from exc
        if len(got) != len(out):
            raise VerificationError(
                "the store gave another part than it was asked for", code="file-truncated", stage="segments"
            )
        out[:] = got

    def changed(self) -> bool:
        """Return False: an object that changes is refused by a tag."""
        return False

    def stamp(self) -> str:
        """Return nothing."""
        return ""

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object NAME.sealed, with NAME.sealed.json beside it."""

    store: AbstractFileSystem = field(repr=False)
    path: str

    def envelope(self) -> bytes:
        """As `Location` says."""
        return bounded(RemoteSource(self.store, f"{self.path}.json"))

    def ciphertext(self, index: int) -> Source:
        """As `Location` says."""
        return RemoteSource(self.store, self.path)


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A prefix with `manifest.json` and a ciphertext for each file."""

    store: AbstractFileSystem = field(repr=False)
    path: str

    def envelope(self) -> bytes:
        """As `Location` says."""
        return bounded(RemoteSource(self.store, f"{self.path}/{MANIFEST}"))

    def ciphertext(self, index: int) -> Source:
        """As `Location` says."""
        return RemoteSource(self.store, f"{self.path}/{ciphertext_name(index)}")


def locate_url(url: str, **options: str) -> Location:
    """Return the artefact at a URL such as `s3://bucket/model.sealed`.

    Args:
        options: for the store, as obstore names them: `endpoint`, `region`, `access_key_id` and so on. What is not given
            is taken from the environment as the cloud's own tools do.

    Raises:
        SettingsError: `store-unknown`: no such scheme, or what it needs is not installed; `store-options`.
        UnavailableError: `store-failed`.
    """
    store, path = _store(url, options)
    path = path.rstrip("/")
    try:
        folder = store.exists(f"{path}/{MANIFEST}")
    except Exception as exc:
        if type(exc).__name__ == "UnknownConfigurationKeyError":  # obstore's, which may not be installed
            raise SettingsError(
                f"the store does not know one of these options: {', '.join(sorted(options))[:200]}",
                code="store-options",
            ) from exc
        raise _failed(exc) from exc
    return RemoteFolder(store, path) if folder else RemoteFile(store, path)


def is_url(text: str) -> bool:
    """Return whether this is a URL, not a path."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme.isalnum()


def _store(url: str, options: Mapping[str, str]) -> tuple[AbstractFileSystem, str]:
    scheme, _, path = url.partition("://")
    try:
        if scheme in _CLOUDS:
            from obstore.fsspec import FsspecStore

            # Whoever names an endpoint without TLS means it: what is read is ciphertext, and proved.
            plain = options.get("endpoint", "").startswith("http://")
            make: Any = FsspecStore  # its overloads want literals
            return make(scheme, config=dict(options), client_options={"allow_http": plain}), path
        from fsspec.core import url_to_fs

        found: tuple[AbstractFileSystem, str] = url_to_fs(url, **options)
        return found
    except (ImportError, ValueError) as exc:
        raise _unknown(url) from exc


def _length(store: AbstractFileSystem, path: str) -> int:
    try:
        size = store.size(path)
    except FileNotFoundError as exc:
        raise UnavailableError(
            "the store has no such object: check the URL", code="input-unreadable", stage="input"
        ) from exc
    except Exception as exc:
        raise _failed(exc) from exc
    if not isinstance(size, int) or size < 0:
        raise UnavailableError(
            "the store does not tell an object's length", code="store-failed", stage="input"
        )
    return size


def _failed(exc: Exception) -> UnavailableError:
    return UnavailableError(
        f"the store does not answer as it should ({type(exc).__name__}): check URL, credentials and network",
        code="store-failed",
        stage="input",
    )


def _unknown(url: str) -> SettingsError:
    scheme = url.split(":", 1)[0][:32]
    return SettingsError(
        f"nothing here reads {scheme!r} URLs: pip install 'sealwright[remote]', or what fsspec needs for it",
        code="store-unknown",
    )
