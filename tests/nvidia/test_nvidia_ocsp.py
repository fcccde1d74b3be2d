"""OCSP answers: who may give them, about what, and how old they may be."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1, SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from tests.nvidia import support
from tests.nvidia.support import DEVICE_TIME, NOW, context, nvidia
from tests.vector_files import vector

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.ocsp import OcspAnswer
from sealwright.errors import CollateralError, EvidenceFormatError, RevokedError, SealwrightError
from sealwright.testing._nvidia_pki import Entity, answer, issue
from sealwright.verify.context import Context, Tolerance
from sealwright.verify.ocsp import check_answer, check_standing

HOUR = timedelta(hours=1)
SIGNING = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])


def boot_rom() -> Entity:
    """Return a boot ROM's key and certificate, of which answers are given."""
    return nvidia().device().entity.entities()[1]


def issuer_of(entity: Entity) -> Entity:
    """Return who made its certificate."""
    assert entity.issuer is not None
    return entity.issuer


def checked(raw: bytes, entity: Entity, *, nonce: bytes | None = None, **changes: object) -> bool:
    """Check an answer; return whether it says: on hold."""
    _, held = check_answer(
        OcspAnswer.parse(raw),
        entity.certificate,
        issuer_of(entity).certificate,
        kind="nvidia-ocsp",
        context=context(work=None, **changes),
        stage="revocation",
        fix="",
        nonce=nonce,
    )
    return held


def refused(raw: bytes, entity: Entity, **changes: object) -> str:
    """Return the code with which an answer is refused."""
    with pytest.raises(SealwrightError) as caught:
        checked(raw, entity, **changes)
    return caught.value.code


def test_good_revoked_held_and_unknown() -> None:
    entity = boot_rom()
    assert not checked(answer(entity, NOW), entity)
    assert checked(answer(entity, NOW, revoked=x509.ReasonFlags.certificate_hold), entity)
    assert refused(answer(entity, NOW, unknown=True), entity) == "certificate-unknown"
    for reason in (
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.superseded,
    ):
        with pytest.raises(RevokedError) as caught:
            checked(answer(entity, NOW, revoked=reason), entity)
        assert caught.value.code == "certificate-revoked"


def test_what_was_revoked_stays_so_however_old_the_answer() -> None:
    entity = boot_rom()
    raw = answer(entity, NOW, revoked=x509.ReasonFlags.key_compromise)
    assert refused(raw, entity, at=NOW + timedelta(days=30)) == "certificate-revoked"


def test_dates() -> None:
    entity = boot_rom()
    raw = answer(entity, NOW)
    assert not checked(raw, entity, at=NOW + timedelta(days=1))
    assert refused(raw, entity, at=NOW - HOUR) == "collateral-not-yet"
    late = NOW + timedelta(days=1, hours=1)
    assert refused(raw, entity, at=late) == "collateral-stale"
    assert not checked(raw, entity, at=late, outage={"nvidia-ocsp": Tolerance(stale=HOUR)})
    assert (
        refused(raw, entity, at=late + HOUR, outage={"nvidia-ocsp": Tolerance(stale=HOUR)})
        == "collateral-stale"
    )


def test_an_answer_without_an_end_is_malformed() -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        OcspAnswer.parse(answer(boot_rom(), NOW, life=None))
    assert caught.value.code == "malformed-ocsp"


def test_an_answer_that_is_an_error_is_malformed() -> None:
    raw = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    with pytest.raises(EvidenceFormatError) as caught:
        OcspAnswer.parse(raw.public_bytes(Encoding.DER))
    assert caught.value.code == "malformed-ocsp"


def test_the_nonce_that_was_sent_has_to_come_back() -> None:
    entity = boot_rom()
    raw = answer(entity, NOW, nonce=bytes(32))
    assert not checked(raw, entity, nonce=bytes(32))
    assert not checked(raw, entity)
    for sent in (bytes(31) + b"\1", bytes(16), b""):
        assert refused(raw, entity, nonce=sent) == "bad-ocsp"
    assert refused(answer(entity, NOW), entity, nonce=bytes(32)) == "bad-ocsp"


