"""Each way to lie with Azure evidence, over a fake AMD."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.azure.support import fake, verify_fake

from sealwright.appraisal.azure import AzSnpRules, AzTdxRules
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import (
    EvidenceFormatError,
    FormatError,
    RevokedError,
    SealwrightError,
    VerificationError,
)
from sealwright.evidence.azure import AzureEvidence, HclReport, RuntimeClaims
from sealwright.evidence.azuretrustee import parse_trustee
from sealwright.evidence.tpmwire import PcrSelection
from sealwright.testing.azure import AzureTestPlatform, b64url_integer, other_key
from sealwright.testing.eventlog import BootLogBuilder
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.boot import read_boot
from sealwright.verify.eventlog import verify_event_log

NONCE = bytes(range(1, 49))


def made(platform: AzureTestPlatform, **report: Any) -> AzureEvidence:
    return platform.evidence(NONCE, **report)[0]


def refused(
    platform: AzureTestPlatform, evidence: AzureEvidence, code: str, stage: str, **options: Any
) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_fake(platform, evidence, **options)
    assert (caught.value.code, caught.value.stage) == (code, stage)


def test_fake_evidence_is_genuine_under_its_own_root_alone() -> None:
    platform = fake()
    verified = verify_fake(platform, made(platform))
    assert not verified.vendor_root
    assert verified.root == platform.root_fingerprint
    assert verified.report_data == NONCE
    refused(platform, made(platform), "unknown-root", "chain", roots=frozenset())


@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_hash_of_the_runtime_data(hash_name: str) -> None:
    platform = fake()
    verify_fake(platform, made(platform, hash_name=hash_name))
    bound = hashlib.new(hash_name, json.dumps(platform.claims).encode()).digest()
    if len(bound) < 64:
        wrong = bound + b"\x01" * (64 - len(bound))  # what follows the hash is zero
        refused(
            platform,
            made(platform, hash_name=hash_name, report_data=wrong),
            "runtime-data-mismatch",
            "runtime-data",
        )


def test_guest_that_asks_the_hardware_itself() -> None:
    platform = fake()
    refused(platform, made(platform, vmpl=1), "vmpl-mismatch", "vmpl")
    refused(
        platform, made(platform, report_data=NONCE.ljust(64, b"\0")), "runtime-data-mismatch", "runtime-data"
    )


def test_key_that_the_paravisor_did_not_name() -> None:
    platform = fake()
    quote = platform.quote(NONCE, key=other_key())
    refused(platform, replace(made(platform), quote=quote), "bad-signature", "quote")


@pytest.mark.parametrize("changes", [{"e": "Aw"}, {"key_ops": ["encrypt"]}, {"key_ops": []}])
def test_key_that_may_not_be_used(changes: dict[str, Any]) -> None:
    platform = fake()
    platform.claims["keys"] = [platform.jwk(**changes)]
    refused(platform, made(platform), "ak-not-usable", "attestation-key")


def test_key_of_another_size() -> None:
    platform = fake()
    platform.claims["keys"] = [platform.jwk(other_key(3072))]
    refused(platform, made(platform), "ak-not-usable", "attestation-key")


@pytest.mark.parametrize("nonce", [b"", NONCE[:-1], NONCE + b"\x01", b"\0" * 48])
def test_another_nonce(nonce: bytes) -> None:
    platform = fake()
    refused(platform, made(platform), "report-data-mismatch", "quote", nonce=nonce)


def test_quote_without_a_nonce() -> None:
    platform = fake()
    evidence = replace(made(platform), quote=platform.quote(b""))
    refused(platform, evidence, "report-data-mismatch", "quote", nonce=b"")


def test_pcrs_that_are_not_those_quoted() -> None:
    platform = fake()
    evidence = made(platform)
    values = dict(evidence.quote.pcrs["sha256"])
    values[16], values[17] = b"\x01" * 32, values[16]
    changed = replace(evidence, quote=replace(evidence.quote, pcrs={"sha256": values}))
    refused(platform, changed, "pcr-digest-mismatch", "quote")
    # PCR 17 is quoted, and shown as 16: the bitmap counts, not only the digest.
    del platform.pcrs[16]
    quote = platform.quote(NONCE)
    shown = {(16 if number == 17 else number): value for number, value in platform.pcrs.items()}
    refused(
        platform,
        replace(evidence, quote=replace(quote, pcrs={"sha256": shown})),
        "pcr-selection-mismatch",
        "quote",
    )
    some = platform.quote(NONCE, pcrSelect=(PcrSelection(bank="sha256", pcrs=(0,)),))
    refused(platform, replace(evidence, quote=some), "pcr-selection-mismatch", "quote")


def test_revoked_ask() -> None:
    platform = fake()
    platform.hardware.revoke(platform.hardware.amd.now)
    with pytest.raises(RevokedError):
        verify_fake(platform, made(platform))


def test_secure_boot_off_is_a_condition() -> None:
    for configuration in ({"secure-boot": False}, {}, {"secure-boot": 1}, {"secure-boot": "true"}):
        platform = fake()
        platform.claims["vm-configuration"] = configuration
        assert "secure-boot-off" in {one.code for one in verify_fake(platform, made(platform)).conditions}
    platform = fake()
    assert "secure-boot-off" not in {one.code for one in verify_fake(platform, made(platform)).conditions}


def test_event_log_replays_to_the_pcrs_of_the_vtpm() -> None:
    platform = fake()
    with pytest.warns(FakePlatformWarning):
        log = BootLogBuilder()
    log.boot(sections=[(".linux", b"kernel")])
    found = log.registers()
    platform.pcrs = {number: found.get(f"pcr{number}", bytes(32)) for number in range(24)}
    verified = verify_fake(platform, made(platform))
    account = read_boot(verify_event_log(log.log(), verified))
    assert account.secure_boot.enabled
    assert [name for name, _ in account.uki_sections] == [".linux"]
    log.add(4, 0x80000003, bytes(32), b"an image that never ran")
    with pytest.raises(VerificationError, match="pcr4"):
        verify_event_log(log.log(), verified)


def test_rules() -> None:
    platform = fake()
    verified = verify_fake(platform, made(platform))
    floor = {"boot_loader": 0, "tee": 0, "snp": 0, "microcode": 0}
    listed = {
        name: [verified.registers[name].hex()]
        for name in ("measurement", "pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11")
    }
    base = {
        "products": {"Milan": {"minimum_tcb": floor}},
        "registers": listed,
        "roots": [platform.root_fingerprint.hex()],
    }
    rules = AzSnpRules.model_validate(base)
    assert [*rules.refusals(verified), *rules.shared_refusals(verified)] == []
    platform.pcrs[12] = b"\x01" * 32
    added = verify_fake(platform, made(platform))
    assert [one.code for one in rules.refusals(added)] == ["pcr-extended"]
    del platform.pcrs[12]
    assert [one.code for one in rules.refusals(verify_fake(platform, made(platform)))] == ["register-missing"]
    two = AzSnpRules.model_validate(base | {"banks": ["sha256", "sha384"]})
    assert [one.code for one in two.refusals(verified)] == ["pcr-bank-missing"]
    other = AzSnpRules.model_validate(base | {"products": {"Genoa": {"minimum_tcb": floor}}})
    assert [one.code for one in other.refusals(verified)] == ["product-not-allowed"]
    with pytest.raises(TypeError):
        list(AzTdxRules.model_construct().refusals(verified))


# --- formats ---


@pytest.mark.parametrize("position", [0, 4, 8, 12, 16, 20, 31, 1216, 1220, 1224, 1228, 1232, -1])
def test_malformed_hcl_report(position: int) -> None:
    raw = bytearray(fake().hcl().encode())
    raw[position] ^= 0x40
    with pytest.raises(EvidenceFormatError) as caught:
        HclReport.parse(bytes(raw))
    assert caught.value.code == "malformed-hcl-report"


def test_hcl_report_bounds() -> None:
    raw = fake().hcl().encode()
    for broken in (b"", raw[:1235], raw[:-9]):
        with pytest.raises(EvidenceFormatError):
            HclReport.parse(broken)
    with pytest.raises(EvidenceFormatError) as caught:
        HclReport.parse(raw + bytes(16 * 1024))
    assert caught.value.code == "too-large"
    tdx = replace(fake().hcl(), kind="tdx", hardware_report=bytes(1183) + b"\x01")
    with pytest.raises(EvidenceFormatError):
        HclReport.parse(tdx.encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda claims: claims.pop("keys"),
        lambda claims: claims.update(keys=[]),
        lambda claims: claims.update(keys=claims["keys"] * 2),
        lambda claims: claims.update(keys=[{"kid": "HCLAkPub", "kty": "EC"}]),
        lambda claims: claims["keys"][0].update(kid="HCLEkPub"),
        lambda claims: claims["keys"][0].update(n=5),
        lambda claims: claims.pop("vm-configuration"),
        lambda claims: claims.update({"user-data": "zz"}),
        lambda claims: claims.update({"user-data": "00" * 65}),
        lambda claims: claims.update({"user-data": " 00"}),
        lambda claims: claims.update({"user-data": 5}),
    ],
)
def test_malformed_runtime_data(change: Any) -> None:
    platform = fake()
    change(platform.claims)
    with pytest.raises(EvidenceFormatError) as caught:
        verify_fake(platform, made(platform))
    assert caught.value.code == "malformed-runtime-data"


def test_runtime_data_with_a_key_twice_or_none() -> None:
    for text in (b'{"keys":[],"keys":[],"vm-configuration":{}}', b"[]", b"\xff", b""):
        with pytest.raises(FormatError):
            RuntimeClaims.parse(text)
    for e, n in ((0, 0), (2, 4), (65537, 6)):
        key = {
            "kid": "HCLAkPub",
            "kty": "RSA",
            "key_ops": ["sign"],
            "e": b64url_integer(e),
            "n": b64url_integer(n),
        }
        with pytest.raises(EvidenceFormatError) as caught:
            RuntimeClaims.parse(json.dumps({"keys": [key], "vm-configuration": {}}).encode()).ak()
        assert caught.value.code == "malformed-runtime-data"


def test_document_with_parts_that_do_not_belong() -> None:
    evidence = made(fake())
    for changes in ({"td_quote": b"x"}, {"hcl": replace(evidence.hcl, kind="tdx")}):
        with pytest.raises(EvidenceFormatError) as caught:
            replace(evidence, **changes)
        assert caught.value.code == "malformed-hcl-report"
    for broken in (b"{}", evidence.encode()[:-1], evidence.encode().replace(b"v1", b"v2", 1)):
        with pytest.raises(EvidenceFormatError):
            AzureEvidence.parse(broken)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"version":3}',
        '{"version":true,"hcl_report":"","tpm_quote":{}}',
        '{"version":1,"hcl_report":"","report":"","tpm_quote":{}}',
        '{"version":1,"hcl_report":"A","tpm_quote":{"message":"","signature":"","pcrs":[]}}',
        '{"version":1,"hcl_report":[256],"tpm_quote":{"message":"","signature":"","pcrs":[]}}',
        '{"version":1,"hcl_report":[true],"tpm_quote":{"message":"","signature":"","pcrs":[]}}',
        '{"version":1,"hcl_report":"====","tpm_quote":{"message":"","signature":"","pcrs":[]}}',
    ],
)
def test_malformed_trustee_evidence(text: str) -> None:
    with pytest.raises(EvidenceFormatError):
        parse_trustee(text.encode())


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=1400), start=st.booleans())
def test_parsers_raise_their_own_error_alone(raw: bytes, start: bool) -> None:
    whole = (fake_hcl()[: 1400 - len(raw)] + raw) if start else raw
    for parse in (HclReport.parse, RuntimeClaims.parse, AzureEvidence.parse, parse_trustee):
        try:
            found = parse(whole)
        except EvidenceFormatError:
            continue
        if isinstance(found, HclReport):
            assert found.encode() == whole


_HCL: list[bytes] = []


def fake_hcl() -> bytes:
    return _HCL[0] if _HCL else (_HCL.append(fake().hcl().encode()) or _HCL[0])


def test_fake_warns() -> None:
    with pytest.warns(FakePlatformWarning):
        AzureTestPlatform(fake().hardware.amd.now, hardware=fake().hardware)
    assert issubclass(EvidenceFormatError, SealwrightError)
    assert Endorsements.detect(fake().endorsements()).crls
