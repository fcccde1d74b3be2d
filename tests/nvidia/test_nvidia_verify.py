"""One device: every refusal with its stage and code, and every condition."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from tests.nvidia.support import NONCE, NOW, OUTAGE, context, fake, nvidia

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.nvidia import dice_info
from sealwright.errors import (
    CollateralError,
    EvidenceFormatError,
    RevokedError,
    SealwrightError,
    VerificationError,
)
from sealwright.evidence import nvopaque
from sealwright.evidence.nvgpu import GpuDocument, GpuEvidence, Stated
from sealwright.testing._nvidia_pki import answer, issue
from sealwright.testing.nvgpu import (
    BEST_STATE,
    DRIVER,
    GPU_VBIOS,
    ON,
    FakeDevice,
    FakeNvidia,
    composite,
    tcb_info,
    tlv,
)
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Tolerance
from sealwright.verify.nvgpu import VerifiedGpu, verify_nvgpu

DICE = ObjectIdentifier("2.23.133.5.4.1")


def verify(evidence: bytes, device: FakeDevice, **changes: object) -> VerifiedGpu:
    """Verify evidence of any form with all endorsements of a device."""
    return verify_nvgpu(
        GpuEvidence.parse(evidence),
        Endorsements.detect(nvidia().endorsements(device)),
        expected_nonce=NONCE,
        context=context(**changes),
    )


def refusal(run: Callable[[], object]) -> tuple[str, str]:
    """Return stage and code of a refusal."""
    with pytest.raises(SealwrightError) as caught:
        run()
    return caught.value.stage, caught.value.code


@pytest.mark.parametrize("architecture", ["HOPPER", "BLACKWELL", "LS10"])
def test_a_genuine_device(architecture: str) -> None:
    device = nvidia().device(architecture)
    found = fake(device)
    assert found.compared
    assert found.conditions == ()
    assert found.report_data == NONCE
    assert found.registers["msr0"] == device.measurements[0]
    assert found.facts["pdi"] == device.pdi.hex()
    assert (found.bound_by, found.relay_excluded) == ("spdm-nonce", False)
    assert (found.facts["bound_by"], found.facts["relay_excluded"]) == ("spdm-nonce", False)
    assert any("relayed" in one for one in found.not_proved)
    assert not found.vendor_root
    assert found.root in nvidia().roots
    assert found.until == NOW + timedelta(days=1)  # its OCSP answers end first
    assert found.proofs[0].what.startswith(found.chip.name)
    json.dumps(found.facts)


def test_a_result_is_made_by_verify_alone() -> None:
    with pytest.raises(TypeError):
        replace(fake(nvidia().device()), _made_by=object())


def test_it_warns_when_it_is_made() -> None:
    with pytest.warns(FakePlatformWarning):
        FakeNvidia(NOW)


def test_its_roots_count_only_where_they_are_named() -> None:
    device = nvidia().device()
    assert refusal(lambda: fake(device, roots=frozenset())) == ("chain", "unknown-root")


@pytest.mark.parametrize("nonce", [bytes(32), NONCE[:31] + b"\0", NONCE[::-1]])
def test_another_nonce(nonce: bytes) -> None:
    evidence = GpuEvidence.parse(nvidia().device().document(NONCE))

    def run() -> None:
        verify_nvgpu(evidence, Endorsements(), expected_nonce=nonce, context=context())

    assert refusal(run) == ("nonce", "report-data-mismatch")


@pytest.mark.parametrize("nonce", [b"", NONCE[:31], NONCE + b"\0", NONCE * 2])
def test_a_nonce_of_another_length_is_our_bug(nonce: bytes) -> None:
    evidence = GpuEvidence.parse(nvidia().device().document(NONCE))
    with pytest.raises(ValueError, match="32 bytes"):
        verify_nvgpu(evidence, Endorsements(), expected_nonce=nonce, context=context())


def test_the_answers_own_nonce_is_not_the_one_that_counts() -> None:
    device = nvidia().device()
    report = bytearray(device.report(bytes(32)))
    at = report.index(device.measurements[63]) + 48
    report[at : at + 32] = NONCE
    raw = GpuDocument(
        arch="HOPPER", report=device.sign(bytes(report[:-96])), certificates=_chain(device)
    ).encode()
    assert refusal(lambda: verify(raw, device)) == ("nonce", "report-data-mismatch")


def _chain(device: FakeDevice) -> tuple[bytes, ...]:
    return tuple(one.public_bytes(Encoding.DER) for one in device.entity.chain)


def _document(device: FakeDevice, **changes: object) -> bytes:
    said: dict[str, object] = {
        "arch": device.architecture,
        "report": device.report(NONCE),
        "certificates": _chain(device),
    }
    return GpuDocument(**(said | changes)).encode()  # type: ignore[arg-type]


def test_another_architecture_than_the_certificates() -> None:
    device = nvidia().device()
    assert refusal(lambda: verify(_document(device, arch="BLACKWELL"), device)) == (
        "chain",
        "architecture-mismatch",
    )


@pytest.mark.parametrize(
    "subject",
    [
        "GA100 A01 GSP FMC LF",
        "GH100 A01 GSP BROM",
        "GH100",
        "xGH100 A01 GSP FMC LF",
        "GH100 A01 GSP FMC LF\n",
    ],
)
def test_a_certificate_that_names_no_known_chip(subject: str) -> None:
    device = nvidia().device(subject=subject)
    assert refusal(lambda: verify(_document(device), device)) == ("chain", "unknown-architecture")


def test_chains_of_another_length_order_or_device() -> None:
    device, other = nvidia().device(), nvidia().device()
    chain = _chain(device)

    def refused(*certificates: bytes) -> tuple[str, str]:
        return refusal(lambda: verify(_document(device, certificates=certificates), device))

    assert refused(chain[0]) == ("chain", "unknown-root")
    assert refused(*chain[:1], *chain[2:]) == ("chain", "unknown-root")
    assert refused(*chain[1:]) == ("chain", "bad-certificate")  # four certificates, or not a device's
    assert refused(*_chain(other)) == ("signature", "bad-signature")
    assert refused(chain[0], *_chain(other)[1:]) == ("chain", "unknown-root")
    assert verify(
        _document(device, certificates=(chain[0], *chain[:0:-1])), device
    ).compared  # any order above
    assert refused(chain[0], nvidia().rim(device, "vbios")) == ("parse", "malformed-chain")


def test_a_shorter_chain_under_a_root_that_is_admitted() -> None:
    device = nvidia().device()
    short = issue("GH100 A01 GSP FMC LF", nvidia().device_root, NOW, ca=False)
    device = FakeDevice("HOPPER", short, device.fwid, device.measurements, device.opaque)
    raw = _document(device)

    def run() -> None:
        verify_nvgpu(GpuEvidence.parse(raw), Endorsements(), expected_nonce=NONCE, context=context())

    assert refusal(run) == ("chain", "bad-certificate")


def test_certificates_of_another_purpose() -> None:
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    critical = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\5\0")
    for extension in ((purpose, False), (purpose, True), (critical, True)):
        device = nvidia().device(extensions=[extension])
        assert refusal(lambda device=device: verify(_document(device), device)) == (
            "chain",
            "bad-certificate",
        )


def test_a_certificate_of_another_curve() -> None:
    device = nvidia().device(curve=ec.SECP256R1())
    assert refusal(lambda: verify(_document(device), device)) == ("signature", "bad-certificate")


def test_a_certificate_that_has_ended() -> None:
    device = nvidia().device()
    late = NOW + timedelta(days=40 * 365)
    assert refusal(lambda: verify(_document(device), device, at=late)) == ("chain", "certificate-expired")


def test_signatures_that_do_not_hold() -> None:
    device = nvidia().device()
    report = device.report(NONCE)
    order = int.from_bytes(
        bytes.fromhex("ff" * 24 + "c7634d81f4372ddf581a0db248b0a77aecec196accc52973"), "big"
    )
    for signature in (bytes(96), b"\xff" * 96, order.to_bytes(48, "big") * 2, report[-48:] + report[-96:-48]):
        raw = _document(device, report=report[:-96] + signature)
        assert refusal(lambda raw=raw: verify(raw, device)) == ("signature", "bad-signature")


@pytest.mark.parametrize("architecture", ["HOPPER", "BLACKWELL"])
def test_a_firmware_digest_that_is_not_the_certificates(architecture: str) -> None:
    device = nvidia().device(architecture)
    for fwid in (bytes(48), device.fwid[:-1] + bytes([device.fwid[-1] ^ 1])):
        device.opaque[nvopaque.FWID] = fwid
        assert refusal(lambda: verify(_document(device), device)) == ("firmware", "fwid-mismatch")
    del device.opaque[nvopaque.FWID]
    assert refusal(lambda: verify(_document(device), device)) == ("firmware", "fwid-mismatch")


def test_a_device_id_that_is_not_the_key_that_made_the_certificate() -> None:
    fwid = nvidia().device().fwid
    other = nvidia().device().entity.key.public_key()
    device = nvidia().device(dice=x509.UnrecognizedExtension(DICE, composite(other, fwid)))
    assert refusal(lambda: verify(_document(device), device)) == ("firmware", "fwid-mismatch")


def test_a_switch_of_another_identity() -> None:
    device = nvidia().device("LS10")
    device.opaque[nvopaque.PDI] = bytes(8)
    assert refusal(lambda: verify(_document(device), device)) == ("firmware", "pdi-mismatch")


FWID = bytes.fromhex("0609608648016503040202") + b"\x04\x30" + bytes(48)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(tlv(0x30), id="an empty sequence"),
        pytest.param(tlv(0x31, b"\2\1\1"), id="a set"),
        pytest.param(tlv(0x30, b"\2\1\1"), id="a version alone"),
        pytest.param(tlv(0x30, b"\2\1\2", tlv(0x30), tlv(0x30, FWID)), id="another version"),
        pytest.param(tlv(0x30, b"\2\1\1", tlv(0x30), tlv(0x30, FWID)) + b"\0\0", id="bytes behind"),
        pytest.param(tlv(0x30, b"\2\1\1", tlv(0x30), tlv(0x30, FWID), tlv(0x30, FWID)), id="two digests"),
        pytest.param(tlv(0x30, b"\2\1\1", tlv(0x30), tlv(0x30, FWID[:-1])), id="a short digest"),
        pytest.param(
            tlv(0x30, b"\2\1\1", tlv(0x30), tlv(0x30, FWID.replace(b"\2\2\4", b"\2\1\4"))), id="SHA-256"
        ),
        pytest.param(tlv(0x30, tlv(0x80, b"NVIDIA")), id="a TCB info without digests"),
        pytest.param(tlv(0x30, tlv(0xA6)), id="with an empty list"),
        pytest.param(tlv(0x30, tlv(0xA6, b"\4\0")), id="with something else"),
        pytest.param(tlv(0x30, tlv(0xA6, tlv(0x30, FWID)), tlv(0x80)), id="out of order"),
        pytest.param(tlv(0x30, tlv(0xA6, tlv(0x30, FWID)), tlv(0xA6, tlv(0x30, FWID))), id="a member twice"),
        pytest.param(tlv(0x30, tlv(0xA6, tlv(0x30, FWID)), tlv(0x87)), id="flags without bits"),
        pytest.param(tlv(0x30, tlv(0xA6, tlv(0x30, FWID)), tlv(0x87, b"\x08\0")), id="eight unused bits"),
        pytest.param(b"\x30\x81\x03\2\1\1", id="a length that could be shorter"),
        pytest.param(b"\x30\x80\2\1\1\0\0", id="an indefinite length"),
        pytest.param(b"\x30\x84\0\0\0\3\2\1\1", id="a long length"),
        pytest.param(b"\x30\x7f\2\1\1", id="cut off"),
    ],
)
def test_a_malformed_dice_extension(value: bytes) -> None:
    device = nvidia().device(dice=x509.UnrecognizedExtension(DICE, value))
    with pytest.raises(EvidenceFormatError) as caught:
        dice_info(device.entity.certificate)
    assert caught.value.code == "malformed-chain"


def test_a_certificate_with_two_dice_extensions_or_none() -> None:
    second = x509.UnrecognizedExtension(ObjectIdentifier("2.23.133.5.4.1.1"), tcb_info(bytes(48)))
    none = issue("GH100 A01 GSP FMC LF", nvidia().device().entity.issuer, NOW, ca=False)
    for certificate in (nvidia().device(extensions=[(second, False)]).entity.certificate, none.certificate):
        with pytest.raises(EvidenceFormatError):
            dice_info(certificate)


def test_revocation() -> None:
    device = nvidia().device()
    boot_rom, *above = device.entity.entities()[1:-1]
    rest = [
        nvidia().rim(device, "driver"),
        nvidia().rim(device, "vbios"),
        *nvidia().answers(nvidia().rim_signer),
    ]

    def with_answers(*answers: bytes, **changes: object) -> VerifiedGpu:
        return fake(device, endorsements=(*rest, *answers), **changes)

    good = [answer(one, NOW) for one in above]
    held = with_answers(answer(boot_rom, NOW, revoked=x509.ReasonFlags.certificate_hold), *good)
    assert [(one.code, one.claim) for one in held.conditions] == [("certificate-hold", "instance-identity")]
    with pytest.raises(RevokedError) as caught:
        with_answers(answer(boot_rom, NOW, revoked=x509.ReasonFlags.key_compromise), *good)
    assert (caught.value.stage, caught.value.code) == ("revocation", "certificate-revoked")
    with pytest.raises(CollateralError) as missing:
        with_answers(*good)
    assert missing.value.code == "collateral-missing"
    assert refusal(lambda: with_answers(answer(boot_rom, NOW, unknown=True), *good)) == (
        "revocation",
        "certificate-unknown",
    )
    found = with_answers(*good, outage={"nvidia-ocsp": Tolerance(missing=True)})
    assert [use.kind for use in found.collateral if not use.digest] == ["nvidia-ocsp"]


def test_a_held_rim_signer() -> None:
    device = nvidia().device()
    signer = nvidia().rim_signer
    held = answer(signer, NOW, revoked=x509.ReasonFlags.certificate_hold)
    rest = [one for one in nvidia().endorsements(device) if one != nvidia().answers(signer)[0]]
    found = fake(device, endorsements=(held, *[one for one in rest if not _about(one, signer.certificate)]))
    assert {(one.code, one.claim) for one in found.conditions} == {("certificate-hold", "executables")}


def _about(blob: bytes, certificate: x509.Certificate) -> bool:
    return blob[:1] == b"\x30" and certificate.serial_number.to_bytes(20, "big").lstrip(b"\0") in blob


def test_without_reference_values() -> None:
    device = nvidia().device()
    answers = [*nvidia().answers(device.entity.entities()[1]), *nvidia().answers(nvidia().rim_signer)]
    for rims in ((), (nvidia().rim(device, "driver"),), (nvidia().rim(device, "vbios"),)):
        with pytest.raises(CollateralError) as caught:
            fake(device, endorsements=(*rims, *answers))
        assert caught.value.code == "collateral-missing"
        found = fake(device, endorsements=(*rims, *answers), outage=OUTAGE)
        assert (found.compared, found.rims, found.facts["measurements"]) == (False, (), "not-compared")
        assert "measurements were not compared: no RIM" in found.not_proved


def test_reference_values_of_another_version_or_chip_do_not_count() -> None:
    device, other = nvidia().device(), nvidia().device("BLACKWELL")
    answers = [*nvidia().answers(device.entity.entities()[1]), *nvidia().answers(nvidia().rim_signer)]
    vbios = nvidia().rim(device, "vbios")
    for rim in (nvidia().rim(device, "driver", version="550.90.08"), nvidia().rim(other, "driver")):
        with pytest.raises(CollateralError) as caught:
            fake(device, endorsements=(vbios, rim, *answers))
        assert caught.value.code == "collateral-missing"


def test_measurements_that_do_not_match() -> None:
    device = nvidia().device()
    whole = nvidia().endorsements(device)
    device.measurements[8], device.measurements[3] = bytes(48), bytes(48)
    found = fake(device, endorsements=whole)
    assert [(one.index, one.part) for one in found.mismatches] == [(3, "vbios"), (8, "driver")]
    (condition,) = found.conditions
    assert (condition.code, condition.claim, condition.value) == ("measurement-mismatch", "executables", 96)
    assert "3 (vbios), 8 (driver)" in condition.text
    assert found.facts["measurements"] == "mismatch"
    del device.measurements[63], device.measurements[9]
    device.measurements[8], device.measurements[3] = (
        nvidia().device().measurements[8],
        nvidia().device().measurements[3],
    )
    assert [one.index for one in fake(device, endorsements=whole).mismatches] == [9]  # one that is missing


def _with_rims(device: FakeDevice, *rims: bytes) -> tuple[bytes, ...]:
    answers = [*nvidia().answers(device.entity.entities()[1]), *nvidia().answers(nvidia().rim_signer)]
    return (*rims, *answers)


def test_alternatives_and_the_measurement_of_nvdec0() -> None:
    device = nvidia().device()
    mine = device.measurements
    vbios = nvidia().rim(device, "vbios")
    other = nvidia().rim(device, "driver", values={7: [bytes(48), mine[7]], 35: [bytes(48)]})
    assert fake(device, endorsements=_with_rims(device, vbios, other)).mismatches == ()
    device.opaque[nvopaque.NVDEC0_STATUS] = ON
    assert [one.index for one in fake(device, endorsements=_with_rims(device, vbios, other)).mismatches] == [
        35
    ]
    del device.opaque[nvopaque.NVDEC0_STATUS]
    assert [one.index for one in fake(device, endorsements=_with_rims(device, vbios, other)).mismatches] == [
        35
    ]


def test_two_rims_that_claim_one_measurement_or_none() -> None:
    device = nvidia().device()
    driver, vbios = nvidia().rim(device, "driver"), nvidia().rim(device, "vbios")
    both = nvidia().rim(device, "vbios", values={7: [device.measurements[7]]})
    empty = nvidia().rim(device, "driver", values={index: [] for index in range(7, 10)})
    for rims in ((driver, both), (empty, vbios)):
        assert refusal(lambda rims=rims: fake(device, endorsements=_with_rims(device, *rims))) == (
            "rim",
            "rim-conflict",
        )


def test_a_crowd_of_files_hides_no_reference_values() -> None:
    # Where a policy decides without RIMs, one that is there still counts.
    device = nvidia().device()
    driver, vbios = nvidia().rim(device, "driver"), nvidia().rim(device, "vbios")
    device.measurements[7] = bytes(48)
    allowed = {"nvidia-rim": Tolerance(missing=True)}
    junk = [b"<" + f"{number} {DRIVER} {GPU_VBIOS}".encode() for number in range(129)]
    found = fake(device, endorsements=_with_rims(device, *junk[:64], driver, vbios), outage=allowed)
    assert found.compared
    assert [one.index for one in found.mismatches] == [7]
    crowded = _with_rims(device, *junk, driver, vbios)
    assert refusal(lambda: fake(device, endorsements=crowded, outage=allowed)) == ("parse", "too-large")


def test_forged_rims_beside_good_ones_block_nothing_and_alone_are_refused() -> None:
    device = nvidia().device()
    driver, vbios = nvidia().rim(device, "driver"), nvidia().rim(device, "vbios")
    forged = driver.replace(device.measurements[7].hex().encode(), bytes(48).hex().encode())
    broken = driver[:-30]
    found = fake(device, endorsements=_with_rims(device, broken, forged, driver, vbios))
    assert found.mismatches == ()
    assert refusal(lambda: fake(device, endorsements=_with_rims(device, forged, vbios))) == (
        "rim",
        "rim-digest",
    )
    assert refusal(lambda: fake(device, endorsements=_with_rims(device, broken, vbios))) == (
        "parse",
        "malformed-xml",
    )


def test_of_several_boards_manifests_the_one_that_matches_is_taken() -> None:
    device = nvidia().device()
    driver, vbios = nvidia().rim(device, "driver"), nvidia().rim(device, "vbios")
    board = nvidia().rim(device, "vbios", values={0: [bytes(48)], 1: [bytes(48)]})
    assert fake(device, endorsements=_with_rims(device, driver, board, vbios)).mismatches == ()
    assert len(fake(device, endorsements=_with_rims(device, driver, board)).mismatches) == 2


def test_a_chip_that_the_report_names_more_exactly() -> None:
    device = nvidia().device()
    device.opaque[nvopaque.CHIP_INFO] = b"GH100\0"
    assert fake(device).compared


STATES: list[tuple[dict[str, str], list[str]]] = [
    ({}, []),
    ({"devtools": "on"}, ["debug"]),
    ({"cc_feature": "off"}, ["confidential-mode-off"]),
    ({"environment": "simulation"}, ["confidential-mode-off"]),
    ({"environment": "unavailable", "devtools": "on"}, ["debug", "confidential-mode-off"]),
    ({"multi_gpu": "protected-pcie", "cc_feature": "off"}, ["contradictory-mode"]),
    ({"multi_gpu": "nvlink-encrypted"}, []),
    ({"multi_gpu": "unknown"}, []),  # an older driver
]


@pytest.mark.parametrize(("changes", "codes"), STATES)
def test_what_the_driver_says(changes: dict[str, str], codes: list[str]) -> None:
    device = nvidia().device()
    stated = Stated.model_validate(BEST_STATE.to_json() | changes)
    found = verify(device.document(NONCE, stated=stated), device)
    assert [one.code for one in found.conditions] == codes
    assert found.facts["stated"] == stated.to_json()


def test_without_the_drivers_word_developer_tools_may_be_on() -> None:
    device = nvidia().device()
    found = verify(device.document(NONCE, stated=None), device)
    assert [one.code for one in found.conditions] == ["debug-unstated"]
    sdk = json.dumps([device.sdk(NONCE)]).encode()
    assert [one.code for one in verify(sdk, device).conditions] == ["debug-unstated"]


def test_flags_of_a_certificate_and_unknown_fields() -> None:
    device = nvidia().device("BLACKWELL", flags=0x10)
    device.opaque[77] = b"?"
    device.opaque[nvopaque.FEATURE_FLAG] = b"\7"
    codes = [one.code for one in fake(device).conditions]
    assert codes == ["unknown-bits", "debug", "unknown-bits"]
    assert [one.code for one in fake(nvidia().device("BLACKWELL", flags=0x60)).conditions] == ["debug"]
    found = fake(
        nvidia().device("BLACKWELL", flags=0x80)
    )  # notConfigured: a fact, as on Blackwell as it ships
    assert found.conditions == ()
    assert found.facts["dice_flags"] == ["notConfigured"]


def test_a_bare_report_takes_its_certificates_from_the_endorsements() -> None:
    device, other = nvidia().device(), nvidia().device()
    evidence = GpuEvidence.parse(device.report(NONCE))
    whole = (*nvidia().endorsements(device), *_chain(device))

    def run(*blobs: bytes) -> VerifiedGpu:
        return verify_nvgpu(evidence, Endorsements.detect(blobs), expected_nonce=NONCE, context=context())

    assert run(*whole, *_chain(device)).compared
    assert refusal(lambda: run(*whole, *_chain(other))) == ("parse", "malformed-chain")
    assert refusal(lambda: run(*nvidia().endorsements(device))) == ("parse", "malformed-chain")


def test_the_cache_changes_nothing() -> None:
    device = nvidia().device()
    device.measurements[8] = bytes(48)
    assert fake(device, work=None).facts == fake(device).facts == fake(device).facts


def test_the_version_of_the_driver_stands_in_the_proofs() -> None:
    found = fake(nvidia().device())
    assert DRIVER in found.proofs[0].what
    assert [one.what for one in found.proofs[-2:]] == [
        f"reference values of driver {DRIVER}",
        "reference values of vbios 96.00.9F.00.01",
    ]


def test_a_verification_error_is_one() -> None:
    with pytest.raises(VerificationError):
        fake(nvidia().device(), roots=frozenset({bytes(32)}))
