"""Every document of AWS Nitro in the manifest, with its expected verdict; and each byte of one of them flipped."""

from __future__ import annotations

import base64
import json
import re
from datetime import timedelta

import pytest
from cryptography import x509
from pydantic import ValidationError
from tests.nitro.support import check, made
from tests.vector_files import folder, manifest, vector

from sealwright.appraisal.nitro import NitroRules
from sealwright.endorsement.roots import anchors
from sealwright.endorsement.x509 import fingerprint, load_certificate, pem_blocks
from sealwright.errors import EvidenceFormatError, SealwrightError, VerificationError
from sealwright.evidence.nitro import NitroDocument
from sealwright.verify.context import Context, WorkCache

RAW = {
    "nitro/anjuna/sample_prod_doc.bin": {"no-report-data"},
    "nitro/anjuna/attester__sample_prod_doc.bin": set(),
    "nitro/anjuna/sample_prod_doc_with_publickey.bin": {"no-report-data"},
    "nitro/anjuna/sample_attestation_doc_full.bin": {"debug"},
    "nitro/evervault/test-data__beta__debug-mode-attestation-doc-bytes": {"debug"},
    "nitro/evervault/test-data__beta__valid-attestation-doc-bytes": {"no-report-data"},
    "nitro/evervault/test-data__valid-attestation-doc-base64": {"debug"},
    "nitro/fortanix/request_proper.bin": {"debug"},
}
IN_CERTIFICATES = {
    "nitro/evervault/test-data__beta__debug-mode-cert-containing-attestation-doc-18-1-23.pem": {"debug"},
    "nitro/evervault/test-data__beta__non-debug-cert-containing-attestation-document-18-1-23.pem": set(),
    "nitro/evervault/test-data__beta__non-debug-cert-containing-attestation-document-18-1-23-der.crt": set(),
}
NO_DOCUMENT = {
    "nitro/evervault/test-data__certificate.der",  # the certificate of a web server
    "nitro/evervault/test-data__valid-certificate.der",
    "nitro/fortanix/aws.crt",
    "nitro/fortanix/tampered_root_cert.crt",
    "nitro/fortanix/unknown_ca.crt",
}
TAMPERED = {"nitro/fortanix/tampered_certificate.bin", "nitro/fortanix/tampered_signature.bin"}
SPEC_NAMES = {
    "valid_attestation_doc_check_pcr8_only_time_sensitive.json",
    "valid_attestation_doc_ga.json",
    "valid_attestation_doc_in_cert_der_encoding_time_sensitive.json",
    "valid_attestation_doc_in_cert_incorrect_pcrs_time_sensitive.json",
    "valid_attestation_doc_in_cert_time_sensitive.json",
    "valid_attestation_doc_in_non_debug_mode_with_correct_pcrs_time_sensitive.json",
}
MISMATCHED = {"valid_attestation_doc_in_cert_incorrect_pcrs_time_sensitive.json"}


def document(name: str) -> bytes:
    """Return the document in a file: raw, in base64, or in a DNS name of a certificate as Evervault hides it."""
    raw = vector(name)
    if name.endswith("base64"):
        return base64.b64decode(raw)
    if name in IN_CERTIFICATES:
        der = pem_blocks(raw)[0][1] if raw.startswith(b"-----") else raw
        certificate = load_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hidden = max(names.get_values_for_type(x509.DNSName), key=len)
        return bytes.fromhex(re.match(r"[0-9a-f]+", hidden)[0])
    return raw


def test_the_manifest_is_covered() -> None:
    rows = {row["file"] for row in manifest("nitro")}
    if not rows:
        pytest.skip(f"vectors not here: MANIFEST.tsv ({folder()})")
    specs = {f"nitro/evervault-specs/{name}" for name in SPEC_NAMES}
    assert rows == RAW.keys() | IN_CERTIFICATES.keys() | NO_DOCUMENT | TAMPERED | specs