def test_an_answer_about_another_certificate() -> None:
    one, other = boot_rom(), boot_rom()
    assert refused(answer(other, NOW), one) == "bad-ocsp"
    # The same serial number by another issuer.
    twin = issue("twin", nvidia().rim_root, NOW, serial=one.certificate.serial_number)
    assert refused(answer(twin, NOW), one) == "bad-ocsp"


def _responder(entity: Entity, **changes: object) -> Entity:
    arguments: dict[str, object] = {"ca": False, "extensions": [(SIGNING, False)]} | changes
    return issue("Another Responder", issuer_of(entity), NOW, **arguments)  # type: ignore[arg-type]


def test_the_issuer_itself_may_answer() -> None:
    entity = boot_rom()
    assert not checked(answer(entity, NOW, responder=issuer_of(entity)), entity)


def test_who_may_not_answer() -> None:
    entity = boot_rom()
    rim_responder = issuer_of(nvidia().rim_signer).responder(NOW)
    unknown_extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    cases = {
        "bad-certificate": [
            _responder(entity, extensions=[]),  # not made for it
            _responder(
                entity, extensions=[(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]
            ),
            _responder(entity, ca=True),
            _responder(entity, usage=usage),
            _responder(entity, extensions=[(SIGNING, False), (unknown_extension, True)]),
            rim_responder,  # of another issuer
            entity,  # about itself
            nvidia().device_root,  # not the issuer, though above it
        ],
    }
    for code, responders in cases.items():
        for responder in responders:
            assert refused(answer(entity, NOW, responder=responder), entity) == code


def test_a_responder_whose_certificate_has_ended() -> None:
    entity = boot_rom()
    responder = _responder(entity, life=timedelta(hours=30))
    raw = answer(entity, NOW, responder=responder)
    assert not checked(raw, entity)
    # A stale answer that the policy admits ended while its responder was valid; a long one did not.
    outage = {"nvidia-ocsp": Tolerance(stale=timedelta(days=9))}
    assert not checked(raw, entity, at=NOW + timedelta(days=5), outage=outage)
    longer = answer(entity, NOW, responder=responder, life=timedelta(days=9))
    assert refused(longer, entity, at=NOW + timedelta(days=5)) == "certificate-expired"


def forged(entity: Entity) -> bytes:
    """Return an answer of an hour ago, made an hour younger."""
    said = [f"{when:%Y%m%d%H%M%SZ}".encode() for when in (NOW - HOUR, NOW)]
    raw = answer(entity, NOW - HOUR)
    assert said[0] in raw
    return raw.replace(*said)


def test_an_answer_that_its_responder_did_not_sign() -> None:
    entity = boot_rom()
    assert OcspAnswer.parse(forged(entity)).this_update == NOW
    assert refused(forged(entity), entity) == "bad-ocsp"


def test_an_answer_whose_responder_is_not_there_and_one_with_a_weak_hash() -> None:
    entity = boot_rom()
    by = issuer_of(entity).responder(NOW)

    def built(algorithm: SHA1 | SHA384, certificates: list[x509.Certificate]) -> bytes:
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                cert=entity.certificate,
                issuer=issuer_of(entity).certificate,
                algorithm=algorithm,
                cert_status=ocsp.OCSPCertStatus.GOOD,
                this_update=NOW,
                next_update=NOW + HOUR,
                revocation_time=None,
                revocation_reason=None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.NAME, by.certificate)
        )
        if certificates:
            builder = builder.certificates(certificates)
        return builder.sign(by.key, SHA384()).public_bytes(Encoding.DER)

    assert not checked(built(SHA384(), [by.certificate]), entity)
    assert refused(built(SHA384(), []), entity) == "bad-ocsp"
    assert refused(built(SHA1(), [by.certificate]), entity) == "bad-ocsp"


def _standing(entity: Entity, responses: list[bytes], **changes: object) -> tuple[int, int]:
    """Return how many certificates have an answer, and how many are held."""
    found = check_standing(
        [entity.certificate, issuer_of(entity).certificate],
        responses,
        kind="nvidia-ocsp",
        context=context(**changes),
        stage="revocation",
        fix="fetch it",
    )
    return sum(bool(use.digest) for use in found.uses), len(found.held)


