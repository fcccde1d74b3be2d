"""Every file of the manifest that is NVIDIA's, with its verdict, at the time it is meant for."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from cryptography import x509
from tests.nvidia import support
from tests.nvidia.support import OUTAGE, RIM_TIME, STALE, bare, check
from tests.vector_files import manifest, vector

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.nvidia_rim import Rim
from sealwright.endorsement.ocsp import OcspAnswer
from sealwright.endorsement.roots import anchors
from sealwright.endorsement.x509 import pem_blocks
from sealwright.errors import CollateralError, EvidenceFormatError, SealwrightError, VerificationError
from sealwright.evidence.nvgpu import parse_devices
from sealwright.verify.context import Context
from sealwright.verify.nvgpu_devices import check_distinct, topology
from sealwright.verify.nvidia_rim import compare, verify_rim
from sealwright.verify.ocsp import check_answer

_SDK = "nvidia/nv-attestation-sdk/"
LISTS = {  # file: devices, architecture, mode, distinct
    f"{_SDK}hopper_evidence.json": (1, "HOPPER", "ppcie", True),
    f"{_SDK}hopper_evidence_cert_hold.json": (1, "HOPPER", "spt", True),
    f"{_SDK}multi_gpu_hopper.json": (4, "HOPPER", "ppcie", True),
    f"{_SDK}multi_switch_ls10.json": (4, "LS10", "unstated", False),  # one switch, four times
    f"{_SDK}switch_evidence_ls10.json": (1, "LS10", "unstated", True),
}
_T = "nvidia/trustee/"
REPORTS = {  # report: chain, driver, VBIOS, padding
    support.HOPPER_REPORT: (support.HOPPER_CHAIN, "550.90.07", "96.00.9F.00.01", 0),
    f"{_T}hopperAttestationReport.txt": (
        f"{_T}hopper_cert_chain_case1.txt",
        "550.90.07",
        "96.00.9F.00.01",
        0,
    ),
    f"{_T}hopper_coco_report1.txt": (f"{_T}hopper_coco_certs1.txt", "580.95.05", "96.00.74.00.1A", 1),
    support.BLACKWELL_REPORT: (support.BLACKWELL_CHAIN, "575.32", "97.00.88.00.0F", 0),
}
CHAINS = {  # chain: the code that refuses it beside the report of case 1, "" if it is whole
    f"{_T}hopper_cert_chain_case1.txt": "",
    f"{_T}hopper_cert_chain_case2.txt": "malformed-chain",  # the root alone: no device certificate
    f"{_T}hopper_cert_chain_case3.txt": "unknown-root",  # the provisioner is missing
    f"{_T}hopper_cert_chain_case4.txt": "malformed-chain",  # the device's own is missing
    f"{_T}hopper_coco_certs1.txt": "bad-signature",  # another device's
    f"{_T}hopper_signing_cert.pem": "unknown-root",  # the device's own alone
    support.HOPPER_CHAIN: "",
    support.BLACKWELL_CHAIN: "bad-signature",  # another device's
}
RIMS = {  # file: version, time at which its signer is valid
    support.DRIVER_RIM: ("550.90.07", RIM_TIME),
    support.VBIOS_RIM: ("96.00.9F.00.01", RIM_TIME),
    "nvidia/nvtrust/1010_0200_882_96005E0001_PROD.swidtag": (
        "96.00.5E.00.01",
        datetime(2024, 1, 1, tzinfo=UTC),
    ),
    "nvidia/nvtrust/1010_0200_882_96005E0001_test_no_gpu.swidtag": (
        "96.00.5E.00.01",
        datetime(2024, 1, 1, tzinfo=UTC),
    ),
    "nvidia/nvtrust/1010_0200_882_960074001A_PROD.swidtag": (
        "96.00.74.00.1A",
        datetime(2024, 1, 1, tzinfo=UTC),
    ),
    "nvidia/nvtrust/Driver_RIM_test_no_gpu.swidtag": ("545.00", datetime(2024, 1, 1, tzinfo=UTC)),
}
CLAIMS = f"{_T}hopperAttestationReport-claims.txt"


def test_no_row_of_the_manifest_is_left_out() -> None:
    here = {*LISTS, *REPORTS, *CHAINS, *RIMS, *support.OCSP, CLAIMS}
    rows = [row["file"] for row in manifest("nvidia")]
    if not rows:
        pytest.skip("vectors not here: MANIFEST.tsv (set SEALWRIGHT_VECTORS to their folder)")
    assert set(rows) == here


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_the_sdk_is_genuine(name: str) -> None:
    number, architecture, mode, distinct = LISTS[name]
    devices = [
        check(one, Endorsements(), Context(at=RIM_TIME, outage=OUTAGE)) for one in parse_devices(vector(name))
    ]
    assert [one.chip.architecture for one in devices] == [architecture] * number
    assert {one.opaque.mode for one in devices} == {mode}
    assert all(
        one.vendor_root and not one.compared and one.facts["measurements"] == "not-compared"
        for one in devices
    )
    if distinct:
        check_distinct(devices)
    else:
        with pytest.raises(VerificationError) as refused:
            check_distinct(devices)
        assert (refused.value.code, refused.value.stage) == ("duplicate-device", "devices")


@pytest.mark.parametrize("name", LISTS)
def test_it_is_refused_without_revocation_status_and_without_reference_values(name: str) -> None:
    evidence = parse_devices(vector(name))[0]
    for outage, kind in (({}, "nvidia-ocsp"), ({"nvidia-ocsp": OUTAGE["nvidia-ocsp"]}, "nvidia-rim")):
        with pytest.raises(CollateralError, match=kind) as refused:
            check(evidence, Endorsements(), Context(at=RIM_TIME, outage=outage))
        assert refused.value.code == "collateral-missing"


@pytest.mark.parametrize("name", REPORTS)
def test_a_bare_report_is_genuine_with_its_chain(name: str) -> None:
    chain, driver, vbios, padding = REPORTS[name]
    found = check(*bare(name, chain), Context(at=RIM_TIME, outage=OUTAGE))
    assert (found.opaque.driver_version, found.opaque.vbios_version) == (driver, vbios)
    assert found.facts["padding"] == padding
    assert found.platform == "nvgpu"
    assert len(found.registers) == 64
    assert "measurements were not compared: no RIM" in found.not_proved


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain(name: str) -> None:
    evidence, endorsements = bare(support.HOPPER_REPORT, name)
    if not CHAINS[name]:
        assert check(evidence, endorsements, Context(at=RIM_TIME, outage=OUTAGE)).chip.name == "GH100"
        return
    with pytest.raises(SealwrightError) as refused:
        check(evidence, endorsements, Context(at=RIM_TIME, outage=OUTAGE))
    assert refused.value.code == CHAINS[name]


def test_the_claims_that_trustee_reads_are_the_ones_read_here() -> None:
    said = json.loads(vector(CLAIMS))
    found = check(*bare(support.HOPPER_REPORT, support.HOPPER_CHAIN), Context(at=RIM_TIME, outage=OUTAGE))
    config = said["config"]
    assert said["arch"].upper() == found.chip.architecture
    for name in ("driver_version", "board_id", "chip_sku", "project", "project_sku", "fwid"):
        assert found.facts[name] == config[name], name


def test_a_hopper_with_its_rims_and_ocsp_responses_is_genuine_and_matches() -> None:
    evidence, chain = bare(support.HOPPER_REPORT, support.HOPPER_CHAIN)
    rest = Endorsements.detect([vector(support.DRIVER_RIM), vector(support.VBIOS_RIM), *support.ocsp()])
    # The device's responses are two months older than the RIMs': an outage policy has to admit that.
    found = check(evidence, chain + rest, Context(at=RIM_TIME, outage=STALE))
    assert found.compared
    assert found.mismatches == ()
    assert found.facts["measurements"] == "match"
    assert [one.code for one in found.conditions] == ["debug-unstated"]
    assert [rim.vendor_root for rim in found.rims] == [True, True]
    assert {use.kind for use in found.collateral} == {"nvidia-ocsp", "nvidia-rim"}
    assert sum(use.stale_s > 0 for use in found.collateral) == 3
    with pytest.raises(CollateralError) as refused:
        check(evidence, chain + rest, Context(at=RIM_TIME))
    assert refused.value.code == "collateral-stale"


def test_it_does_not_match_the_rim_of_another_firmware() -> None:
    evidence, chain = bare(f"{_T}hopper_coco_report1.txt", f"{_T}hopper_coco_certs1.txt")
    older = Endorsements.detect([vector("nvidia/nvtrust/1010_0200_882_960074001A_PROD.swidtag")])
    at = datetime(2025, 1, 1, tzinfo=UTC)
    # Its driver's RIM is not public, so nothing is compared; its VBIOS RIM is found and verified.
    found = check(evidence, chain + older, Context(at=at, outage=OUTAGE))
    assert not found.compared
    with pytest.raises(VerificationError) as refused:
        check(
            evidence, chain + older, Context(at=RIM_TIME, outage=OUTAGE)
        )  # its signer's certificate has ended
    assert (refused.value.stage, refused.value.code) == ("rim", "certificate-expired")


@pytest.mark.parametrize("name", RIMS)
def test_a_rim_is_genuine_at_its_time(name: str) -> None:
    version, at = RIMS[name]
    rim = Rim.parse(vector(name))
    part = "vbios" if version.startswith("96.") else "driver"
    answers = support.ocsp() if at == RIM_TIME else ()  # of older manifests none are public
    verified = verify_rim(rim, part, answers, Context(at=at, outage={} if answers else OUTAGE))
    assert (rim.name, rim.colloquial_version) == ("GH100", version)
    assert verified.vendor_root
    with pytest.raises(VerificationError) as refused:
        verify_rim(rim, part, (), Context(at=datetime(2035, 1, 1, tzinfo=UTC), outage=OUTAGE))
    assert refused.value.code == "certificate-expired"


def test_a_real_report_that_does_not_match_its_manifest() -> None:
    """Its VBIOS measurement 9 differs from the RIM published in nvtrust, as others saw too (NVIDIA/nvtrust#90)."""
    evidence, _ = bare(f"{_T}hopper_coco_report1.txt", f"{_T}hopper_coco_certs1.txt")
    at = datetime(2025, 1, 1, tzinfo=UTC)

    def mismatches(name: str, when: datetime) -> list[int]:
        rim = verify_rim(Rim.parse(vector(name)), "vbios", (), Context(at=when, outage=OUTAGE))
        return [one.index for one in compare(evidence.report.measurements, [rim], nvdec0_enabled=False)]

    assert mismatches("nvidia/nvtrust/1010_0200_882_960074001A_PROD.swidtag", at) == [9]
    assert mismatches(support.VBIOS_RIM, RIM_TIME) == [1, 2, 11]  # another version's


def test_two_manifests_of_nvidia_for_one_version_differ() -> None:
    """Why `rims` can be listed in a policy: whoever brings the RIM chooses between these two."""
    production, other = (Rim.parse(vector(name)) for name in list(RIMS)[2:4])
    assert (production.tag_id, production.colloquial_version) == (other.tag_id, other.colloquial_version)
    assert production.measurements != other.measurements


def _issuers() -> list[tuple[x509.Certificate, x509.Certificate]]:
    blobs = [vector(support.HOPPER_CHAIN)]
    chains = [list(Endorsements.detect(blobs).certificates)]
    chains += [list(Rim.parse(vector(name)).certificates) for name in (support.DRIVER_RIM, support.VBIOS_RIM)]
    return [(one, above) for chain in chains for one, above in pairwise(chain)]


@pytest.mark.parametrize("name", support.OCSP)
def test_an_ocsp_response_is_genuine_when_it_was_made(name: str) -> None:
    answer = OcspAnswer.parse(base64.b64decode(vector(name)))
    at = answer.response.produced_at_utc
    found = [
        check_answer(answer, one, issuer, kind="nvidia-ocsp", context=Context(at=at), stage="ocsp", fix="")
        for one, issuer in _issuers()
        if one.serial_number == answer.response.serial_number
    ]
    assert found
    assert all((use.age_s, use.stale_s, held) == (0, 0, False) for use, held in found)


def test_the_pinned_roots_are_the_ones_in_the_chains() -> None:
    (device,) = anchors("nvidia")
    (rim,) = anchors("nvidia-rim")
    names = {
        device: ("nvidia/nvidia_device_root.pem", *_verifiers("device")),
        rim: _verifiers("RIM"),
    }
    for root, files in names.items():
        for name in files:
            ((_, der),) = pem_blocks(vector(f"roots/{name}"))
            assert x509.load_der_x509_certificate(der) == root


def _verifiers(kind: str) -> tuple[str, ...]:
    return (
        f"nvidia-nvtrust/verifier__certs__verifier_{kind}_root.pem",
        f"nvidia-nvtrust/nv_switch_verifier__certs__verifier_{kind}_root.pem",
    )


def test_a_real_machine_of_eight_gpus_and_four_switches_is_closed() -> None:
    """The manifest does not have it yet: google/go-nvattest-tools, testing/testdata/test_ppcie_data.json."""
    said = json.loads(vector("nvidia/go-nvattest/testdata__test_ppcie_data.json"))
    gpus = [
        _sdk(one["AttestationReport"], one["CertificateChains"]["GpuAttestationCertificateChain"], "HOPPER")
        for one in said["gpus"]
    ]
    switches = [
        _sdk(one["attestation_report"], one["attestation_cert_chain"], "LS10") for one in said["nvswitches"]
    ]
    devices = [
        check(one, Endorsements(), Context(at=RIM_TIME, outage=OUTAGE))
        for one in parse_devices(json.dumps(gpus + switches).encode())
    ]
    check_distinct(devices)
    assert topology(devices).closed


def _sdk(report: dict[str, str], chain: list[dict[str, str]], arch: str) -> dict[str, str]:
    pem = b"".join(base64.b64decode(one["pem"]) for one in chain)
    raw = base64.b64decode(report["py/b64"])
    return {
        "arch": arch,
        "nonce": raw[4:36].hex(),
        "evidence": base64.b64encode(raw).decode(),
        "certificate": base64.b64encode(pem).decode(),
    }


def test_a_file_that_is_no_evidence_is_refused_as_such() -> None:
    with pytest.raises(EvidenceFormatError):
        parse_devices(vector(CLAIMS))
