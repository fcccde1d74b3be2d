"""The attester of a platform of this machine, and evidence of two sources as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, get_args

from sealwright.attester.azure import AzureAttester
from sealwright.attester.base import STAGE, Attester, BindsConfig, Closes, TakesNotes, check_report_data
from sealwright.attester.gramine import GramineAttester
from sealwright.attester.nsm import NitroAttester
from sealwright.attester.snp import SnpAttester
from sealwright.attester.tdx import TdxAttester
from sealwright.attester.tpm.attester import EVENT_LOG, TpmAttester
from sealwright.errors import UnavailableError
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType, VtpmEvidence

MACHINE_TPM = "/dev/tpmrm0"
TEES: Final[Mapping[str, Callable[[], Attester]]] = MappingProxyType(
    {"snp": SnpAttester, "tdx": TdxAttester, "nitro": NitroAttester, "sgx": GramineAttester}
)
AZURE: Final = ("az-snp-vtpm", "az-tdx-vtpm")
PLATFORMS: Final = (*TEES, "tpm", *AZURE)
_WITH_VTPM = ("snp", "tdx")  # beside which a provider has a virtual TPM


@dataclass(frozen=True, slots=True, kw_only=True)
class AttesterSpec:
    """Which attester quotes come from, as it is told to the process that opens it."""

    platform: PlatformType
    address: str = ""  # of a TPM; empty: the machine's own
    # Those that go into each envelope: certificates of a TPM's attestation key.
    endorsements: tuple[bytes, ...] = ()
    vtpm: bool = False  # quote by the provider's TPM too
    event_log: bool = False  # the firmware's log goes along with the quotes of the machine's own TPM

    @classmethod
    def named(
        cls,
        text: str,
        endorsements: Sequence[bytes] = (),
        *,
        vtpm: bool = False,
        event_log: bool = False,
    ) -> Self:
        """Return what `PLATFORM` or `PLATFORM:ADDRESS` names.

        Raises:
            UnavailableError: `no-attester`: evidence of this platform is not collected here.
            ValueError: an address, endorsements or a vTPM do not go with this platform; the text is for people.
        """
        name, _, address = text.partition(":")
        if name not in PLATFORMS:
            raise _no_attester(name)
        (platform,) = (one for one in get_args(PlatformType) if one == name)
        if vtpm and platform not in _WITH_VTPM:
            raise ValueError(f"a vTPM goes along with {' and '.join(_WITH_VTPM)}")
        if address and platform in TEES and not vtpm:
            raise ValueError("only a TPM has an address")
        if endorsements and platform != "tpm" and not vtpm:
            raise ValueError("endorsements go along with a TPM's attestation key")
        return cls(
            platform=platform,
            address=address,
            endorsements=tuple(endorsements),
            vtpm=vtpm,
            event_log=event_log,
        )

    def to_json(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "platform": self.platform,
            "address": self.address,
            "endorsements": [one.hex() for one in self.endorsements],
            "vtpm": self.vtpm,
            "event_log": self.event_log,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Return what `to_json` returned."""
        endorsements = tuple(map(bytes.fromhex, said["endorsements"]))
        return cls(
            platform=said["platform"],
            address=said["address"],
            endorsements=endorsements,
            vtpm=said["vtpm"],
            event_log=said["event_log"],
        )

    def open(self) -> Attester:
        """Open the attester. A TEE's looks for its interface only when it is asked.

        Raises:
            UnavailableError: `no-attester`; `tee-provider`: the paravisor reports another platform; or its interface
                is not there.
        """
        if self.platform in AZURE:
            return self._azure()
        if self.platform == "tpm":
            return self._tpm()
        make = TEES.get(self.platform)
        if make is None:
            raise _no_attester(self.platform)
        return WithVtpm(make(), self._tpm()) if self.vtpm else make()

    def _tpm(self) -> TpmAttester:
        return TpmAttester.open(
            self.address or MACHINE_TPM, endorsements=self.endorsements, event_log=self._log()
        )

    def _azure(self) -> Attester:
        attester = AzureAttester.open(self.address or MACHINE_TPM, event_log=self._log())
        if attester.platform != self.platform:
            attester.close()
            raise UnavailableError(
                f"the paravisor reports {attester.platform}, not {self.platform}",
                code="tee-provider",
                stage=STAGE,
            )
        return attester

    def _log(self) -> Path | None:
        """Return where the firmware's log is; a machine without one has no such file."""
        wanted = self.event_log and self.address in ("", MACHINE_TPM)
        return EVENT_LOG if wanted and EVENT_LOG.exists() else None


def local_attester(platform: str) -> Attester:
    """Return the attester of `platform` of this machine.

    Raises:
        UnavailableError: as `AttesterSpec.named` and `AttesterSpec.open`.
    """
    return AttesterSpec.named(platform, event_log=True).open()


class WithVtpm:
    """A TEE's evidence and a quote of the provider's virtual TPM over the same report data, in one envelope."""

    def __init__(self, tee: Attester, vtpm: Attester) -> None:
        self._tee = tee
        self._vtpm = vtpm

    @property
    def platform(self) -> PlatformType:
        """The TEE's."""
        return self._tee.platform

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return both over `report_data` (64 bytes). Raises as the two attesters do."""
        check_report_data(report_data)
        quoted = self._vtpm.quote(report_data)
        vtpm = VtpmEvidence(
            evidence=quoted.evidence,
            event_log=quoted.event_log,
            runtime_log=quoted.runtime_log,
            endorsements=quoted.endorsements,
        )
        return self._tee.quote(report_data).model_copy(update={"vtpm": vtpm})

    def close(self) -> None:
        """Let go of what the two hold."""
        for one in (self._tee, self._vtpm):
            if isinstance(one, Closes):
                one.close()

    @property
    def note(self) -> str:
        """What was left out of the TEE's last quote."""
        return self._tee.note if isinstance(self._tee, TakesNotes) else ""

    def bind_config(self, config_digest: bytes) -> None:
        """Put `config_digest` (32 bytes) into the register of each that has one. Raises as the two attesters do."""
        for one in (self._tee, self._vtpm):
            if isinstance(one, BindsConfig):
                one.bind_config(config_digest)

    def describe(self) -> Mapping[str, object]:
        """Return both descriptions."""
        return {**self._tee.describe(), "vtpm": self._vtpm.describe()}


def _no_attester(platform: str) -> UnavailableError:
    return UnavailableError(
        f"evidence of platform {platform!r} is not collected by this command", code="no-attester", stage=STAGE
    )
