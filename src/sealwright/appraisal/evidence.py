"""From an evidence envelope to an appraisal, whatever the platform: the one way broker and client take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from sealwright.appraisal.binding import ConfigBinding
from sealwright.appraisal.nvgpu import GpuRules
from sealwright.appraisal.platform import Appraisal, Rules, appraise
from sealwright.appraisal.policy import PolicyBase
from sealwright.appraisal.rego_engine import Engine
from sealwright.appraisal.vector import worst
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import AppraisalError, AppraisalFailure, CollateralError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.verify.context import Context, WorkCache
from sealwright.verify.evidence import verify_envelope_devices, verify_evidence, verify_vtpm

VTPM = "vtpm."  # before the names of its registers


def appraise_evidence(
    envelope: EvidenceEnvelope,
    rules: PolicyBase,
    *,
    expected_report_data: bytes,
    at: datetime,
    expected_device_nonce: bytes = b"",
    collateral: Endorsements | None = None,
    work: WorkCache | None = None,
    rego: Engine | None = None,
    rules_at: datetime | None = None,
) -> Appraisal:
    """Return what `rules` say of evidence that was proved genuine: the platform's, its vTPM's and its devices'.

    Args:
        expected_report_data: 64 bytes, computed by the caller for its own purpose and nonce.
        at: the caller's time; `rules` must be in force then.
        expected_device_nonce: 32 bytes, `device_nonce`; empty: no device can be fresh.
        collateral: what the caller has beside the envelope's own endorsements.
        work: what the caller keeps between verifications.
        rego: what evaluates Rego, `sealwright.client.rego_process.evaluate_apart`; None: rules that have some refuse.
        rules_at: for recorded evidence: when `rules` have to be in force, if not at `at`.

    Raises:
        EvidenceFormatError, VerificationError, RevokedError, CollateralError: not genuine, or not
            decidable. Failures of appraisal are in the result, see `Appraisal.require`.
    """
    rules_at = at if rules_at is None else rules_at
    rules.check_time(rules_at)
    one = _Appraising(
        envelope=envelope,
        rules=rules,
        report_data=expected_report_data,
        device_nonce=expected_device_nonce,
        context=Context(at=at, work=work),
        rules_at=rules_at,
        collateral=collateral or Endorsements(),
        rego=rego,
    )
    return one.appraise()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Appraising:
    envelope: EvidenceEnvelope
    rules: PolicyBase
    report_data: bytes
    device_nonce: bytes
    context: Context
    rules_at: datetime
    collateral: Endorsements
    rego: Engine | None

    def appraise(self) -> Appraisal:
        own = self._rules(self.envelope.type)
        vtpm = self._rules("vtpm")
        main = self._main(own)
        parts = {**self._vtpm(vtpm, own), **self._devices()}
        failures = [*main.failures, *self._absent(vtpm)]
        failures += [failure for part in parts.values() for failure in part.failures]
        return replace(
            main,
            config=self._config(main, own, vtpm, parts),
            vector=worst([main.vector, *(part.vector for part in parts.values())]),
            failures=tuple(dict.fromkeys(failures)),
            parts=parts,
        )

    def _rules(self, platform: str) -> Rules | None:
        return self.rules.platforms.rules(platform, self.rules_at, engine=self.rego)

    def _gpu_rules(self) -> GpuRules | None:
        gpus = self.rules.platforms.nvgpu
        return None if gpus is None else gpus.prepared("nvgpu", self.rules_at, engine=self.rego)

    def _main(self, own: Rules | None) -> Appraisal:
        try:
            verified = verify_evidence(
                self.envelope,
                expected_report_data=self.report_data,
                context=self.context if own is None else own.context(self.context),
                collateral=self.collateral,
                bound=frozenset() if own is None else own.bound,
            )
        except CollateralError:
            if own is not None:
                raise
            # Nothing says how old its collateral may be, and it would be refused anyhow.
            text = f"the policy does not name platform `{self.envelope.type}`"
            raise AppraisalError([AppraisalFailure(text, code="platform-not-allowed")]) from None
        return appraise(verified, own, require_hardware=self.rules.require_hardware)

    def _vtpm(self, rules: Rules | None, own: Rules | None) -> dict[str, Appraisal]:
        if self.envelope.vtpm is None:
            return {}
        bound = vtpm_bound(rules, own)
        verified = verify_vtpm(
            self.envelope.vtpm,
            expected_report_data=self.report_data,
            context=self.context if rules is None else rules.context(self.context),
            collateral=self.collateral,
            bound=bound,
        )
        # The TEE beside it is what has to be hardware.
        found = appraise(verified, rules, require_hardware=False)
        seen = {claim: value for claim, value in found.vector.items() if claim != "runtime-opaque"}
        return {"vtpm0": replace(found, vector=seen)}

    def _devices(self) -> dict[str, Appraisal]:
        if not self.envelope.devices:
            return {}
        if not self.device_nonce:
            raise VerificationError(
                "nobody says which nonce the devices were to answer",
                code="report-data-mismatch",
                stage="nonce",
            )
        rules = self._gpu_rules()
        devices = verify_envelope_devices(
            self.envelope.devices,
            expected_nonce=self.device_nonce,
            context=self.context if rules is None else rules.context(self.context),
            collateral=self.collateral,
        )
        parts = {
            f"gpu{slot}": appraise(device, rules, require_hardware=False)
            for slot, device in enumerate(devices)
        }
        if rules is not None:
            together = tuple(rules.device_refusals(devices))
            parts["gpu0"] = replace(parts["gpu0"], failures=(*parts["gpu0"].failures, *together))
        return parts

    def _absent(self, vtpm: Rules | None) -> Iterator[AppraisalFailure]:
        if vtpm is not None and self.envelope.vtpm is None:
            text = "the policy asks for the provider's vTPM, and the evidence has none"
            yield AppraisalFailure(text, code="vtpm-missing")
        gpus = self._gpu_rules()
        if gpus is not None and not self.envelope.devices:
            yield from gpus.device_refusals(())

    def _config(
        self, main: Appraisal, own: Rules | None, vtpm: Rules | None, parts: dict[str, Appraisal]
    ) -> ConfigBinding:
        register = "" if own is None else own.config_register
        if not register.startswith(VTPM):
            return main.config
        held = parts["vtpm0"].registers.get(register.removeprefix(VTPM), b"") if "vtpm0" in parts else b""
        # A vTPM that no rules admit vouches for nothing.
        return ConfigBinding(register=register, held=b"" if vtpm is None else held)


def vtpm_bound(rules: Rules | None, own: Rules | None) -> frozenset[str]:
    """Return the registers of a vTPM that need not replay from its event log.

    Args:
        rules: of the vTPM. own: of the platform beside it; its registers of the same names are others.
    """
    found = frozenset() if rules is None else rules.bound
    register = "" if own is None else own.config_register
    return found | {register.removeprefix(VTPM)} if register.startswith(VTPM) else found
