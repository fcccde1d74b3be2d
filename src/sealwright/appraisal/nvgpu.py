"""What a policy says about NVIDIA GPUs and NVSwitches. Spec: docs/spec/nvidia.md, "Rules"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.appraisal.rules import HardwareRules
from sealwright.crypto.document import Digest, Record
from sealwright.errors import AppraisalFailure
from sealwright.evidence.nvgpu import MAX_DEVICES, Architecture
from sealwright.verify.context import Context
from sealwright.verify.nvgpu import VerifiedGpu
from sealwright.verify.nvgpu_devices import topology

GpuMode = Literal["spt", "mpt", "ppcie", "unstated"]
_Driver = Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,3}$")]
_Vbios = Annotated[str, Field(pattern=r"^[0-9A-F]{2}(\.[0-9A-F]{2}){4}$")]
_Count = Annotated[int, Field(ge=0, le=MAX_DEVICES)]
_SWITCH_LOCKED = 1


def _default_modes() -> list[GpuMode]:
    return ["spt"]


class VersionRule(Record):
    """Versions that are allowed: those listed, those from a minimum on, or any, by name."""

    exact: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)
    minimum: Annotated[str, Field(max_length=32)] = ""
    any: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.any == bool(self.exact or self.minimum):
            raise ValueError("name versions, or `any: true`")
        return self

    def allows(self, version: str, *, base: int) -> bool:
        """Say whether `version` is allowed. `base`: of its numbers, 10 or 16."""
        if self.any or version.upper() in {one.upper() for one in self.exact}:
            return True
        return bool(self.minimum and version) and _numbers(version, base) >= _numbers(self.minimum, base)


class DriverRule(VersionRule):
    """GPU driver versions, such as 550.90.07."""

    exact: Annotated[list[_Driver], Field(max_length=64)] = Field(default_factory=list)
    minimum: _Driver | Literal[""] = ""


class VbiosRule(VersionRule):
    """VBIOS or switch BIOS versions, such as 96.00.9F.00.01. A minimum holds for one line of versions (the first two parts)."""

    exact: Annotated[list[_Vbios], Field(max_length=64)] = Field(default_factory=list)
    minimum: _Vbios | Literal[""] = ""

    def allows(self, version: str, *, base: int = 16) -> bool:
        """Say whether `version` is allowed; other lines than the minimum's are not comparable with it."""
        if self.minimum and version.upper()[:5] != self.minimum[:5]:
            return version.upper() in self.exact
        return super().allows(version, base=base)


class CountRule(Record):
    """How many there have to be."""

    minimum: _Count
    maximum: _Count

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.maximum < self.minimum:
            raise ValueError("the maximum is under the minimum")
        return self

    def allows(self, count: int) -> bool:
        """Say whether so many are allowed."""
        return self.minimum <= count <= self.maximum


class SwitchRules(Record):
    """Admits NVSwitches beside the GPUs."""

    count: CountRule
    vbios: VbiosRule
    locked: bool = True  # only switches that say that they are locked
    topology: bool = True  # every GPU sees exactly these switches, every switch exactly these GPUs