def test_a_forged_answer_beside_a_good_one_blocks_nothing() -> None:
    entity = boot_rom()
    good = answer(entity, NOW - HOUR)
    newer = forged(entity)
    future = answer(entity, NOW + HOUR)
    junk = b"0\x82\1\0" + entity.certificate.serial_number.to_bytes(9, "big")
    assert _standing(entity, [junk, newer, future, good]) == (1, 0)
    with pytest.raises(SealwrightError) as caught:
        _standing(entity, [newer])
    assert caught.value.code == "bad-ocsp"


def test_the_newest_answer_counts() -> None:
    entity = boot_rom()
    hold = answer(entity, NOW, revoked=x509.ReasonFlags.certificate_hold)
    assert _standing(entity, [answer(entity, NOW - HOUR), hold]) == (1, 1)
    assert _standing(
        entity, [answer(entity, NOW), answer(entity, NOW - HOUR, revoked=x509.ReasonFlags.certificate_hold)]
    ) == (1, 0)
    with pytest.raises(SealwrightError) as caught:
        _standing(entity, [answer(entity, NOW, unknown=True), answer(entity, NOW - HOUR)])
    assert caught.value.code == "certificate-unknown"


@pytest.mark.parametrize("crowd", ["old", "junk"])
def test_a_crowd_of_answers_hides_no_revocation(crowd: str) -> None:
    # What came with the evidence stands before what the verifier has itself.
    entity = boot_rom()
    revoked = answer(entity, NOW, revoked=x509.ReasonFlags.key_compromise)
    serial = entity.certificate.serial_number.to_bytes(9, "big")
    made = {
        "old": lambda number: answer(entity, NOW - HOUR - timedelta(seconds=number)),
        "junk": lambda number: b"0\x82\1\0" + bytes([number]) + serial,
    }[crowd]
    with pytest.raises(RevokedError):
        _standing(entity, [*map(made, range(64)), revoked], outage={"nvidia-ocsp": Tolerance(missing=True)})
    with pytest.raises(EvidenceFormatError) as caught:
        _standing(entity, [*map(made, range(129)), revoked], outage={"nvidia-ocsp": Tolerance(missing=True)})
    assert caught.value.code == "too-large"


def test_no_answer_at_all() -> None:
    entity = boot_rom()
    with pytest.raises(CollateralError, match="fetch it") as caught:
        _standing(entity, [])
    assert caught.value.code == "collateral-missing"
    assert _standing(entity, [], outage={"nvidia-ocsp": Tolerance(missing=True)}) == (0, 0)


def test_no_byte_of_nvidias_answer_can_change() -> None:
    """All bytes: what is accepted would be listed here, and nothing is."""
    chain = Endorsements.detect([vector(support.HOPPER_CHAIN)]).certificates
    raw = base64.b64decode(vector(support.OCSP[0]))
    (certificate,) = [
        one for one in chain if one.serial_number == OcspAnswer.parse(raw).response.serial_number
    ]
    issuer = next(one for one in chain if one.subject == certificate.issuer)
    accepted = []
    for offset in range(len(raw)):
        flipped = bytearray(raw)
        flipped[offset] ^= 1 << offset % 8
        try:
            check_answer(
                OcspAnswer.parse(bytes(flipped)),
                certificate,
                issuer,
                kind="nvidia-ocsp",
                context=Context(at=DEVICE_TIME),
                stage="revocation",
                fix="",
            )
        except SealwrightError:
            continue
        accepted.append(offset)
    assert accepted == []


@given(st.binary(max_size=100))
def test_parsing_raises_its_own_error_only(data: bytes) -> None:
    whole = _whole()
    for raw in (data, whole[:50] + data + whole[50:], whole[: -len(data)] + data):
        if raw == whole:
            continue
        with pytest.raises(EvidenceFormatError):
            OcspAnswer.parse(raw if raw[:1] != b"\x30" or raw == data else raw + b"\0")


def _whole() -> bytes:
    return answer(nvidia().rim_signer, NOW)
