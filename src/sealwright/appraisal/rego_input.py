"""Verified evidence in the layout in which Trustee gives it to its policies. The table is in docs/spec/rego.md.

Only what was verified is given. What Trustee has and we have not is left out, so that rules which ask for it are undefined.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from sealwright.crypto.encoding import rfc3339
from sealwright.evidence.snp import SnpReport
from sealwright.verify.dcap import VerifiedDcap
from sealwright.verify.nvgpu import VerifiedGpu
from sealwright.verify.sgx import VerifiedSgx
from sealwright.verify.snp import VerifiedSnp
from sealwright.verify.tdx import VerifiedTdx
from sealwright.verify.verified import Verified

Json = dict[str, Any]
V = TypeVar("V", bound=Verified)
_INIT_DATA_PCR = "pcr8"
_TD_ATTRIBUTES = MappingProxyType(
    {"debug": 0, "septve_disable": 28, "protection_keys": 30, "key_locker": 31, "perfmon": 63}
)


def input_document(verified: Verified) -> Json:
    """Return `input`: what Trustee gives for this platform, and everything verified under `sealwright`."""
    given = _PLATFORMS.get(verified.platform)
    return {
        **({} if given is None else given(verified)),
        "sealwright": {
            "platform": verified.platform,
            "vendor_root": verified.vendor_root,
            "root": verified.root.hex(),
            "conditions": [condition.code for condition in verified.conditions],
            "registers": {name: value.hex() for name, value in verified.registers.items()},
            "facts": _plain(verified.facts),
        },
    }


def _plain(value: Any) -> Any:
    """Return a fact as lists and dicts."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _snp(verified: Any) -> Json:
    report = _typed(verified, VerifiedSnp).report
    found = {**_snp_numbers(report), "measurement": report.measurement.hex(), "chip_id": report.chip_id.hex()}
    return {"snp": found, "report_data": report.report_data.hex(), "init_data": report.host_data.hex()}


def _snp_numbers(report: SnpReport) -> Json:
    policy, platform, tcb = report.policy, report.platform_info, report.reported_tcb
    return {
        "policy_abi_major": policy.abi[0],
        "policy_abi_minor": policy.abi[1],
        "policy_smt_allowed": policy.has("smt"),
        "policy_migrate_ma": policy.has("migrate_ma"),
        "policy_debug_allowed": policy.has("debug"),
        "policy_single_socket": policy.has("single_socket"),
        "reported_tcb_bootloader": tcb.boot_loader,
        "reported_tcb_tee": tcb.tee,
        "reported_tcb_snp": tcb.snp,
        "reported_tcb_microcode": tcb.microcode,
        "platform_tsme_enabled": platform.has("tsme_en"),
        "platform_smt_enabled": platform.has("smt_en"),
    }


def _tdx(verified: Any) -> Json:
    claims = _tdx_claims(_typed(verified, VerifiedTdx))
    report = verified.quote.report
    return {"tdx": claims, "report_data": report.report_data.hex(), "init_data": report.mr_config_id.hex()}


def _tdx_claims(verified: VerifiedTdx) -> Json:
    report, header = verified.quote.report, verified.header
    attributes = int.from_bytes(report.td_attributes, "little")
    body = {
        "tcb_svn": report.tee_tcb_svn.hex(),
        "mr_seam": report.mr_seam.hex(),
        "mrsigner_seam": report.mr_signer_seam.hex(),
        "seam_attributes": report.seam_attributes.hex(),
        "td_attributes": report.td_attributes.hex(),
        "xfam": report.xfam.hex(),
        "mr_td": report.mr_td.hex(),
        "mr_config_id": report.mr_config_id.hex(),
        "mr_owner": report.mr_owner.hex(),
        "mr_owner_config": report.mr_owner_config.hex(),
        **{f"rtmr_{number}": value.hex() for number, value in enumerate(report.rt_mr)},
        "report_data": report.report_data.hex(),
    }
    if report.tee_tcb_svn_2 is not None and report.mr_servicetd is not None:
        body |= {"tee_tcb_svn2": report.tee_tcb_svn_2.hex(), "mr_servicetd": report.mr_servicetd.hex()}
    head = {
        "version": _little(header.version, 2),
        "att_key_type": _little(header.att_key_type, 2),
        "tee_type": _little(header.tee_type, 4),
        "vendor_id": header.qe_vendor_id.hex(),
        "user_data": header.user_data.hex(),
    }
    bits = {name: bool(attributes >> bit & 1) for name, bit in _TD_ATTRIBUTES.items()}
    return {"quote": {"header": head, "body": body}, "td_attributes": bits, **_dcap(verified)}


def _sgx(verified: Any) -> Json:
    report, header = _typed(verified, VerifiedSgx).quote.report, verified.header
    body = {
        "cpu_svn": report.cpu_svn.hex(),
        "misc_select": _little(report.misc_select, 4),
        "isv_ext_prod_id": report.isv_ext_prod_id.hex(),
        "attributes.flags": report.attributes[:8].hex(),
        "attributes.xfrm": report.attributes[8:].hex(),
        "mr_enclave": report.mr_enclave.hex(),
        "mr_signer": report.mr_signer.hex(),
        "config_id": report.config_id.hex(),
        "isv_prod_id": _little(report.isv_prod_id, 2),
        "isv_svn": _little(report.isv_svn, 2),
        "config_svn": _little(report.config_svn, 2),
        "isv_family_id": report.isv_family_id.hex(),
        "report_data": report.report_data.hex(),
    }
    head = {
        "version": _little(header.version, 2),
        "att_key_type": _little(header.att_key_type, 2),
        "vendor_id": header.qe_vendor_id.hex(),
        "user_data": header.user_data.hex(),
    }
    claims = {"header": head, "body": body, **_dcap(verified)}
    return {"sgx": claims, "report_data": report.report_data.hex(), "init_data": report.config_id.hex()}