class GpuRules(HardwareRules):
    """Admits GPUs, and switches if it has rules for them. What is not named is refused."""

    architectures: Annotated[list[Architecture], Field(min_length=1, max_length=8)]
    driver: DriverRule
    vbios: VbiosRule
    modes: Annotated[list[GpuMode], Field(min_length=1, max_length=4)] = Field(default_factory=_default_modes)
    rims: Annotated[list[Digest], Field(max_length=256)] = Field(
        default_factory=list
    )  # empty: any NVIDIA signed
    # `roots` are of devices. Who signs reference values decides what a device may run, so that is another trust.
    rim_roots: Annotated[list[Digest], Field(max_length=64)] = Field(default_factory=list)
    uncompared: bool = (
        False  # admit a device whose measurements were not compared (needs `outage: nvidia-rim` too)
    )
    count: CountRule = CountRule(minimum=1, maximum=1)
    switches: SwitchRules | None = None

    @model_validator(mode="after")
    def _no_host_rules(self) -> Self:
        # Nothing signs reference values of devices but NVIDIA's RIMs, and no device holds a config.
        if self.reference is not None or self.config_register:
            raise ValueError(
                "devices take neither reference values nor a config register; name their RIMs in `rims`"
            )
        return self

    def context(self, given: Context) -> Context:
        """Return what a verification for these rules assumes; which root may stand where is asked in `refusals`."""
        known = super().context(given)
        return replace(known, roots=known.roots | frozenset(self.rim_roots))

    def refusals(self, verified: VerifiedGpu) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse this one device."""
        if verified.is_switch:
            yield from self._switch_refusals(verified)
        else:
            yield from self._gpu_refusals(verified)
        yield from self._rim_refusals(verified)

    def device_refusals(self, devices: Sequence[VerifiedGpu]) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse these devices together: their number, their wiring. Each one's are apart."""
        switches = sum(device.is_switch for device in devices)
        gpus = len(devices) - switches
        if not self.count.allows(gpus):
            text = f"{gpus} GPUs; the policy admits {self.count.minimum} to {self.count.maximum}"
            yield AppraisalFailure(text, code="device-count-not-allowed")
        if self.switches is None:
            return
        if not self.switches.count.allows(switches):
            allowed = self.switches.count
            text = f"{switches} switches; the policy admits {allowed.minimum} to {allowed.maximum}"
            yield AppraisalFailure(text, code="device-count-not-allowed")
        if self.switches.topology and switches and not topology(devices).closed:
            text = "GPUs and switches do not see exactly each other"
            yield AppraisalFailure(text, code="device-topology")

    def _gpu_refusals(self, verified: VerifiedGpu) -> Iterator[AppraisalFailure]:
        found, opaque = verified.chip.architecture, verified.opaque
        if found not in self.architectures:
            text = f"architecture {found}; the policy admits {', '.join(self.architectures)}"
            yield AppraisalFailure(text, code="architecture-not-allowed")
        if not self.driver.allows(opaque.driver_version, base=10):
            text = f"driver version {opaque.driver_version or 'unknown'} is not one that the policy admits"
            yield AppraisalFailure(text, code="driver-version-not-allowed")
        yield from _vbios_refusals(verified, self.vbios)
        if opaque.mode not in self.modes:
            text = f"GPU mode {opaque.mode or 'unknown'}; the policy admits {', '.join(self.modes)}"
            yield AppraisalFailure(text, code="gpu-mode-not-allowed")

    def _switch_refusals(self, verified: VerifiedGpu) -> Iterator[AppraisalFailure]:
        rules = self.switches
        if rules is None or verified.chip.architecture not in self.architectures:
            text = f"a switch {verified.chip.name}, and the policy admits none"
            yield AppraisalFailure(text, code="architecture-not-allowed")
            return
        yield from _vbios_refusals(verified, rules.vbios)
        if rules.locked and verified.opaque.lock_status != _SWITCH_LOCKED:
            text = f"the switch does not say that it is locked (status {verified.opaque.lock_status})"
            yield AppraisalFailure(text, code="switch-not-locked")

    def _rim_refusals(self, verified: VerifiedGpu) -> Iterator[AppraisalFailure]:
        if not verified.compared and not self.uncompared:
            text = "measurements were not compared with reference values, and the policy does not admit that"
            yield AppraisalFailure(text, code="measurements-not-compared")
        for rim in verified.rims:
            if not rim.vendor_root and rim.root not in self.rim_roots:
                text = f"the {rim.part} RIM ends in root {rim.root.hex()[:16]}…, which the policy does not name in `rim_roots`"
                yield AppraisalFailure(text, code="root-not-allowed")
            if self.rims and rim.digest not in self.rims:
                text = f"the {rim.part} RIM {rim.digest.hex()[:16]}… is not one that the policy lists"
                yield AppraisalFailure(text, code="rim-not-allowed")


def _vbios_refusals(verified: VerifiedGpu, rule: VbiosRule) -> Iterator[AppraisalFailure]:
    if not rule.allows(verified.opaque.vbios_version):
        text = f"VBIOS version {verified.opaque.vbios_version} is not one that the policy admits"
        yield AppraisalFailure(text, code="vbios-version-not-allowed")


def _numbers(version: str, base: int) -> tuple[int, ...]:
    return tuple(int(part, base) for part in version.split("."))
