"""Writing a config disk: all that a guest takes from its host, as one deterministic tar. Spec: docs/spec/guest.md."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sealwright.crypto.canonical import parse_json
from sealwright.enclave.artefacts import EnclavePayload
from sealwright.errors import SettingsError, UnavailableError, VerificationError
from sealwright.image.guest import configdisk
from sealwright.image.guest.network import GuestNetwork
from sealwright.protocol.enclave_config import MAX_CONFIG, EnclaveConfig, TenantList
from sealwright.sealing import read_manifest
from sealwright.sealing.files import io_errors

_WHOLE = 4096  # bytes; disks of any sector size can hold it
_COPY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDisk:
    """What goes onto a config disk."""

    config: bytes  # canonical
    network: GuestNetwork
    payload: EnclavePayload
    artefacts: Mapping[str, Path]  # by kid
    certificates: bytes = b""  # of the TPM's attestation key, PEM

    @classmethod
    def of(
        cls,
        config: bytes,
        network: GuestNetwork,
        lists: Sequence[TenantList],
        artefacts: Mapping[str, Path],
        certificates: bytes = b"",
    ) -> ConfigDisk:
        """Put together what an enclave is given, with the manifest beside each sealed artefact.

        Raises:
            SettingsError: the config or a manifest is not in its format.
            VerificationError: `tenant-list-mismatch`; `artefact-missing`: the lists name other artefacts.
        """
        parsed = EnclaveConfig.parse(config, limit=MAX_CONFIG, error=SettingsError)
        manifests = {
            kid: parse_json(read_manifest(path), error=SettingsError) for kid, path in artefacts.items()
        }
        payload = EnclavePayload(openings=list(lists), manifests=manifests)
        payload.check(parsed)
        wanted = {entry.kid for opened in lists for entry in opened.artefacts}
        if wanted != artefacts.keys():
            raise VerificationError(
                f"the tenant lists name {', '.join(sorted(wanted))}: give exactly these artefacts",
                code="artefact-missing",
                stage="config-disk",
            )
        return cls(
            config=config, network=network, payload=payload, artefacts=artefacts, certificates=certificates
        )

    @property
    def config_digest(self) -> bytes:
        """SHA-256 of the config (32 bytes), which goes into the guest's register."""
        return hashlib.sha256(self.config).digest()

    def write(self, path: Path) -> None:
        """Write the disk; `path` must not exist. The same content gives the same bytes.

        Raises:
            FormatError: `malformed-config-disk`: something is over its limit.
            UnavailableError: `output-failed`: it cannot be written, or an artefact not be read.
        """
        with io_errors("output-failed", f"cannot write {path}"), path.open("xb") as out:
            for name, content in self._small().items():
                _add(out, name, io.BytesIO(content), len(content))
            for kid in sorted(self.artefacts):
                with self.artefacts[kid].open("rb") as sealed:
                    _add(out, configdisk.ARTEFACTS + kid, sealed, os.fstat(sealed.fileno()).st_size)
            out.write(bytes(2 * configdisk.BLOCK))
            out.truncate(-(-out.tell() // _WHOLE) * _WHOLE)

    def _small(self) -> dict[str, bytes]:
        found = {
            configdisk.CONFIG: self.config,
            configdisk.NETWORK: self.network.encode(),
            configdisk.PAYLOAD: self.payload.encode(),
            configdisk.CERTIFICATES: self.certificates,
        }
        return {name: content for name, content in found.items() if content}


def _add(out: BinaryIO, name: str, source: BinaryIO, size: int) -> None:
    configdisk.check_member(name, size)
    out.write(configdisk.header(name, size))
    begins = out.tell()
    shutil.copyfileobj(source, out, _COPY)
    if out.tell() - begins != size:
        raise UnavailableError(f"{name} changed while it was read", code="input-changed", stage="config-disk")
    out.write(configdisk.padding(size))
