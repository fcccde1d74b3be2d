"""Every Azure file of the manifest has its verdict; no byte that is signed can be changed."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from tests.azure.support import SNP, TDX, TOOLS, raw_quote, real, verify
from tests.intel.support import everything
from tests.vector_files import vector

from sealwright.appraisal.azure import AzSnpRules, AzTdxRules
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import CollateralError, SealwrightError, VerificationError
from sealwright.evidence.azure import AzureEvidence, HclReport, RuntimeClaims
from sealwright.evidence.azuretrustee import parse_trustee
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import TpmtSignature
from sealwright.verify.context import WorkCache
from sealwright.verify.tpmquote import check_quote

TDX_TIME = datetime(2025, 3, 1, 12, tzinfo=UTC)  # Intel's collateral for this platform is of those days
HCL = [
    (SNP.format("hcl-report.bin"), "snp"),
    (TDX.format("hcl-report.bin"), "tdx"),
    (TOOLS.format("hcl-report-snp.bin"), "snp"),
    (TOOLS.format("hcl-report-tdx.bin"), "tdx"),
]


@pytest.mark.parametrize("name", ["genoa", "v0", "v1", "v2"])
def test_snp_evidence_is_genuine(name: str) -> None:
    evidence, endorsements = real(SNP.format(f"evidence-{name}.json"))
    verified = verify(evidence, endorsements)
    assert (verified.platform, verified.vendor_root, verified.conditions) == ("az-snp-vtpm", True, ())
    assert verified.registers["measurement"] == verified.hardware.registers["measurement"]
    assert sum(one.startswith("pcr") for one in verified.registers) == 24
    assert [proof.by for proof in verified.proofs][-2:] == ["pinned in this package", "outage policy"]
    assert verified.facts["vm_configuration"]["secure-boot"] is True
    with pytest.raises(CollateralError):  # no AMD CRL is public
        verify(evidence, endorsements, outage={})


@pytest.mark.parametrize("name", ["v0", "v1"])
def test_tdx_evidence_is_genuine(name: str) -> None:
    evidence, _ = real(TDX.format(f"evidence-{name}.json"))
    verified = verify(evidence, everything(TDX_TIME), at=TDX_TIME, outage={})
    assert (verified.platform, verified.vendor_root) == ("az-tdx-vtpm", True)
    assert {one.code for one in verified.conditions} >= {"tcb-out-of-date"}
    assert verified.registers["mrtd"] == verified.hardware.registers["mrtd"]


def test_evidence_survives_our_document() -> None:
    for name in (SNP.format("evidence-v2.json"), TDX.format("evidence-v1.json")):
        evidence, _ = real(name)
        again = AzureEvidence.parse(evidence.encode())
        assert again.encode() == evidence.encode()
        assert again == evidence


def test_versions_of_trustee_hold_the_same_evidence() -> None:
    assert real(TDX.format("evidence-v0.json"))[0] == real(TDX.format("evidence-v1.json"))[0]
    old, new = (real(SNP.format(f"evidence-{version}.json"))[0] for version in ("v0", "v1"))
    assert old.hcl.runtime_data == new.hcl.runtime_data  # one VM, asked twice


@pytest.mark.parametrize(("name", "kind"), HCL)
def test_hcl_report(name: str, kind: str) -> None:
    raw = vector(name)
    report = HclReport.parse(raw)
    assert (report.kind, report.hash_name) == (kind, "sha256")
    assert report.encode() == raw
    assert report.padding == 2600 - 1236 - len(report.runtime_data) or len(raw) == 2048
    offset = 80 if kind == "snp" else 128
    assert report.hardware_report[offset : offset + 64] == report.expected_report_data()


def test_files_of_azure_cvm_tooling() -> None:
    key = load_pem_public_key(vector(TOOLS.format("akpub.pem")))
    assert isinstance(key, rsa.RSAPublicKey)
    nonce = b"challenge".ljust(64, b"\0")
    check_quote(raw_quote(TOOLS.format("quote.bin")), key, expected_report_data=nonce)
    claims = RuntimeClaims.parse(vector(TOOLS.format("var-data.bin")))  # of another VM
    with pytest.raises(VerificationError):
        check_quote(raw_quote(TOOLS.format("quote.bin")), claims.ak(), expected_report_data=nonce)
    assert (claims.ak_operations, claims.user_data) == (("sign",), bytes(64))
    assert len(Endorsements.detect([vector(TOOLS.format("certs.pem"))]).certificates) == 3


@pytest.mark.parametrize("kind", [SNP, TDX])
def test_raw_quotes_hold_under_the_key_of_their_report(kind: str) -> None:
    key = RuntimeClaims.parse(HclReport.parse(vector(kind.format("hcl-report.bin"))).runtime_data).ak()
    quote = raw_quote(kind.format("quote.bin"))
    check_quote(quote, key, expected_report_data=b"challenge".ljust(64, b"\0"))


def test_quote_of_a_vm_whose_report_was_not_published() -> None:
    attest = TpmsAttest.parse(vector(SNP.format("tpm-quote.msg")))
    assert attest.selected() == {"sha256": frozenset({0, 1, 2, 3, 4, 5, 6, 7, 14})}
    quote = raw_quote(SNP.format("quote.bin"))
    signature = replace(quote.signature, values=(vector(SNP.format("tpm-quote.sig")),))
    key = RuntimeClaims.parse(HclReport.parse(vector(SNP.format("hcl-report.bin"))).runtime_data).ak()
    with pytest.raises(VerificationError) as caught:
        check_quote(
            replace(quote, attest=attest, signature=signature),
            key,
            expected_report_data=b"challenge".ljust(64, b"\0"),
        )
    assert caught.value.code == "bad-signature"


def test_report_and_quote_as_files_of_their_own_are_genuine() -> None:
    evidence = AzureEvidence(
        hcl=HclReport.parse(vector(SNP.format("hcl-report.bin"))),
        quote=raw_quote(SNP.format("quote.bin")),
        td_quote=None,
    )
    verified = verify(evidence, Endorsements.detect([vector(SNP.format("vcek.pem"))]))
    assert verified.registers["pcr2"] == verified.registers["pcr3"]  # a separator each, and nothing else
    tdx = AzureEvidence(
        hcl=HclReport.parse(vector(TDX.format("hcl-report.bin"))),
        quote=raw_quote(TDX.format("quote.bin")),
        td_quote=vector(TDX.format("td-quote.bin")),
    )
    verify(tdx, everything(TDX_TIME), at=TDX_TIME, outage={})


def test_genoa_certificate_of_its_own_file() -> None:
    evidence, _ = real(SNP.format("evidence-genoa.json"))
    verify(evidence, Endorsements.detect([vector(SNP.format("vcek-genoa.pem"))]))
    with pytest.raises(SealwrightError):
        verify(evidence, Endorsements.detect([vector(SNP.format("vcek.pem"))]))


@pytest.mark.parametrize("kind", [SNP, TDX])
def test_loose_quotes_of_trustee(kind: str) -> None:
    report = base64.urlsafe_b64encode(vector(kind.format("hcl-report.bin"))).decode()
    said = {
        "version": 1,
        "hcl_report": report,
        "tpm_quote": json.loads(vector(kind.format("tpm-quote-v1.json"))),
    }
    if kind is TDX:
        said["td_quote"] = base64.urlsafe_b64encode(vector(TDX.format("td-quote.bin"))).decode()
    evidence, blobs = parse_trustee(json.dumps(said).encode())
    assert blobs == ()
    assert evidence.quote == raw_quote(kind.format("quote.bin"))


def test_no_byte_of_the_snp_evidence_can_be_changed() -> None:
    """Every byte of HCL report, message, signature and PCRs. Not signed: the version in the HCL's head."""
    evidence, endorsements = real(SNP.format("evidence-v1.json"))
    cache = WorkCache()
    verify(evidence, endorsements, work=cache)
    raw = evidence.hcl.encode()
    accepted = [
        at
        for at in range(len(raw))
        if holds(lambda at=at: replace(evidence, hcl=HclReport.parse(flipped(raw, at))), endorsements, cache)
    ]
    assert accepted == []  # 1 and 2 are two bits apart
    for at in range(0, len(evidence.quote.encode()), 7):
        document = flipped(evidence.quote.encode(), at)
        assert not holds(lambda d=document: replace(evidence, quote=TpmQuote.parse(d)), endorsements, cache)
    message, signature = evidence.quote.attest.signed, evidence.quote.signature.encode()
    for at in range(len(message)):
        assert not holds(
            lambda at=at: with_quote(evidence, attest=TpmsAttest.parse(flipped(message, at))),
            endorsements,
            cache,
        )
    for at in range(len(signature)):
        assert not holds(
            lambda at=at: with_quote(evidence, signature=TpmtSignature.parse(flipped(signature, at))),
            endorsements,
            cache,
        )
    for number, value in evidence.quote.pcrs["sha256"].items():
        pcrs = {"sha256": {**evidence.quote.pcrs["sha256"], number: flipped(value, number)}}
        assert not holds(lambda pcrs=pcrs: with_quote(evidence, pcrs=pcrs), endorsements, cache)


