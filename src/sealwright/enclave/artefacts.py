"""What the host hands over with an enclave, and opening it: sealed models into sealed memory.

The payload is the host's and unverified; it is held against the digests in the measured config.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import Document
from sealwright.crypto.streaming import wipe
from sealwright.errors import VerificationError
from sealwright.protocol.enclave_config import ArtefactEntry, EnclaveConfig, TenantList
from sealwright.sealing import Manifest, open_memfd

MAX_PAYLOAD = 4 << 20  # bytes


class EnclavePayload(Document):
    """Openings of the tenant lists, and the manifests of the artefacts by kid."""

    format: Literal["sealwright-enclave-payload/v1"] = "sealwright-enclave-payload/v1"
    openings: Annotated[list[TenantList], Field(min_length=1, max_length=256)]
    manifests: dict[str, dict[str, Any]]  # DSSE

    def check(self, config: EnclaveConfig) -> None:
        """Prove that the openings are those of the config, each tenant once.

        Raises:
            VerificationError: `tenant-list-mismatch`.
        """
        if len({opening.tenant for opening in self.openings}) != len(self.openings):
            raise VerificationError(
                "a tenant's list is given twice", code="tenant-list-mismatch", stage="config"
            )
        for opening in self.openings:
            opening.check(config)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model in a sealed memfd, owned by whoever takes it."""

    tenant: str
    entry: ArtefactEntry
    model_fd: int


def open_artefact(
    tenant: str,
    entry: ArtefactEntry,
    payload: EnclavePayload,
    fds: Mapping[str, int],
    release: Callable[[], bytearray],
    *,
    threads: int,
) -> OpenedModel:
    """Return the model of one tenant's entry, opened with the key that `release` returns.

    The manifest's signature is the broker's business, which admitted it; here its digest must be the
    one that stands in the measured tenant list, which says more.

    Raises:
        VerificationError: `manifest-not-admitted`, `artefact-missing`, and all that opening finds.
    """
    manifest = _manifest(entry, payload)
    if entry.kid not in fds:
        raise VerificationError(
            f"the host gave no artefact for {entry.kid}", code="artefact-missing", stage="artefact"
        )
    dek = release()
    try:
        # A copy for the opener's types would be a second one to wipe.
        model_fd = open_memfd(fds[entry.kid], manifest, cast(bytes, dek), threads=threads)
    finally:
        wipe(memoryview(dek))
    return OpenedModel(tenant=tenant, entry=entry, model_fd=model_fd)


def _manifest(entry: ArtefactEntry, payload: EnclavePayload) -> Manifest:
    if entry.kid not in payload.manifests:
        raise VerificationError(
            f"the host gave no manifest for {entry.kid}", code="artefact-missing", stage="artefact"
        )
    manifest = Manifest.unverified_parse(canonical(payload.manifests[entry.kid]))
    if not hmac.compare_digest(manifest.manifest_digest, entry.manifest_digest):
        raise VerificationError(
            f"the manifest of {entry.kid} is not the one in the enclave config: an older or another version",
            code="manifest-not-admitted",
            stage="admitted",
        )
    return manifest
