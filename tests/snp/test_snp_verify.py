"""Every refusal and every condition of `verify_snp`, with fake AMDs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from tests.snp.support import AT, DATA, NO_CRL, NOW, platform, refused, verify, verify_fake

from sealwright.endorsement.amd import MAX_SIGNERS
from sealwright.errors import CollateralError, EvidenceFormatError, RevokedError, VerificationError
from sealwright.evidence.snp import SIGNED_SIZE, SnpReport
from sealwright.evidence.snp_fields import TcbVersion
from sealwright.testing.snp import FakeAmd, SnpTestPlatform, der_integer, ia5
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Tolerance, WorkCache
from sealwright.verify.snp import MAX_VEKS, VerifiedSnp


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _with_vek(fake: SnpTestPlatform, vek: x509.Certificate) -> list[bytes]:
    return [_der(vek), *fake.endorsements()[1:]]


@pytest.fixture(scope="module")
def genoa() -> SnpTestPlatform:
    return platform("Genoa")


@pytest.fixture(scope="module")
def vlek() -> SnpTestPlatform:
    return platform("Milan", kind="vlek")


def test_fakes_warn() -> None:
    with pytest.warns(FakePlatformWarning):
        SnpTestPlatform(NOW)


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("kind", ["vcek", "vlek"])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_fake_of_every_kind(product: Any, kind: Any, version: int) -> None:
    fake = platform(product, kind=kind)
    verified = verify_fake(
        fake, fake.report(DATA, version=version, measurement=b"m" * 48, host_data=b"h" * 32)
    )
    assert (verified.product, verified.signing_key, verified.conditions) == (product, kind, ())
    assert verified.registers["measurement"] == b"m" * 48
    assert verified.registers["host_data"] == b"h" * 32
    assert (verified.chip_id, verified.csp_id) == (
        (fake.hwid, None) if kind == "vcek" else (None, fake.csp_id)
    )
    assert not verified.vendor_root
    assert verified.root == fake.root_fingerprint
    assert verified.until == NOW + timedelta(days=365)  # of the CRL
    assert verified.facts["reported_tcb"] == fake.tcb.to_json()


def test_nobody_else_makes_a_verified(genoa: SnpTestPlatform) -> None:
    verified = verify_fake(genoa)
    fields = {name: getattr(verified, name) for name in VerifiedSnp.__dataclass_fields__}
    with pytest.raises(TypeError):
        VerifiedSnp(**fields | {"_made_by": object()})


@pytest.mark.parametrize("data", [b"", DATA[:-1], DATA + b"\0", bytes(64), DATA[:63] + b"x"])
def test_other_report_data(genoa: SnpTestPlatform, data: bytes) -> None:
    with refused("report-data", "report-data-mismatch", VerificationError):
        verify_fake(genoa, data=data)


def test_report_without_signature(genoa: SnpTestPlatform) -> None:
    for key_info in (7 << 2, 2, 2 | 1 << 2):
        raw = genoa.report(DATA, key_info=key_info)[:SIGNED_SIZE] + bytes(512)
        with refused("key", "report-not-signed", VerificationError):
            verify_fake(genoa, raw)


def test_key_of_the_other_kind(genoa: SnpTestPlatform, vlek: SnpTestPlatform) -> None:
    with refused("key", "vek-missing", CollateralError):
        verify_fake(genoa, genoa.report(DATA, key_info=1 << 2))
    with refused("key", "vek-missing", CollateralError):
        verify_fake(vlek, vlek.report(DATA, key_info=0))


def test_no_certificate_of_the_key(genoa: SnpTestPlatform) -> None:
    with refused("key", "vek-missing", CollateralError):
        verify_fake(genoa, endorsements=genoa.endorsements()[1:])


def test_too_many_certificates_of_keys(genoa: SnpTestPlatform) -> None:
    with refused("parse", "too-large", EvidenceFormatError):
        verify_fake(genoa, endorsements=genoa.endorsements() + [_der(genoa.vek)] * MAX_VEKS)


@pytest.mark.parametrize(
    "changes",
    [
        *[{name: None} for name in ("1", "2", "3.1", "3.2", "3.3", "3.4", "3.7", "3.8", "4")],
        {"1": der_integer(1)},  # Turin's
        {"2": ia5("Venice")},
        {"2": b"\x0c\x05Genoa"},
        {"2": b"\x16\x06Genoa"},
        {"3.1": b"\x02\x01\x8a"},  # negative
        {"3.8": b"\x02\x02\x00\x1b"},  # not the shortest
        {"3.8": b"\x02\x01\x1b\x00"},
        {"3.8": b"\x02\x02\x01\x1b"},  # 283
        {"3.8": b"\x04\x01\x1b"},
        {"3.8": b"\x1b"},
        {"3.5": der_integer(1)},
        {"3.9": der_integer(0)},  # Turin's
        {"3.10": der_integer(0)},
        {"4": bytes(63)},
        {"4": bytes(8)},
        {"4": b"\x04\x41" + bytes(64)},
        {"5": ia5("CN=cloud")},
        {"7": b""},
    ],
)
def test_certificate_of_a_key_out_of_its_format(
    genoa: SnpTestPlatform, changes: dict[str, bytes | None]
) -> None:
    with refused("parse", "malformed-vek", EvidenceFormatError):
        verify_fake(genoa, endorsements=_with_vek(genoa, genoa.certify(changes)))


@pytest.mark.parametrize("changes", [{"5": None}, {"5": b"\x16\x00"}, {"4": bytes(64)}])
def test_certificate_of_a_vlek_out_of_its_format(
    vlek: SnpTestPlatform, changes: dict[str, bytes | None]
) -> None:
    with refused("parse", "malformed-vek", EvidenceFormatError):
        verify_fake(vlek, endorsements=_with_vek(vlek, vlek.certify(changes)))


def test_hwid_as_amd_wrote_it_for_some_time(genoa: SnpTestPlatform) -> None:
    wrapped = genoa.certify({"4": b"\x04\x40" + genoa.hwid})
    assert verify_fake(genoa, endorsements=_with_vek(genoa, wrapped)).chip_id == genoa.hwid


def test_security_versions_from_0_to_255() -> None:
    for number in (0, 0x7F, 0x80, 0xFF):
        tcb = TcbVersion(fmc=None, boot_loader=number, tee=number, snp=number, microcode=number)
        assert verify_fake(platform("Milan", tcb=tcb)).report.reported_tcb == tcb


@pytest.mark.parametrize("name", ["boot_loader", "tee", "snp", "microcode", "fmc"])
def test_key_of_another_tcb(name: str) -> None:
    fake = platform("Turin")
    numbers = fake.tcb.to_json()
    for number in (numbers[name] - 1, numbers[name] + 1):
        other = TcbVersion(**numbers | {name: number})
        with refused("tcb", "tcb-mismatch", VerificationError):
            verify_fake(fake, fake.report(DATA, reported_tcb=other))


def test_key_of_another_chip(genoa: SnpTestPlatform) -> None:
    with refused("chip", "chip-mismatch", VerificationError):
        verify_fake(genoa, genoa.report(DATA, chip_id=genoa.hwid[:-1] + b"x"))
    turin = platform("Turin")
    with refused("chip", "chip-mismatch", VerificationError):
        verify_fake(turin, turin.report(DATA, chip_id=b"87654321".ljust(64, b"\0")))


def test_masked_chip_id_is_a_condition(genoa: SnpTestPlatform, vlek: SnpTestPlatform) -> None:
    verified = verify_fake(genoa, genoa.report(DATA, chip_id=bytes(64)))
    assert [condition.code for condition in verified.conditions] == ["chip-id-masked"]
    assert verified.chip_id == genoa.hwid  # AMD's word for it
    told = verify_fake(vlek, vlek.report(DATA, chip_id=b"c" * 64))
    assert (told.chip_id, told.conditions) == (b"c" * 64, ())


def test_product_is_the_one_of_the_processor(genoa: SnpTestPlatform) -> None:
    with refused("product", "product-mismatch", VerificationError):
        verify_fake(genoa, genoa.report(DATA, cpuid=b"\x19\x01\x01"))
    bergamo = verify_fake(genoa, genoa.report(DATA, cpuid=b"\x19\xa0\x02"))
    assert bergamo.product == "Genoa"


def test_report_of_version_2_gets_its_product_from_the_key() -> None:
    old = {"version": 2, "cpuid": bytes(3)}
    milan, turin = platform("Milan"), platform("Turin")
    assert verify_fake(milan, milan.report(DATA, **old)).product == "Milan"
    with refused("product", "product-mismatch", VerificationError):
        verify_fake(
            turin, turin.report(DATA, **old, **dict.fromkeys(
                ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), bytes(8)
            ))
        )  # fmt: skip


def test_root_that_came_along_is_worth_nothing(genoa: SnpTestPlatform) -> None:
    with refused("chain", "unknown-root", VerificationError):
        verify(genoa.report(DATA), genoa.endorsements())
    other = FakeAmd(NOW, "Genoa", generation=1)
    with refused("chain", "unknown-root", VerificationError):
        verify(genoa.report(DATA), genoa.endorsements(), roots=[other.root_fingerprint])


def test_root_of_another_product_is_not_admitted_for_this_one() -> None:
    """A Milan whose keys are out cannot speak as a Genoa."""
    milan = FakeAmd(NOW, "Milan")
    fake = platform("Genoa", amd=milan)  # its certificate says Genoa, and Milan's ASK signed it
    with refused("chain", "unknown-root", VerificationError):
        verify_fake(fake)


@pytest.mark.parametrize(
    ("kind", "signer", "code"),
    [
        ("vcek", "vlek", "unknown-root"),
        ("vlek", "vcek", "unknown-root"),
        ("vcek", "ark", "bad-certificate"),
        ("vlek", "ark", "bad-certificate"),
    ],
)
def test_keys_signed_by_others(kind: Any, signer: str, code: str) -> None:
    fake = platform("Genoa", kind=kind)
    above = [_der(one) for one in (*fake.amd.signers.values(), fake.amd.ark)]
    with refused("chain", code, VerificationError):
        verify_fake(fake, endorsements=[_der(fake.certify(signer=signer)), *above, fake.crl])


@pytest.mark.parametrize(
    "padding",
    [PSS(mgf=MGF1(SHA256()), salt_length=48), PSS(mgf=MGF1(SHA384()), salt_length=32)],
)
def test_other_signature_schemes(genoa: SnpTestPlatform, padding: PSS) -> None:
    with refused("chain", "bad-certificate", VerificationError):
        verify_fake(genoa, endorsements=_with_vek(genoa, genoa.certify(padding=padding)))


def test_key_on_another_curve(genoa: SnpTestPlatform) -> None:
    fake = platform("Genoa", amd=genoa.amd)
    fake.key = ec.generate_private_key(ec.SECP256R1())
    with refused("chain", "bad-certificate", VerificationError):
        verify_fake(fake, genoa.report(DATA), endorsements=_with_vek(fake, fake.certify()))


def test_none_of_many_asks_hides_the_right_one(genoa: SnpTestPlatform) -> None:
    others = [_der(FakeAmd(NOW, "Genoa", generation=n).signers["vcek"]) for n in (1, 2)]
    assert verify_fake(genoa, endorsements=others + genoa.endorsements())
    vek, ask, *rest = genoa.endorsements()
    assert verify_fake(genoa, endorsements=[vek, *[ask] * (MAX_SIGNERS - 1), *rest])


@pytest.mark.parametrize("at", [NOW - timedelta(minutes=6), NOW + timedelta(days=7 * 365, seconds=1)])
def test_dates_are_checked_whatever_is_remembered(genoa: SnpTestPlatform, at: Any) -> None:
    cache = WorkCache()
    assert verify_fake(genoa, cache=cache)
    for remembered in (cache, WorkCache(), None):
        with refused("chain", "certificate-expired", VerificationError):
            verify_fake(genoa, cache=remembered, at=at)


def test_revoked_ask(vlek: SnpTestPlatform) -> None:
    for kind in ("vcek", "vlek"):
        fake, cache = platform("Milan", kind=kind), WorkCache()
        assert verify_fake(fake, cache=cache)
        fake.revoke(AT)
        for remembered in (cache, None):
            with refused("crl", "certificate-revoked", RevokedError):
                verify_fake(fake, cache=remembered)
        current = [*fake.endorsements(), fake.amd.crl()]  # one that does not list it, older
        with refused("crl", "certificate-revoked", RevokedError):
            verify_fake(fake, endorsements=current)


def test_older_crl_that_is_still_current_counts(genoa: SnpTestPlatform) -> None:
    """AMD has one CRL for VCEKs and one for VLEKs, and nothing in them tells them apart."""
    revoking = genoa.amd.crl([genoa.amd.signers["vcek"]], issued=NOW - timedelta(days=1))
    with refused("crl", "certificate-revoked", RevokedError):
        verify_fake(genoa, endorsements=[*genoa.endorsements(), revoking])
    ended = genoa.amd.crl([genoa.amd.signers["vcek"]], issued=NOW - timedelta(days=400))
    assert verify_fake(genoa, endorsements=[*genoa.endorsements(), ended])


def test_crl_that_is_missing_or_old_or_new(genoa: SnpTestPlatform) -> None:
    without = genoa.endorsements()[:-1]
    with refused("collateral", "collateral-missing", CollateralError):
        verify_fake(genoa, endorsements=without)
    with refused("collateral", "collateral-missing", CollateralError):
        verify_fake(genoa, endorsements=[*without, platform("Milan").crl])  # of another root
    (used,) = verify_fake(genoa, endorsements=without, outage=NO_CRL).collateral
    assert used.digest == b""
    old = [*without, genoa.amd.crl(issued=NOW - timedelta(days=366))]
    for outage in (None, NO_CRL, {"amd-crl": Tolerance(stale=timedelta(hours=24))}):
        with refused("collateral", "collateral-stale", CollateralError):
            verify_fake(genoa, endorsements=old, outage=outage)
    ridden = verify_fake(genoa, endorsements=old, outage={"amd-crl": Tolerance(stale=timedelta(hours=26))})
    assert ridden.collateral[0].stale_s == 25 * 3600
    assert ridden.until == AT + timedelta(hours=1)
    new = genoa.amd.crl(issued=AT + timedelta(days=1))
    with refused("collateral", "collateral-not-yet", CollateralError):
        verify_fake(genoa, endorsements=[*without, new])
    assert verify_fake(genoa, endorsements=[*genoa.endorsements(), new])  # the one that is current is used


def test_forged_crl(genoa: SnpTestPlatform) -> None:
    forged = genoa.amd.crl(signer="vcek")
    for bag in ([*genoa.endorsements()[:-1], forged], [*genoa.endorsements(), forged]):
        with refused("crl", "bad-crl", VerificationError):
            verify_fake(genoa, endorsements=bag)


def test_signature_of_another_key_or_report(genoa: SnpTestPlatform) -> None:
    other = platform("Genoa", amd=genoa.amd)
    with refused("signature", "bad-signature", VerificationError):
        verify_fake(genoa, other.report(DATA))
    one, two = genoa.report(DATA), genoa.report(DATA, guest_svn=1)
    with refused("signature", "bad-signature", VerificationError):
        verify_fake(genoa, one[:SIGNED_SIZE] + two[SIGNED_SIZE:])


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"policy": 0xB0000}, ["debug"]),
        ({"policy": 0x70000}, ["migration"]),
        ({"report_id_ma": bytes(32)}, ["migration"]),
        ({"policy": 0x4030000}, ["unknown-bits"]),
        ({"policy": 1 << 63 | 0x30000}, ["unknown-bits"]),
        ({"platform_info": 0x120}, ["unknown-bits"]),
        ({"platform_info": 0x5}, ["alias-check-incomplete"]),
        ({"platform_info": 0x5, "version": 3}, ["alias-check-incomplete"]),
        ({"policy": 0x3FF0000}, ["debug", "migration"]),
        ({"platform_info": 0xFF}, []),
        ({"committed": (1, 55, 39)}, ["provisional-firmware"]),
        ({"committed": (1, 54, 40)}, ["provisional-firmware"]),
        ({"committed": (2, 0, 0)}, ["provisional-firmware"]),
    ],
)
def test_conditions(genoa: SnpTestPlatform, changes: dict[str, Any], codes: list[str]) -> None:
    verified = verify_fake(genoa, genoa.report(DATA, **changes))
    assert [condition.code for condition in verified.conditions] == codes


@pytest.mark.parametrize("name", ["boot_loader", "tee", "snp", "microcode"])
def test_conditions_of_tcb_versions(genoa: SnpTestPlatform, name: str) -> None:
    numbers = {"fmc": None, **genoa.tcb.to_json()}
    lower = TcbVersion(**numbers | {name: numbers[name] - 1})
    higher = TcbVersion(**numbers | {name: numbers[name] + 1})

    def codes(**changes: TcbVersion) -> list[str]:
        return [condition.code for condition in verify_fake(genoa, genoa.report(DATA, **changes)).conditions]

    assert codes(committed_tcb=lower) == ["provisional-firmware"]
    assert codes(current_tcb=higher) == ["provisional-firmware"]
    assert codes(launch_tcb=lower) == []
    assert codes(launch_tcb=higher) == ["tcb-inconsistent"]
    assert codes(current_tcb=lower, committed_tcb=lower, launch_tcb=lower) == ["tcb-inconsistent"]


def test_same_answer_with_a_small_cache(genoa: SnpTestPlatform, vlek: SnpTestPlatform) -> None:
    cache = WorkCache(count=1)
    for fake in (genoa, vlek, genoa, genoa):
        kept = verify_fake(fake, cache=cache)
        fresh = verify_fake(fake, fake.report(DATA))
        assert (kept.root, kept.proofs[1:], kept.until) == (fresh.root, fresh.proofs[1:], fresh.until)


def test_what_is_remembered_of_one_report_is_not_said_of_another(genoa: SnpTestPlatform) -> None:
    cache = WorkCache()
    changes: list[dict[str, Any]] = [
        {},
        {"policy": 0xB0000},
        {"guest_svn": 7},
        {"vmpl": 1},
        {"platform_info": 0x21},
        {"current": (1, 55, 41)},
        {"report_id": b"i" * 32},
        {"report_id_ma": bytes(32)},
        {"chip_id": bytes(64)},
        {"current_mit_vector": 1},
        {"measurement": b"m" * 48},
        {"id_key_digest": b"k" * 48, "author_key_digest": b"a" * 48, "host_data": b"h" * 32},
    ]
    for change in changes * 2:
        raw = genoa.report(DATA, **change)
        kept, fresh = verify_fake(genoa, raw, cache=cache), verify_fake(genoa, raw)
        assert (kept.facts, kept.conditions, kept.registers) == (
            fresh.facts,
            fresh.conditions,
            fresh.registers,
        )


def test_what_was_remembered_for_one_root_does_not_count_for_others(genoa: SnpTestPlatform) -> None:
    cache = WorkCache()
    assert verify_fake(genoa, cache=cache)
    with refused("chain", "unknown-root", VerificationError):
        verify(genoa.report(DATA), genoa.endorsements(), cache=cache)


def test_parts_of_the_record_are_the_ones_that_were_signed(genoa: SnpTestPlatform) -> None:
    report = SnpReport.parse(genoa.report(DATA))
    assert verify_fake(genoa, report.encode()).report == report
