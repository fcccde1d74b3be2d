"""Real reports, certificates and CRLs: every file of the manifest, with its verdict at the time it is meant for."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.snp.support import (
    NO_CRL,
    OLD_CRL,
    amd_crls,
    endorsements_in,
    refused,
    report_in,
    verify,
)
from tests.vector_files import manifest, vector

from sealwright.endorsement.amd import VekCertificate, veks
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import (
    CollateralError,
    EvidenceFormatError,
    SealwrightError,
    VerificationError,
)
from sealwright.evidence.snp import SnpReport
from sealwright.verify.context import Tolerance, WorkCache

SUMMER = datetime(2025, 8, 1, tzinfo=UTC)  # AMD's own CRLs of Milan and Genoa are current
SPRING = datetime(2026, 3, 1, tzinfo=UTC)  # Milan's is


@dataclass(frozen=True)
class Case:
    """A genuine report: where its key's certificate lies, when it is meant for, what it is."""

    vek: str
    product: str
    version: int
    at: datetime
    conditions: tuple[str, ...] = ()
    key: str = "vcek"
    vmpl: int = 0
    outage: Any = field(default_factory=dict)


_MILAN = Case(
    "attestation-rs/test_data__snp__test-vcek.der", "Milan", 2, SUMMER, conditions=("provisional-firmware",)
)
_VLEK = Case(
    "attestation-rs/test_data__snp__test-vlek.der", "Milan", 3, SUMMER, ("provisional-firmware",), "vlek", 1
)
_GENOA_V5 = Case("attestation-rs/test_data__snp__live-vcek-genoa.der", "Genoa", 5, SPRING, outage=OLD_CRL)
_MS_MILAN = Case("ms-tee-av/tests__test_data__milan_vcek.pem", "Milan", 3, SPRING)

GENUINE = {
    "attestation-rs/test_data__snp__live-evidence-genoa.json": Case(
        "attestation-rs/test_data__snp__live-evidence-genoa.json", "Genoa", 5, SPRING, outage=OLD_CRL
    ),
    "attestation-rs/test_data__snp__live-report-v5-genoa.bin": _GENOA_V5,
    "attestation-rs/test_data__snp__test-report.bin": _MILAN,
    "attestation-rs/test_data__snp__test-vlek-report.bin": _VLEK,
    "go-sev-guest/verify__testdata__attestation.bin": Case(
        "go-sev-guest/verify__testdata__vcek.testcer", "Milan", 2, SUMMER, ("debug",)
    ),
    "ms-sidecar/snp_report.bin": Case("ms-sidecar/uvm_host_amd_certificate.pem", "Milan", 2, SUMMER),
    "ms-tee-av/src__crypto__test_data__milan_attestation_report.bin": _MS_MILAN,
    "ms-tee-av/tests__test_data__genoa_attestation_report.bin": Case(
        "ms-tee-av/tests__test_data__genoa_vcek.pem", "Genoa", 3, SPRING, outage=OLD_CRL
    ),
    "ms-tee-av/tests__test_data__milan_attestation_report.bin": _MS_MILAN,
    "ms-tee-av/tests__test_data__turin_attestation_report.bin": Case(
        "ms-tee-av/tests__test_data__turin_vcek.pem", "Turin", 5, SPRING, outage=NO_CRL
    ),
    "openpcc/azure_sevsnp_report.txt": Case("openpcc/sev_certificates.txt", "Genoa", 3, SUMMER),
    "trustee/test-report.bin": _MILAN,
    "trustee/test-vlek-report.bin": _VLEK,
    "virtee-sev/report_milan.hex": Case("virtee-sev/vcek_milan.der", "Milan", 2, SUMMER),
}
# Of TEE tpm in the manifest: the report in an HCL report of Azure.
HCL = {
    "tpm/trustee-az/test_data__az-snp-vtpm__hcl-report.bin": "tpm/trustee-az/test_data__az-snp-vtpm__vcek.pem",
    "tpm/azure-cvm-tooling/hcl-report-snp.bin": None,  # its certificate is not there
}
CERTIFICATES = {
    "attestation-rs/test_data__snp__live-vcek-genoa.der": "Genoa",
    "attestation-rs/test_data__snp__test-vcek.der": "Milan",
    "attestation-rs/test_data__snp__test-vlek.der": "Milan",
    "go-sev-guest/verify__testdata__vcek.testcer": "Milan",
    "ms-sidecar/uvm_host_amd_certificate.json": "Milan",
    "ms-sidecar/uvm_host_amd_certificate.pem": "Milan",
    "ms-tee-av/src__crypto__test_data__genoa_vcek.pem": "Genoa",
    "ms-tee-av/src__crypto__test_data__milan_vcek.pem": "Milan",
    "ms-tee-av/tests__test_data__genoa_vcek.pem": "Genoa",
    "ms-tee-av/tests__test_data__milan_vcek.pem": "Milan",
    "ms-tee-av/tests__test_data__turin_vcek.pem": "Turin",
    "openpcc/sev_certificates.txt": "Genoa",
    "trustee/test-vcek.der": "Milan",
    "trustee/test-vlek.der": "Milan",
    "virtee-sev/vcek_milan.der": "Milan",
    "virtee-sev/vcek_turin.der": "Turin",
}
ABOVE = (  # certificates above the key, as AMD serves them
    "go-sev-guest/verify__testdata__milan.testcer",
    "go-sev-guest/verify__testdata__milanvlek.testcer",
    "ms-tee-av/src__crypto__test_data__milan_ark.pem",
    "ms-tee-av/src__crypto__test_data__milan_ask.pem",
    "ms-tee-av/tests__test_data__genoa_ask.pem",
    "ms-tee-av/tests__test_data__milan_ask.pem",
    "ms-tee-av/tests__test_data__turin_ask.pem",
    "virtee-sev/cert_chain_milan",
    "virtee-sev/cert_chain_turin",
)
FORGED = (
    "attestation-rs/test_data__snp__test-vcek-invalid-legacy.der",
    "attestation-rs/test_data__snp__test-vcek-invalid-new.der",
    "trustee/test-vcek-invalid-legacy.der",
    "trustee/test-vcek-invalid-new.der",
)
OTHER = (
    "ms-sidecar/body.uvm_reference_info.bin",  # a COSE document of Azure's, no evidence of SNP
    "openpcc/gce_sevsnp_report.txt",  # version 4; its certificate is not there
)


