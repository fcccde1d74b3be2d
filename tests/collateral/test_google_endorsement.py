"""Google's launch endorsements, under a root of the tests' own: none with its root is public here."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from sealwright.collateral.need import Need
from sealwright.collateral.sources import examine
from sealwright.endorsement.google import LaunchEndorsement
from sealwright.endorsement.protobuf import Message
from sealwright.endorsement.roots import anchors
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import CollateralError, EvidenceFormatError, VerificationError
from sealwright.testing.google_endorsement import FakeGoogle, field, varint
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context, WorkCache
from sealwright.verify.google_endorsement import VerifiedLaunchEndorsement, verify_launch_endorsement

NOW = datetime(2025, 6, 20, tzinfo=UTC)
SNP, SVSM, MRTD, OTHER = (bytes([number]) * 48 for number in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def google() -> FakeGoogle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return FakeGoogle(NOW)


def context(google: FakeGoogle, at: datetime = NOW, **more: object) -> Context:
    return Context(at=at, roots=frozenset({fingerprint(google.root)}), **more)  # type: ignore[arg-type]


def verified(google: FakeGoogle, raw: bytes, at: datetime = NOW) -> VerifiedLaunchEndorsement:
    return verify_launch_endorsement(LaunchEndorsement.parse(raw), [google.root], context=context(google, at))


def refused(google: FakeGoogle, raw: bytes, *, code: str, at: datetime = NOW) -> None:
    with pytest.raises((VerificationError, CollateralError)) as caught:
        verified(google, raw, at)
    assert (caught.value.code, caught.value.stage) == (code, "launch-endorsement")


def test_what_is_endorsed(google: FakeGoogle) -> None:
    raw = google.endorse(sev_snp={0: SVSM, 4: SNP}, tdx=[(16, True, MRTD)])
    found = verified(google, raw)
    assert found.registers == {"measurement": {SNP, SVSM}, "mrtd": {MRTD}}
    assert (found.golden.timestamp, found.golden.cl_spec, found.golden.sev_snp_svn) == (NOW, 712, 3)
    assert found.golden.sev_snp_policy == 0x70000
    assert (found.golden.tdx[0].ram_gib, found.golden.tdx[0].early_accept) == (16, True)
    assert found.root == fingerprint(google.root)
    assert [proof.by for proof in found.proofs] == ["GCE-uefi-signer", "GCE-cc-tcb-root"]
    found.require("measurement", SNP)
    found.require("mrtd", MRTD)
    for register, value in (
        ("measurement", MRTD),
        ("mrtd", SNP),
        ("mrtd", b""),
        ("rtmr0", MRTD),
        ("mrtd", OTHER),
    ):
        with pytest.raises(VerificationError) as caught:
            found.require(register, value)
        assert caught.value.code == "launch-not-endorsed"


def test_only_verification_makes_one(google: FakeGoogle) -> None:
    found = verified(google, google.endorse(tdx=[(1, False, MRTD)]))
    with pytest.raises(TypeError):
        VerifiedLaunchEndorsement(
            registers=found.registers,
            golden=found.golden,
            proofs=(),
            root=found.root,
            until=found.until,
            _made_by=object(),
        )


def test_a_root_counts_if_it_is_named(google: FakeGoogle) -> None:
    parsed = LaunchEndorsement.parse(google.endorse(tdx=[(1, False, MRTD)]))
    for roots in (frozenset[bytes](), frozenset(fingerprint(root) for root in anchors("google"))):
        with pytest.raises(VerificationError) as caught:
            verify_launch_endorsement(
                parsed, [google.root, *anchors("google")], context=Context(at=NOW, roots=roots)
            )
        assert caught.value.code == "unknown-root"
    with pytest.raises(VerificationError) as caught:
        verify_launch_endorsement(parsed, [], context=context(google))
    assert caught.value.code == "unknown-root", "naming is not enough: its bytes have to be there"


def test_signers(google: FakeGoogle) -> None:
    tdx = [(1, False, MRTD)]
    other = google.certificate("GCE-uefi-signer", rsa.generate_private_key(65537, 2048))
    refused(google, google.endorse(tdx=tdx, signer=other), code="bad-signature")
    forged = google.certificate("GCE-uefi-signer", google.key, issuer_key=google.key)
    refused(google, google.endorse(tdx=tdx, signer=forged), code="bad-certificate")
    refused(google, google.endorse(tdx=tdx, signer=google.root), code="bad-certificate")
    short = google.certificate("GCE-uefi-signer", google.key, days=1)
    refused(
        google, google.endorse(tdx=tdx, signer=short), code="certificate-expired", at=NOW + timedelta(days=2)
    )
    elliptic = (
        x509.CertificateBuilder(
            google.root.subject, google.root.subject, ec.generate_private_key(ec.SECP256R1()).public_key(), 7
        )
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=9))
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True
        )
        .sign(google.root_key, SHA256())
    )
    refused(google, google.endorse(tdx=tdx, signer=elliptic), code="bad-certificate")
    usage = (
        x509.CertificateBuilder(google.root.subject, google.signer.subject, google.key.public_key(), 8)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=9))
        .sign(google.root_key, SHA256())
    )
    refused(google, google.endorse(tdx=tdx, signer=usage), code="bad-certificate")


def test_not_from_the_future(google: FakeGoogle) -> None:
    raw = google.endorse(tdx=[(1, False, MRTD)], timestamp=NOW + timedelta(hours=1))
    refused(google, raw, code="collateral-not-yet")
    assert verified(google, raw, NOW + timedelta(hours=2))


def test_every_flipped_byte_is_refused(google: FakeGoogle) -> None:
    raw = google.endorse(sev_snp={1: SNP}, tdx=[(1, False, MRTD)])
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises((EvidenceFormatError, VerificationError, CollateralError)):
            pytest.fail(f"byte {at}: {verified(google, changed)}")


def test_a_cache_of_signatures_does_not_take_one_for_another(google: FakeGoogle) -> None:
    cache = WorkCache()
    good = google.endorse(tdx=[(1, False, MRTD)])
    for _ in range(2):
        verify_launch_endorsement(
            LaunchEndorsement.parse(good), [google.root], context=context(google, work=cache)
        )
    parsed = LaunchEndorsement.parse(good)
    moved = LaunchEndorsement(
        unverified=parsed.unverified,
        unverified_certificate=parsed.unverified_certificate,
        unverified_bundle=(),
        signed=parsed.signed + parsed.signature[:1],
        signature=parsed.signature[1:],
    )
    with pytest.raises(VerificationError):
        verify_launch_endorsement(moved, [google.root], context=context(google, work=cache))


def test_a_field_of_a_later_version_is_passed_over_where_it_is_signed(google: FakeGoogle) -> None:
    raw = google.endorse(tdx=[(1, False, MRTD)], more=field(99, b"later"))
    assert verified(google, raw).registers["mrtd"] == {MRTD}
    with pytest.raises(EvidenceFormatError):
        LaunchEndorsement.parse(raw + field(3, b"around it"))


@pytest.mark.parametrize(
    "more",
    [
        field(4, b"another certificate"),
        field(7, field(2, field(1, 4) + field(2, SNP)) + field(2, field(1, 4) + field(2, OTHER))),
        field(7, field(2, field(2, SNP))),
        field(7, field(2, field(1, 4) + field(2, SNP[:-1]))),
        field(7, field(2, field(1, 4) + field(2, SNP) + field(3, 1))),
        field(8, field(2, field(3, MRTD) + field(2, 2))),
        field(8, field(2, field(3, b""))),
        field(8, b"\x08\x80\x00"),
        field(8, b"\x0d\0\0\0\0"),
        field(8, b"\x0b"),
        field(8, b"\x08"),
        field(8, b"\x08" + b"\xff" * 10 + b"\x01"),
        field(8, 1),
        varint(0) + b"\0",
        field(6, b"no PEM"),
        b"\xff",
    ],
)
def test_one_reading_or_none(google: FakeGoogle, more: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        LaunchEndorsement.parse(google.endorse(more=more))


def test_lengths_and_times(google: FakeGoogle) -> None:
    certificate = field(4, google.signer.public_bytes(Encoding.DER))
    for golden in (
        certificate,
        field(1, b"") + certificate,
        field(1, field(1, 1 << 60)) + certificate,
        field(1, field(1, 5)) + field(4, b""),
        field(1, field(1, 5)) + certificate + field(5, b"short"),
    ):
        with pytest.raises(EvidenceFormatError):
            LaunchEndorsement.parse(google.sign(golden))
    for raw in (b"", field(1, b"x"), field(2, b"x"), bytes(256 * 1024 + 1)):
        with pytest.raises(EvidenceFormatError):
            LaunchEndorsement.parse(raw)


@given(st.binary(max_size=300))
def test_garbage(raw: bytes) -> None:
    for one in (
        raw,
        field(1, raw) + field(2, b"s"),
        field(1, field(7, raw) + field(1, field(1, 1))) + field(2, b"s"),
    ):
        with pytest.raises(EvidenceFormatError):
            LaunchEndorsement.parse(one)


@given(
    st.lists(
        st.tuples(st.integers(1, 1 << 20), st.integers(0, (1 << 64) - 1) | st.binary(max_size=40)), max_size=9
    )
)
def test_fields_are_read_as_they_were_written(fields: list[tuple[int, int | bytes]]) -> None:
    message = Message.parse(b"".join(field(number, value) for number, value in fields))
    for number, _ in fields:
        assert message.fields[number] == [value for other, value in fields if other == number]


def test_the_fetched_one_is_about_the_measurement(google: FakeGoogle) -> None:
    raw = google.endorse(sev_snp={1: SNP}, tdx=[(1, False, MRTD)])
    assert examine(Need("google-endorsement", f"tdx:{MRTD.hex()}"), [raw]).issued == NOW
    assert examine(Need("google-endorsement", f"sevsnp:{SNP.hex()}"), [raw]).issued == NOW
    with pytest.raises(EvidenceFormatError):
        examine(Need("google-endorsement", f"sevsnp:{MRTD.hex()}"), [raw])
    examine(Need("google-root", "1"), [google.root.public_bytes(Encoding.DER)])