# What of a TDREPORT nothing is compared with: it is not signed, and the quote says the same, signed.
TD_REPORT_UNCHECKED = {*range(32, 32 + 128), *range(32 + 192, 32 + 512), *range(32 + 720, 32 + 1024)}


def test_no_byte_of_the_tdx_report_can_be_changed_but_what_proves_nothing() -> None:
    evidence, _ = real(TDX.format("evidence-v1.json"))
    endorsements, cache = everything(TDX_TIME), WorkCache()
    raw = evidence.hcl.encode()
    for at in set(range(len(raw))) - TD_REPORT_UNCHECKED:
        changed = flipped(raw, at)
        assert not holds(
            lambda c=changed: replace(evidence, hcl=HclReport.parse(c)),
            endorsements,
            cache,
            at=TDX_TIME,
            outage={},
        ), at


def with_quote(evidence: AzureEvidence, **changes: object) -> AzureEvidence:
    return replace(evidence, quote=replace(evidence.quote, **changes))


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def holds(make, endorsements: Endorsements, cache: WorkCache, **options: object) -> bool:
    with suppress(SealwrightError):
        verify(make(), endorsements, nonce=b"challenge", work=cache, **options)
        return True
    return False


def test_parts_of_two_machines_do_not_go_together() -> None:
    one, endorsements = real(SNP.format("evidence-v1.json"))
    other, _ = real(SNP.format("evidence-genoa.json"))
    with pytest.raises(VerificationError) as caught:  # the quote of another vTPM
        verify(replace(one, quote=other.quote), endorsements)
    assert caught.value.code == "bad-signature"
    mixed = replace(one.hcl, runtime_data=other.hcl.runtime_data)
    with pytest.raises(VerificationError) as caught:  # the runtime data of another paravisor
        verify(replace(other, hcl=mixed), endorsements)
    assert (caught.value.code, caught.value.stage) == ("runtime-data-mismatch", "runtime-data")