def _verify(name: str, case: Case, **options: Any) -> Any:
    endorsements = [*endorsements_in(f"sev-snp/{case.vek}"), *amd_crls()]
    options = {"at": case.at, "data": None, "outage": case.outage} | options
    return verify(report_in(f"sev-snp/{name}"), endorsements, **options)


def test_every_file_of_the_manifest_has_a_test() -> None:
    here = {f"sev-snp/{name}" for name in (*GENUINE, *CERTIFICATES, *ABOVE, *FORGED, *OTHER)}
    listed = {row["file"] for row in manifest("sev-snp")}
    if not listed:
        pytest.skip("vectors not here: MANIFEST.tsv")
    assert listed == here


@pytest.mark.parametrize("name", GENUINE)
def test_genuine_report(name: str) -> None:
    case = GENUINE[name]
    verified = _verify(name, case)
    report = verified.report
    assert (report.version, verified.product, verified.signing_key, report.vmpl) == (
        case.version,
        case.product,
        case.key,
        case.vmpl,
    )
    assert tuple(condition.code for condition in verified.conditions) == case.conditions
    assert verified.vendor_root
    assert verified.registers["measurement"] == report.measurement
    (used,) = verified.collateral
    assert (used.kind, bool(used.digest), used.stale_s > 0) == (
        "amd-crl",
        case.outage is not NO_CRL,
        case.outage is OLD_CRL,
    )
    assert SnpReport.parse(report.encode()) == report


def test_report_of_a_chip_says_which_one() -> None:
    turin = _verify(
        "ms-tee-av/tests__test_data__turin_attestation_report.bin",
        GENUINE["ms-tee-av/tests__test_data__turin_attestation_report.bin"],
    )
    assert turin.chip_id == bytes.fromhex("59790fb1c39f35c1")
    assert (turin.report.reported_tcb.fmc, turin.report.launch_mit_vector) == (1, 0x3F)
    assert turin.report.platform_info.has("iommu_write_safe")
    milan = _verify("trustee/test-report.bin", _MILAN)
    assert (milan.chip_id, milan.report.reported_tcb.fmc, milan.report.launch_mit_vector) == (
        milan.report.chip_id,
        None,
        None,
    )