def _dcap(verified: VerifiedDcap) -> Json:
    tcb, pck = verified.tcb, verified.pck
    current = all(use.digest and not use.stale_s for use in verified.collateral)
    found: Json = {
        "tcb_status": tcb.status,
        "advisory_ids": list(tcb.advisory_ids),
        "tcb_eval_num": verified.tcb_evaluation_data_number,
        "collateral_expiration_status": "0" if current else "1",
        "platform_provider_id": pck.ppid.hex(),
        "is_dynamic_platform": pck.dynamic_platform,
        "is_cached_keys": pck.cached_keys,
        "is_smt_enabled": pck.smt_enabled,
        "platform_instance_id": None if pck.platform_instance_id is None else pck.platform_instance_id.hex(),
        "tcb_date": None if tcb.tcb_date is None else rfc3339(tcb.tcb_date),
    }
    return {name: value for name, value in found.items() if value is not None}


def _azure(verified: Any) -> Json:
    hardware = verified.hardware
    snp = verified.platform == "az-snp-vtpm"
    claims = _azure_snp(_typed(hardware, VerifiedSnp).report) if snp else _tdx_claims(hardware)
    return {verified.platform: {**claims, "tpm": _pcrs(verified)}, **_tpm_data(verified)}


def _azure_snp(report: SnpReport) -> Json:
    """Return them as that verifier of Trustee writes them: all text, the measurement in base64."""
    texts = {name: str(value).lower() for name, value in _snp_numbers(report).items()}
    return texts | {"measurement": base64.b64encode(report.measurement).decode()}


def _tpm(verified: Verified) -> Json:
    return {"tpm": _pcrs(verified), **_tpm_data(verified)}


def _tpm_data(verified: Verified) -> Json:
    init_data = verified.registers.get(_INIT_DATA_PCR)
    found = {"report_data": verified.report_data.hex()}
    return found if init_data is None else found | {"init_data": init_data.hex()}


def _pcrs(verified: Verified) -> Json:
    pcrs = {name[3:]: value for name, value in verified.registers.items() if name.startswith("pcr")}
    return {f"pcr{number:0>2}": value.hex() for number, value in pcrs.items() if len(value) == 32}


def _nvidia(verified: Any) -> Json:
    """Return the claims of NVIDIA's service (version 3) that stand for something that was checked here."""
    device = _typed(verified, VerifiedGpu)
    codes = {condition.code for condition in device.conditions}
    kind, bios = ("switch", "switch-bios") if device.is_switch else ("gpu", "gpu-vbios")
    claims = {
        "hwmodel": device.chip.name,
        "measres": "success" if device.compared and not device.mismatches else "fail",
        "secboot": "debug" not in codes,
        f"x-nvidia-{kind}-arch-check": True,
        f"x-nvidia-{kind}-attestation-report-parsed": True,
        f"x-nvidia-{kind}-attestation-report-nonce-match": True,
        f"x-nvidia-{kind}-attestation-report-signature-verified": True,
        f"x-nvidia-{kind}-attestation-report-cert-chain-fwid-match": True,
        f"x-nvidia-{kind}-attestation-report-cert-chain": _certificates(held=not _answered(device)),
        f"x-nvidia-{bios}-version": device.opaque.vbios_version,
        **_rim_claims(device, bios),
    }
    if not codes & {"debug-unstated", "confidential-mode-off"}:
        claims["dbgstat"] = "enabled" if "debug" in codes else "disabled"
    if not device.is_switch:
        claims["x-nvidia-gpu-driver-version"] = device.opaque.driver_version
    return {"nvidia": claims, "report_data": device.report_data.hex()}


def _answered(device: VerifiedGpu) -> bool:
    """Say whether OCSP answered `good` for the whole chain; a certificate on hold did not."""
    uses = [use for use in device.collateral if use.kind == "nvidia-ocsp"]
    held = any(
        one.code == "certificate-hold" and one.claim == "instance-identity" for one in device.conditions
    )
    return bool(uses) and all(use.digest for use in uses) and not held


def _rim_claims(device: VerifiedGpu, bios: str) -> Json:
    found: Json = {}
    rims = {str(rim.part): rim for rim in device.rims} if device.compared else {}
    for part, name in (("driver", "gpu-driver"), ("vbios", bios)):
        if part == "driver" and device.is_switch:
            continue
        rim = rims.get(part)
        for said in (
            "fetched",
            "schema-validated",
            "signature-verified",
            "version-match",
            "measurements-available",
        ):
            found[f"x-nvidia-{name}-rim-{said}"] = rim is not None
        if rim is not None:
            found[f"x-nvidia-{name}-rim-cert-chain"] = _certificates(
                held=bool(rim.held) or not all(use.digest for use in rim.uses)
            )
    return found


def _certificates(*, held: bool) -> Json:
    status = {"x-nvidia-cert-status": "valid"}
    return status if held else status | {"x-nvidia-cert-ocsp-status": "good"}


def _little(value: int, length: int) -> str:
    return value.to_bytes(length, "little").hex()


def _typed(verified: Any, kind: type[V]) -> V:
    if not isinstance(verified, kind):
        raise TypeError(f"platform {verified.platform} without its own type")
    return verified


_PLATFORMS: Mapping[str, Callable[[Any], Json]] = MappingProxyType(
    {
        "snp": _snp,
        "tdx": _tdx,
        "sgx": _sgx,
        "tpm": _tpm,
        "az-snp-vtpm": _azure,
        "az-tdx-vtpm": _azure,
        "nvgpu": _nvidia,
        "nvswitch": _nvidia,
    }
)