@pytest.mark.parametrize(("name", "conditions"), (RAW | IN_CERTIFICATES).items())
def test_genuine(name: str, conditions: set[str]) -> None:
    raw = document(name)
    verified = check(raw)
    assert {condition.code for condition in verified.conditions} == conditions
    assert verified.vendor_root
    assert verified.root == fingerprint(anchors("aws")[0])
    assert verified.age_s == 60
    assert sorted(verified.registers) == sorted(f"pcr{index}" for index in range(16))
    assert verified.document.encode() == raw
    assert verified.facts["instance_id"].startswith("i-")
    assert [proof.by for proof in verified.proofs][-2:] == ["aws.nitro-enclaves"] * 2


@pytest.mark.parametrize("name", RAW | IN_CERTIFICATES)
def test_it_is_genuine_only_while_its_certificate_is_valid(name: str) -> None:
    raw = document(name)
    at = made(NitroDocument.parse(raw))
    for wrong, code in (
        (at + timedelta(hours=4), "certificate-expired"),
        (at - timedelta(hours=4), "certificate-expired"),
    ):
        with pytest.raises(VerificationError) as refused:
            check(raw, context=Context(at=wrong))
        assert (refused.value.stage, refused.value.code) == ("chain", code)


def test_a_tampered_signature_is_refused() -> None:
    with pytest.raises(VerificationError) as refused:
        check(vector("nitro/fortanix/tampered_signature.bin"))
    assert (refused.value.stage, refused.value.code) == ("signature", "bad-signature")


def test_a_tampered_certificate_is_refused() -> None:
    with pytest.raises(EvidenceFormatError) as refused:
        check(vector("nitro/fortanix/tampered_certificate.bin"))
    assert refused.value.code == "malformed-chain"


def test_the_pinned_root_is_the_published_one() -> None:
    (root,) = anchors("aws")
    (_, der), *_ = pem_blocks(vector("nitro/fortanix/aws.crt"))
    assert fingerprint(root) == fingerprint(load_certificate(der))


def test_a_tampered_root_is_malformed() -> None:
    (_, der), *_ = pem_blocks(vector("nitro/fortanix/tampered_root_cert.crt"))
    with pytest.raises(EvidenceFormatError):
        load_certificate(der)


def test_a_root_of_another_vendor_is_no_anchor() -> None:
    (_, der), *_ = pem_blocks(vector("nitro/fortanix/unknown_ca.crt"))
    other = load_certificate(der)
    assert fingerprint(other) not in {fingerprint(root) for root in anchors("aws")}


@pytest.mark.parametrize("name", sorted(NO_DOCUMENT))
def test_a_certificate_is_no_document(name: str) -> None:
    with pytest.raises(EvidenceFormatError):
        NitroDocument.parse(vector(name))


@pytest.mark.parametrize("name", sorted(SPEC_NAMES))
def test_evervault_case(name: str) -> None:
    case = json.loads(vector(f"nitro/evervault-specs/{name}"))
    file = case.get("attestationDoc", case.get("file")).removeprefix("test-data/").replace("/", "__")
    verified = check(document(f"nitro/evervault/test-data__{file}"))
    assert case["isAttestationDocValid"]
    assert case["shouldPcrsMatch"] is (name not in MISMATCHED)
    registers = {register: [value] for register, value in case["pcrs"].items()}
    if not case["shouldPcrsMatch"]:  # two of its values are not even hex: such a policy is not loaded
        with pytest.raises(ValidationError):
            NitroRules.model_validate({"registers": registers})
        registers = {
            register: [value] for register, (value,) in registers.items() if "incorrect" not in value
        }
    rules = NitroRules.model_validate({"registers": registers, "admit": ["debug", "no-report-data"]})
    codes = {failure.code for failure in (*rules.shared_refusals(verified), *rules.refusals(verified))}
    assert codes == (set() if case["shouldPcrsMatch"] else {"measurement-not-allowed"})


def test_no_flipped_byte_is_accepted() -> None:
    raw = vector("nitro/fortanix/request_proper.bin")
    document = NitroDocument.parse(raw)
    context = Context(at=made(document) + timedelta(minutes=1), work=WorkCache())
    check(raw, context=context)
    for index in range(len(raw)):
        flipped = bytearray(raw)
        flipped[index] ^= 1 << index % 8
        with pytest.raises(SealwrightError):
            check(bytes(flipped), report_data=document.user_data, context=context)
