"""How a register holds `config_digest`: as it is, zero-padded, or as its one extend. Spec: docs/spec/appraisal.md.

Which register holds it is said by the policy, never by the evidence.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from hashlib import sha256, sha384

from sealwright.errors import SettingsError, VerificationError

DIGEST_BYTES = 32
# `mrenclave`: the policy says which config the measured manifest of an enclave holds.
_AS_IT_IS = frozenset({"config", "host_data", "mrenclave"})
# Software in the guest can set these back at any time (16, 23), or after a late launch (17 to 22): TCG PC Client
# Platform TPM Profile, table of PCR attributes. The registers of a Nitro enclave have these numbers too, and no reset.
_RESETTABLE = frozenset(f"pcr{number}" for number in range(16, 24))
_TPMS = frozenset({"tpm", "vtpm", "az-snp-vtpm", "az-tdx-vtpm", "nitrotpm"})
_PCR, _RTMR = re.compile(r"(?:vtpm\.)?pcr\d{1,2}"), re.compile(r"rtmr[0-3]")


def resettable(platform: str, register: str) -> bool:
    """Say whether what a register held before can be put away: then its one extend says nothing of what runs.

    Args:
        platform: as policies name it, or `nitrotpm`.
        register: behind `vtpm.` the one of a vTPM.
    """
    of_tpm = platform in _TPMS or register.startswith("vtpm.")
    return of_tpm and register.removeprefix("vtpm.") in _RESETTABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigBinding:
    """A register's name and what it holds; `b""` where the evidence does not have it."""

    register: str
    held: bytes

    @property
    def digest(self) -> bytes:
        """The config digest (32 bytes) where it can be read off; empty where it can only be compared."""
        if self.register in _AS_IT_IS:
            return self.held
        return self.held[:DIGEST_BYTES] if self.register == "mrconfigid" else b""

    def check(self, config_digest: bytes, *, code: str = "config-digest-mismatch", stage: str) -> None:
        """Prove that this register was given exactly `config_digest` (32 bytes), and nothing else.

        Raises:
            VerificationError: as `code`.
        """
        if len(config_digest) != DIGEST_BYTES:
            raise ValueError("a config digest has 32 bytes")
        if not hmac.compare_digest(self.held, holding(self.register, config_digest, len(self.held))):
            raise VerificationError("the config is not the one that was measured", code=code, stage=stage)


def holding(register: str, config_digest: bytes, size: int) -> bytes:
    """Return what a register holds that was given exactly `config_digest` (32 bytes).

    Args:
        size: bytes of the register: those of its hash for a PCR.

    Raises:
        SettingsError: `config-register`: no register of that name can hold it.
    """
    if register in _AS_IT_IS:
        return config_digest
    if register == "mrconfigid":
        return config_digest.ljust(48, b"\0")
    if _RTMR.fullmatch(register):
        return sha384(bytes(48) + config_digest.ljust(48, b"\0")).digest()
    if _PCR.fullmatch(register):
        return (sha256 if size == sha256().digest_size else sha384)(bytes(size) + config_digest).digest()
    raise SettingsError(
        f"register {register!r} cannot hold a config digest", code="config-register", stage="policy"
    )


def holds(binding: ConfigBinding, digest: bytes) -> bool:
    """Say whether a register holds init-data's digest, padded with zeros or cut to its size; without any, zeros.

    Args:
        digest: of any length; empty: there is no init-data. Spec: docs/spec/kbs-guest.md, Init-data.
    """
    size = len(binding.held)
    if not size:
        return False
    if not digest or not _PCR.fullmatch(binding.register):
        return hmac.compare_digest(binding.held, digest[:size].ljust(size, b"\0"))
    bank = sha256 if size == sha256().digest_size else sha384
    return hmac.compare_digest(binding.held, bank(bytes(size) + digest[:size].ljust(size, b"\0")).digest())