def test_report_by_a_vlek_says_which_cloud_and_no_chip() -> None:
    verified = _verify("trustee/test-vlek-report.bin", _VLEK)
    assert (verified.csp_id, verified.chip_id) == ("CN=cc-us-east-2.amazonaws.com", None)
    assert any("which machine" in sentence for sentence in verified.not_proved)


def test_vlek_expires() -> None:
    with refused("chain", "certificate-expired", VerificationError):
        _verify("trustee/test-vlek-report.bin", _VLEK, at=datetime(2026, 1, 1, tzinfo=UTC))


def test_report_in_an_azure_hcl_report() -> None:
    for name, vek in HCL.items():
        raw = report_in(name)
        assert SnpReport.parse(raw).version == 2
        if vek is not None:
            assert verify(raw, [vector(vek), *amd_crls()], at=SUMMER, data=None).product == "Milan"


def test_report_of_version_4_is_read() -> None:
    report = SnpReport.parse(report_in("sev-snp/openpcc/gce_sevsnp_report.txt"))
    assert (report.version, report.product, report.current_mit_vector) == (4, "Milan", None)
    with refused("key", "vek-missing", CollateralError):
        verify(report.encode(), [], data=None)


def test_what_is_no_evidence_is_no_report_and_no_endorsement() -> None:
    raw = vector("sev-snp/ms-sidecar/body.uvm_reference_info.bin")
    with refused("parse", "wrong-length", EvidenceFormatError):
        SnpReport.parse(raw)
    with refused("parse", "unknown-endorsement", EvidenceFormatError):
        Endorsements.detect([raw])


@pytest.mark.parametrize("name", CERTIFICATES)
def test_certificate_of_a_key(name: str) -> None:
    endorsements = Endorsements.detect(endorsements_in(f"sev-snp/{name}"))
    kind = "vlek" if "vlek" in name else "vcek"
    (leaf,) = veks(endorsements, kind)
    vek = VekCertificate.parse(leaf, kind)
    assert vek.product == CERTIFICATES[name]
    assert len(vek.hwid or b"") == (0 if kind == "vlek" else 8 if vek.product == "Turin" else 64)
    with refused("parse", "malformed-vek", EvidenceFormatError):
        VekCertificate.parse(leaf, "vcek" if kind == "vlek" else "vlek")


@pytest.mark.parametrize("name", ABOVE)
def test_certificates_above_the_key(name: str) -> None:
    """They are read, are no key's certificate, and change nothing: roots and ASKs are known already."""
    raw = vector(f"sev-snp/{name}")
    endorsements = Endorsements.detect([raw])
    assert 1 <= len(endorsements.certificates) <= 2
    assert not veks(endorsements, "vcek") + veks(endorsements, "vlek")
    vek = endorsements_in(f"sev-snp/{_MILAN.vek}")
    assert verify(
        report_in("sev-snp/trustee/test-report.bin"), [raw, *vek, *amd_crls()], at=SUMMER, data=None
    ).vendor_root


@pytest.mark.parametrize("name", FORGED)
def test_forged_certificate(name: str) -> None:
    raw = report_in("sev-snp/trustee/test-report.bin")
    with refused("chain", "bad-certificate", VerificationError):
        verify(raw, [vector(f"sev-snp/{name}"), *amd_crls()], at=SUMMER, data=None)


def test_certificate_that_fits_is_found_among_many() -> None:
    all_veks = [blob for name in (*CERTIFICATES, *FORGED) for blob in endorsements_in(f"sev-snp/{name}")]
    bag = [*all_veks, *amd_crls()]
    for name, case in GENUINE.items():
        verified = verify(report_in(f"sev-snp/{name}"), bag, at=case.at, data=None, outage=case.outage)
        assert verified.product == case.product


def test_certificate_of_another_chip_or_tcb() -> None:
    raw = report_in("sev-snp/trustee/test-report.bin")
    other_chip = vector("sev-snp/virtee-sev/vcek_milan.der")  # of the same TCB
    with refused("chip", "chip-mismatch", VerificationError):
        verify(raw, [other_chip, *amd_crls()], at=SUMMER, data=None)
    other_tcb = vector("sev-snp/go-sev-guest/verify__testdata__vcek.testcer")
    with refused("tcb", "tcb-mismatch", VerificationError):
        verify(raw, [other_tcb, *amd_crls()], at=SUMMER, data=None)
    other_product = vector("sev-snp/ms-tee-av/tests__test_data__genoa_vcek.pem")
    with refused("product", "product-mismatch", VerificationError):
        verify(
            report_in("sev-snp/ms-tee-av/tests__test_data__milan_attestation_report.bin"),
            [other_product, *amd_crls()],
            at=SPRING,
            data=None,
            outage=OLD_CRL,
        )