def test_td_quote_of_another_td() -> None:
    evidence, _ = real(TDX.format("evidence-v1.json"))
    quote = vector("tdx/trustee/tdx_quote_4.dat")
    with pytest.raises(VerificationError) as caught:
        verify(replace(evidence, td_quote=quote), everything(TDX_TIME), at=TDX_TIME, outage={})
    assert caught.value.code == "runtime-data-mismatch"
    report = bytearray(evidence.hcl.hardware_report)
    report[528] ^= 1  # MRTD
    changed = replace(evidence, hcl=replace(evidence.hcl, hardware_report=bytes(report)))
    with pytest.raises(VerificationError) as caught:
        verify(changed, everything(TDX_TIME), at=TDX_TIME, outage={})
    assert (caught.value.code, caught.value.stage) == ("td-report-mismatch", "runtime-data")


def test_rules_over_real_evidence() -> None:
    evidence, endorsements = real(SNP.format("evidence-v2.json"))
    verified = verify(evidence, endorsements)
    digest = hashlib.sha256(evidence.hcl.runtime_data).hexdigest()
    assert digest == verified.hardware.report_data[:32].hex()
    floor = {"boot_loader": 4, "tee": 0, "snp": 24, "microcode": 219}
    listed = {
        name: [verified.registers[name].hex()] for name in ("measurement", "pcr4", "pcr7", "pcr9", "pcr11")
    }
    rules = AzSnpRules.model_validate(
        {
            "products": {"Milan": {"minimum_tcb": floor}},
            "registers": listed,
            "unchecked": ["pcr0", "pcr2", "pcr12", "pcr13"],
            "user_data": [verified.claims.user_data.hex()],
        }
    )
    assert [*rules.refusals(verified), *rules.shared_refusals(verified)] == []
    strict = rules.model_copy(
        update={"registers": {}, "unchecked": [], "user_data": [bytes(64)], "vm_ids": ["B"]}
    )
    codes = [one.code for one in strict.refusals(verified)]
    assert codes.count("register-not-listed") == 7
    assert codes.count("guest-identity-not-allowed") == 2

    tdx, _ = real(TDX.format("evidence-v1.json"))
    verified = verify(tdx, everything(TDX_TIME), at=TDX_TIME, outage={})
    rules = AzTdxRules.model_validate(
        {
            "minimum_tcb_evaluation": 1,
            "tcb_statuses": ["OutOfDate"],
            "advisories": "any",
            "unchecked": ["mrtd", "pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11", "pcr12", "pcr13"],
        }
    )
    assert list(rules.refusals(verified)) == []
    strict = rules.model_copy(update={"tcb_statuses": ["UpToDate"]})
    assert "tcb-out-of-date" in {one.code for one in strict.shared_refusals(verified)}
    assert "tcb-out-of-date" not in {one.code for one in rules.shared_refusals(verified)}
    with pytest.raises(TypeError):
        list(AzSnpRules.model_construct().refusals(verified))