def test_report_of_version_2_is_not_of_a_turin() -> None:
    raw = report_in("sev-snp/trustee/test-report.bin")
    turin = vector("sev-snp/ms-tee-av/tests__test_data__turin_vcek.pem")
    with refused("product", "product-mismatch", VerificationError):
        verify(raw, [turin], at=SPRING, data=None, outage=NO_CRL)


def test_amd_crls_are_current_or_refused() -> None:
    name = "ms-tee-av/tests__test_data__genoa_attestation_report.bin"
    case = GENUINE[name]
    with refused("collateral", "collateral-stale", CollateralError):
        _verify(name, case, outage={})
    with refused("collateral", "collateral-stale", CollateralError):
        _verify(name, case, outage={"amd-crl": Tolerance(stale=timedelta(days=10))})
    turin = "ms-tee-av/tests__test_data__turin_attestation_report.bin"
    with refused("collateral", "collateral-missing", CollateralError):
        _verify(turin, GENUINE[turin], outage={})
    with refused("collateral", "collateral-not-yet", CollateralError):
        _verify("trustee/test-report.bin", _MILAN, at=datetime(2024, 8, 1, tzinfo=UTC))


def test_amd_revoked_an_older_ask_of_genoa() -> None:
    """The real CRL lists serial 0x20001; the ASK in use is 0x20002."""
    (crl, _) = Endorsements.detect(amd_crls()).crls
    assert [entry.serial_number for entry in crl] == [0x20001]


def _flipped(raw: bytes, index: int) -> bytes:
    return raw[:index] + bytes((raw[index] ^ 1 << index % 8,)) + raw[index + 1 :]


@pytest.mark.parametrize(
    "name",
    [
        "trustee/test-report.bin",
        "trustee/test-vlek-report.bin",
        "attestation-rs/test_data__snp__live-report-v5-genoa.bin",
        "ms-tee-av/tests__test_data__turin_attestation_report.bin",
    ],
)
def test_no_flipped_byte_of_a_report_is_accepted(name: str) -> None:
    """Every one of the 1184 bytes counts: signed, part of the signature, or refused unless zero."""
    case, raw, cache = GENUINE[name], report_in(f"sev-snp/{name}"), WorkCache()
    bag = [*endorsements_in(f"sev-snp/{case.vek}"), *amd_crls()]
    data = SnpReport.parse(raw).report_data
    for index in range(len(raw)):
        with pytest.raises((VerificationError, EvidenceFormatError)):
            verify(_flipped(raw, index), bag, at=case.at, data=data, outage=case.outage, cache=cache)
    assert verify(raw, bag, at=case.at, data=data, outage=case.outage, cache=cache)


@pytest.mark.parametrize("name", ["trustee/test-vcek.der", "trustee/test-vlek.der"])
def test_no_flipped_byte_of_a_certificate_is_accepted(name: str) -> None:
    of = "test-vlek-report" if "vlek" in name else "test-report"
    raw, report = vector(f"sev-snp/{name}"), report_in(f"sev-snp/trustee/{of}.bin")
    crl = amd_crls()
    for index in range(len(raw)):
        with pytest.raises(SealwrightError):
            verify(report, [_flipped(raw, index), *crl], at=SUMMER, data=None)


def test_no_flipped_byte_of_a_crl_is_accepted() -> None:
    report, vek = report_in("sev-snp/trustee/test-report.bin"), vector("sev-snp/trustee/test-vcek.der")
    raw = base64.b64decode(b"".join(amd_crls()[1].splitlines()[1:-1]))
    cache = WorkCache()
    assert verify(report, [vek, raw], at=SUMMER, data=None, cache=cache)
    for index in range(len(raw)):
        with pytest.raises(SealwrightError):
            verify(report, [vek, _flipped(raw, index)], at=SUMMER, data=None, cache=cache)
