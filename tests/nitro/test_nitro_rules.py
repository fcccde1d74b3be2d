"""Documents of a platform of our own: the format's rules, every refusal of verification, properties, appraisal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.nitro.support import NOW, REPORT, check, new_platform

from sealwright.appraisal.nitro import NitroRules
from sealwright.crypto.cbor import Tagged, encode
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.nitro import MAX_DOCUMENT, NitroDocument
from sealwright.testing.nitro import FakePlatformWarning, NitroTestPlatform, issue
from sealwright.verify.context import Context, WorkCache
from sealwright.verify.nitro import SKEW, VerifiedNitro, verify_nitro

PLATFORM = new_platform()
CONTEXT = Context(at=NOW + timedelta(seconds=5), roots=frozenset({PLATFORM.root_fingerprint}))
TRUSTED = {"roots": [PLATFORM.root_fingerprint.hex()], "registers": {"pcr0": ["01" * 48]}}


def genuine(raw: bytes, context: Context = CONTEXT) -> VerifiedNitro:
    return check(raw, report_data=REPORT, context=context)


def refused(
    raw: bytes, stage: str, code: str, context: Context = CONTEXT, report_data: bytes = REPORT
) -> None:
    with pytest.raises(VerificationError) as caught:
        check(raw, report_data=report_data, context=context)
    assert (caught.value.stage, caught.value.code) == (stage, code)


def test_the_platform_warns() -> None:
    with pytest.warns(FakePlatformWarning):
        NitroTestPlatform(NOW)


@pytest.mark.parametrize("kind", ["enclave", "nitrotpm"])
@pytest.mark.parametrize("tagged", [False, True])
def test_genuine(kind: Any, tagged: bool) -> None:
    payload = encode(PLATFORM.payload(kind, user_data=REPORT, nonce=b"n", public_key=b"key"))
    raw = PLATFORM.sign(payload, tagged=tagged)
    verified = genuine(raw)
    assert (verified.platform, verified.document.kind, verified.document.tagged) == ("nitro", kind, tagged)
    assert (verified.report_data, verified.age_s, verified.conditions) == (REPORT, 5, ())
    assert not verified.vendor_root
    assert verified.root == PLATFORM.root_fingerprint
    assert verified.registers["pcr8"] == b"\x09" * 48
    assert verified.facts["public_key"] == "a2V5"
    assert verified.facts["nonce"] == "bg"
    assert verified.until == PLATFORM.signer.certificate.not_valid_after_utc
    assert len(verified.proofs) == 6
    assert verified.document.encode() == raw


def test_a_payload_of_indefinite_lengths_is_genuine() -> None:
    members = PLATFORM.payload(user_data=REPORT)
    bundle = b"\x9f" + b"".join(encode(one) for one in members["cabundle"]) + b"\xff"
    pcrs = (
        b"\xbf"
        + b"".join(encode(index) + encode(value) for index, value in members["pcrs"].items())
        + b"\xff"
    )
    written = {name: encode(value) for name, value in members.items()} | {"cabundle": bundle, "pcrs": pcrs}
    payload = b"\xbf" + b"".join(encode(name) + value for name, value in written.items()) + b"\xff"
    assert genuine(PLATFORM.sign(payload)).document.payload == payload


# --- the format ---


def member(name: str, value: object) -> Callable[[], bytes]:
    return lambda: PLATFORM.document(REPORT, **{name: value})


def without(name: str) -> Callable[[], bytes]:
    members = PLATFORM.payload(user_data=REPORT)
    del members[name]
    return lambda: PLATFORM.sign(encode(members))


def cose(*items: object) -> Callable[[], bytes]:
    return lambda: encode(list(items))


HEADER = encode({1: -35})
PAYLOAD = encode(PLATFORM.payload(user_data=REPORT))
SIGNATURE = bytes(96)
MALFORMED: dict[str, Callable[[], bytes]] = {
    "module_id empty": member("module_id", ""),
    "module_id bytes": member("module_id", b"i-1"),
    "module_id unprintable": member("module_id", "i-\x1b[0m"),
    "digest other": member("digest", "SHA256"),
    "digest null": member("digest", None),
    "timestamp zero": member("timestamp", 0),
    "timestamp negative": member("timestamp", -1),
    "timestamp true": member("timestamp", True),
    "timestamp text": member("timestamp", "1"),
    "timestamp past every calendar": member("timestamp", (1 << 64) - 1),
    "pcrs empty": member("pcrs", {}),
    "pcrs of 33": member("pcrs", {index: bytes(48) for index in range(33)}),
    "pcr index 32": member("pcrs", {32: bytes(48)}),
    "pcr index -1": member("pcrs", {-1: bytes(48)}),
    "pcr index text": member("pcrs", {"0": bytes(48)}),
    "pcr of 47": member("pcrs", {0: bytes(47)}),
    "pcr text": member("pcrs", {0: "0" * 48}),
    "pcrs array": member("pcrs", [bytes(48)]),
    "certificate empty": member("certificate", b""),
    "certificate of 1025": member("certificate", bytes(1025)),
    "cabundle empty": member("cabundle", []),
    "cabundle of 9": member("cabundle", [b"c"] * 9),
    "cabundle element empty": member("cabundle", [b""]),
    "cabundle element of 1025": member("cabundle", [bytes(1025)]),
    "cabundle element text": member("cabundle", ["c"]),
    "cabundle null": member("cabundle", None),
    "public_key empty": member("public_key", b""),
    "public_key of 1025": member("public_key", bytes(1025)),
    "user_data of 513": lambda: PLATFORM.document(bytes(513)),
    "user_data text": lambda: PLATFORM.document("text"),
    "nonce of 513": member("nonce", bytes(513)),
    "nonce false": member("nonce", False),
    "unknown member": member("more", 1),
    "both kinds of registers": member("nitrotpm_pcrs", {0: bytes(48)}),
    "no registers": without("pcrs"),
    "no module_id": without("module_id"),
    "no digest": without("digest"),
    "no timestamp": without("timestamp"),
    "no certificate": without("certificate"),
    "no cabundle": without("cabundle"),
    "payload an array": lambda: PLATFORM.sign(encode([1])),
    "payload not CBOR": lambda: PLATFORM.sign(b"\xff"),
    "payload empty": cose(HEADER, {}, b"", SIGNATURE),
    "payload detached": cose(HEADER, {}, None, SIGNATURE),
    "payload too large": cose(HEADER, {}, bytes(16385), SIGNATURE),
    "algorithm in the unprotected header": cose(b"", {1: -35}, PAYLOAD, SIGNATURE),
    "unprotected header not empty": cose(HEADER, {4: b"kid"}, PAYLOAD, SIGNATURE),
    "unprotected header null": cose(HEADER, None, PAYLOAD, SIGNATURE),
    "protected header with more": cose(encode({1: -35, 4: b"kid"}), {}, PAYLOAD, SIGNATURE),
    "protected header a map": cose({1: -35}, {}, PAYLOAD, SIGNATURE),
    "ES256": cose(encode({1: -7}), {}, PAYLOAD, SIGNATURE),
    "ES512": cose(encode({1: -36}), {}, PAYLOAD, SIGNATURE),
    "signature of 95": cose(HEADER, {}, PAYLOAD, bytes(95)),
    "signature of 97": cose(HEADER, {}, PAYLOAD, bytes(97)),
    "three items": cose(HEADER, {}, PAYLOAD),
    "five items": cose(HEADER, {}, PAYLOAD, SIGNATURE, SIGNATURE),
    "another tag": lambda: b"\xd1" + PLATFORM.document(REPORT),
    "two tags": lambda: encode(Tagged(18, Tagged(18, [HEADER, {}, PAYLOAD, SIGNATURE]))),
    "an indefinite outer array": lambda: b"\x9f" + PLATFORM.document(REPORT)[1:] + b"\xff",
    "an indefinite outer payload": lambda: PLATFORM.document(REPORT).replace(
        encode(PAYLOAD), b"\x5f" + encode(PAYLOAD) + b"\xff"
    ),
    "a byte more": lambda: PLATFORM.document(REPORT) + b"\0",
    "a byte less": lambda: PLATFORM.document(REPORT)[:-1],
    "too large": lambda: bytes(MAX_DOCUMENT + 1),
    "nothing": bytes,
}


@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED)
def test_malformed(make: Callable[[], bytes]) -> None:
    with pytest.raises(EvidenceFormatError):
        NitroDocument.parse(make())


def test_a_member_that_stands_twice_is_malformed() -> None:
    twice = encode(PLATFORM.payload(user_data=REPORT))
    twice = bytes([twice[0] + 1]) + twice[1:] + encode("user_data") + encode(b"other")
    with pytest.raises(EvidenceFormatError) as caught:
        NitroDocument.parse(PLATFORM.sign(twice))
    assert caught.value.code == "duplicate-key"


@pytest.mark.parametrize(
    ("changes"),
    [
        {"user_data": bytes(512), "nonce": bytes(512), "public_key": bytes(1024)},
        {"user_data": b"", "nonce": b"", "public_key": b"k"},
        {"pcrs": {index: bytes(32) for index in range(32)}},
        {"pcrs": {31: bytes(64)}},
    ],
)
def test_the_limits_themselves_are_accepted(changes: dict[str, Any]) -> None:
    raw = PLATFORM.sign(encode(PLATFORM.payload(**changes)))
    assert NitroDocument.parse(raw).encode() == raw


@given(st.binary(max_size=300))
def test_the_parser_raises_only_its_own_error(raw: bytes) -> None:
    with contextlib.suppress(EvidenceFormatError):
        NitroDocument.parse(raw)


@given(st.data())
@settings(max_examples=150)
def test_the_parser_raises_only_its_own_error_for_mutations(data: st.DataObject) -> None:
    raw = bytearray(PLATFORM.sign(PAYLOAD))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw) - 1))
        raw[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(EvidenceFormatError):
        assert NitroDocument.parse(bytes(raw)).encode() == bytes(raw)


# --- verification ---


@pytest.mark.parametrize("other", [b"", REPORT[:-1], REPORT + b"\0", bytes(64), REPORT[:32] + bytes(32)])
def test_other_report_data_is_refused(other: bytes) -> None:
    refused(PLATFORM.document(REPORT), "report-data", "report-data-mismatch", report_data=other)


def test_report_data_in_another_member_is_refused() -> None:
    for name in ("nonce", "public_key"):
        raw = PLATFORM.sign(encode(PLATFORM.payload(**{name: REPORT})))
        refused(raw, "report-data", "report-data-mismatch")


def test_a_root_that_came_along_is_no_anchor() -> None:
    refused(PLATFORM.document(REPORT), "chain", "unknown-root", context=Context(at=NOW))


def test_the_pinned_root_in_front_of_another_chain_is_refused() -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    from sealwright.endorsement.roots import anchors

    pinned = anchors("aws")[0].public_bytes(Encoding.DER)
    bundle = [pinned, PLATFORM.region.der, PLATFORM.zone.der, PLATFORM.instance.der]
    refused(PLATFORM.document(REPORT, cabundle=bundle), "chain", "unknown-root")


BUNDLE = [one.der for one in (PLATFORM.root, PLATFORM.region, PLATFORM.zone, PLATFORM.instance)]


@pytest.mark.parametrize(
    ("bundle", "code"),
    [
        (BUNDLE[::-1], "bad-certificate"),
        (BUNDLE[:1] + BUNDLE[2:0:-1] + BUNDLE[3:], "bad-certificate"),
        (BUNDLE[1:], "unknown-root"),
        (BUNDLE[:3], "unknown-root"),
        ([*BUNDLE, PLATFORM.signer.der], "bad-certificate"),
        ([BUNDLE[0], *BUNDLE], "bad-certificate"),
        ([BUNDLE[0]] * 8, "bad-certificate"),
        ([issue("other", None, NOW, timedelta(days=1), path_length=None).der, *BUNDLE], "bad-certificate"),
    ],
    ids=["leaf first", "swapped", "no root", "no issuer", "leaf too", "root twice", "root only", "one more"],
)
def test_another_bundle_is_refused(bundle: list[bytes], code: str) -> None:
    refused(PLATFORM.document(REPORT, cabundle=bundle), "chain", code)


def test_certificates_that_share_a_name_are_refused_at_once() -> None:
    same = [issue("same", None, NOW, timedelta(days=1), path_length=None).der for _ in range(8)]
    refused(PLATFORM.document(REPORT, cabundle=same), "chain", "bad-certificate")


def test_a_certificate_that_is_not_der_is_malformed() -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        genuine(PLATFORM.document(REPORT, certificate=b"\x30\x00"))
    assert caught.value.code == "malformed-chain"


def test_an_intermediate_by_another_key_of_the_same_name_is_refused() -> None:
    fake = issue("test-1.aws.nitro-enclaves", None, NOW, timedelta(days=20), path_length=2)
    root = issue("aws.nitro-enclaves", None, NOW, timedelta(days=20), path_length=None)
    region = issue("test-1.aws.nitro-enclaves", root, NOW, timedelta(days=20), path_length=2)
    for forged in (fake, region):
        bundle = [PLATFORM.root.der, forged.der, PLATFORM.zone.der, PLATFORM.instance.der]
        with pytest.raises(VerificationError) as caught:
            genuine(PLATFORM.document(REPORT, cabundle=bundle))
        assert caught.value.stage == "chain"


@pytest.mark.parametrize(
    "options",
    [
        {"path_length": None},  # a CA that signs a document itself
        {"path_length": None, "certifies": False},
        {"certifies": True},
        {"curve": ec.SECP256R1()},
        {"curve": ec.SECP521R1()},
    ],
    ids=["CA", "CA by constraints", "CA by usage", "P-256", "P-521"],
)
def test_a_signer_of_another_kind_is_refused(options: dict[str, Any]) -> None:
    signer = issue("signer", PLATFORM.instance, NOW, timedelta(hours=3), **options)
    payload = encode(PLATFORM.payload(user_data=REPORT, certificate=signer.der))
    if isinstance(options.get("curve"), ec.SECP521R1):
        raw = encode([HEADER, {}, payload, bytes(96)])
    else:
        raw = PLATFORM.sign(payload, signer=signer)
    refused(raw, "chain", "bad-certificate")


def test_an_intermediate_on_another_curve_is_refused() -> None:
    weak = issue("weak", PLATFORM.zone, NOW, timedelta(days=1), path_length=0, curve=ec.SECP256R1())
    signer = issue("signer", weak, NOW, timedelta(hours=3))
    payload = PLATFORM.payload(user_data=REPORT, certificate=signer.der, cabundle=[*BUNDLE[:3], weak.der])
    refused(PLATFORM.sign(encode(payload), signer=signer), "chain", "bad-certificate")


def test_a_chain_longer_than_its_root_allows_is_refused() -> None:
    below = issue("below", PLATFORM.instance, NOW, timedelta(days=1), path_length=0)
    signer = issue("signer", below, NOW, timedelta(hours=3))
    payload = PLATFORM.payload(user_data=REPORT, certificate=signer.der, cabundle=[*BUNDLE, below.der])
    refused(PLATFORM.sign(encode(payload), signer=signer), "chain", "bad-certificate")


def test_a_signature_by_another_key_is_refused() -> None:
    other = issue("other", PLATFORM.instance, NOW, timedelta(hours=3))
    raw = PLATFORM.sign(encode(PLATFORM.payload(user_data=REPORT)), signer=other)
    refused(raw, "signature", "bad-signature")


@pytest.mark.parametrize("where", [0, 47, 48, 95])
def test_a_mutated_signature_is_refused(where: int) -> None:
    raw = bytearray(PLATFORM.document(REPORT))
    raw[len(raw) - 96 + where] ^= 1
    refused(bytes(raw), "signature", "bad-signature")


@pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96, bytes(95) + b"\1"])
def test_numbers_out_of_range_are_no_signature(signature: bytes) -> None:
    refused(encode([HEADER, {}, PAYLOAD, signature]), "signature", "bad-signature")


@pytest.mark.parametrize("index", range(4))
def test_a_mutated_signature_of_a_certificate_is_refused(index: int) -> None:
    ders = [PLATFORM.signer.der, *BUNDLE[:0:-1]]
    changed = bytearray(ders[index])
    changed[-1] ^= 1
    ders[index] = bytes(changed)
    raw = PLATFORM.document(REPORT, certificate=ders[0], cabundle=[BUNDLE[0], *ders[:0:-1]])
    refused(raw, "chain", "bad-certificate")


def test_the_signature_cache_hides_no_forgery() -> None:
    context = Context(at=CONTEXT.at, roots=CONTEXT.roots, work=WorkCache())
    genuine(PLATFORM.document(REPORT), context)
    test = bytearray(PLATFORM.document(REPORT))
    test[-1] ^= 1
    refused(bytes(test), "signature", "bad-signature", context=context)


def at(**later: float) -> Context:
    return Context(at=NOW + timedelta(**later), roots=CONTEXT.roots)


def test_a_document_from_the_future_is_refused() -> None:
    stamp = int((CONTEXT.at + SKEW).timestamp() * 1000)
    assert genuine(PLATFORM.document(REPORT, timestamp=stamp)).age_s == 0
    refused(PLATFORM.document(REPORT, timestamp=stamp + 1), "time", "document-not-yet")


def test_a_document_older_than_its_certificate_is_refused() -> None:
    stamp = int(NOW.timestamp() * 1000)
    assert genuine(PLATFORM.document(REPORT, timestamp=stamp))
    refused(PLATFORM.document(REPORT, timestamp=stamp - 1), "time", "bad-certificate")


def test_a_document_younger_than_its_certificate_is_refused() -> None:
    short = issue("short", PLATFORM.instance, NOW, timedelta(seconds=30))
    last = int((NOW + timedelta(seconds=31)).timestamp() * 1000)
    for stamp, good in ((last - 1, True), (last, False)):
        members = PLATFORM.payload(user_data=REPORT, certificate=short.der, timestamp=stamp)
        raw = PLATFORM.sign(encode(members), signer=short)
        if good:
            assert genuine(raw)
        else:
            refused(raw, "time", "bad-certificate")


def test_a_chain_that_has_ended_is_refused() -> None:
    assert genuine(PLATFORM.document(REPORT), at(hours=3)).age_s == 3 * 3600
    refused(PLATFORM.document(REPORT), "chain", "certificate-expired", context=at(hours=3, seconds=1))
    refused(PLATFORM.document(REPORT), "chain", "certificate-expired", context=at(seconds=-1))


def test_endorsements_that_come_along_change_nothing() -> None:
    bundle = [PLATFORM.region.der, PLATFORM.zone.der, PLATFORM.instance.der]
    raw = PLATFORM.document(REPORT, cabundle=bundle)
    with pytest.raises(VerificationError) as caught:
        verify_nitro(
            NitroDocument.parse(raw),
            Endorsements.detect([PLATFORM.root.der]),
            expected_report_data=REPORT,
            context=CONTEXT,
        )
    assert caught.value.code == "unknown-root"


@pytest.mark.parametrize(
    ("pcrs", "debug"),
    [
        ({0: bytes(48), 1: bytes(48), 2: bytes(48), 3: b"r" * 48}, True),
        ({3: b"r" * 48}, True),  # none of them is there
        ({0: bytes(48), 1: bytes(48), 2: b"\1" * 48}, False),
        ({0: b"\1" * 48}, False),
    ],
)
def test_debug(pcrs: dict[int, bytes], debug: bool) -> None:
    verified = genuine(PLATFORM.document(REPORT, pcrs=pcrs))
    assert [condition.code for condition in verified.conditions] == ["debug"] * debug


def test_a_nitrotpm_whose_registers_are_zero_is_not_in_debug_mode() -> None:
    assert genuine(PLATFORM.document(REPORT, "nitrotpm", nitrotpm_pcrs={0: bytes(48)})).conditions == ()


@pytest.mark.parametrize("user_data", [None, b""])
def test_a_document_that_binds_nothing_says_so(user_data: bytes | None) -> None:
    raw = PLATFORM.sign(encode(PLATFORM.payload(user_data=user_data)))
    verified = check(raw, report_data=b"", context=CONTEXT)
    assert [condition.code for condition in verified.conditions] == ["no-report-data"]


def test_a_result_is_made_by_verification_alone() -> None:
    good = genuine(PLATFORM.document(REPORT))
    values = {name: getattr(good, name) for name in good.__dataclass_fields__ if name != "_made_by"}
    with pytest.raises(TypeError, match="made by sealwright"):
        VerifiedNitro(**values, _made_by=object())


# --- appraisal ---


def codes(rules: dict[str, Any], verified: VerifiedNitro) -> list[str]:
    read = NitroRules.model_validate(TRUSTED | rules)
    return [one.code for one in (*read.shared_refusals(verified), *read.refusals(verified))]


def test_allowed() -> None:
    assert codes({}, genuine(PLATFORM.document(REPORT))) == []
    assert codes({"instances": ["i-0123456789abcdef0"]}, genuine(PLATFORM.document(REPORT))) == []


def test_a_nitrotpm_names_every_register_of_the_boot() -> None:
    """One alone admits too much: PCR 7 every system that some key of Secure Boot signed."""
    values = {number: bytes([number]) * 48 for number in (0, 2, 4, 7, 9, 11)} | dict.fromkeys(
        (12, 13), bytes(48)
    )
    booted = genuine(PLATFORM.document(REPORT, "nitrotpm", nitrotpm_pcrs=values))
    tpm: dict[str, Any] = {"document": "nitrotpm", "registers": {"pcr4": ["04" * 48]}}
    assert codes(tpm, booted) == ["register-not-listed"] * 5
    rest = ["pcr0", "pcr2", "pcr7", "pcr9", "pcr11"]
    assert codes(tpm | {"unchecked": rest}, booted) == []
    added = genuine(PLATFORM.document(REPORT, "nitrotpm", nitrotpm_pcrs=values | {12: b"\1" * 48}))
    assert codes(tpm | {"unchecked": rest}, added) == ["pcr-extended"]
    assert codes(tpm | {"unchecked": [*rest, "pcr12"]}, added) == []


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ({"document": "nitrotpm", "registers": {"pcr4": ["05" * 48]}}, "document-kind-not-allowed"),
        ({"oldest_document_s": 4}, "document-too-old"),
        ({"registers": {}}, "no-code-named"),
        ({"registers": {"pcr0": []}}, "no-code-named"),
        ({"registers": {"pcr3": ["04" * 48]}}, "no-code-named"),
        ({"instances": []}, "instance-not-allowed"),
        ({"instances": ["i-1"]}, "instance-not-allowed"),
        ({"registers": {"pcr0": ["02" * 48]}}, "measurement-not-allowed"),
        ({"registers": {"pcr0": ["01" * 48], "pcr31": ["00" * 48]}}, "register-missing"),
        ({"roots": []}, "root-not-allowed"),
    ],
)
def test_not_allowed(rules: dict[str, Any], code: str) -> None:
    assert code in codes(rules, genuine(PLATFORM.document(REPORT)))


def test_every_failure_is_listed() -> None:
    debug = genuine(PLATFORM.document(REPORT, pcrs={0: bytes(48)}))
    rules = {"roots": [], "registers": {"pcr3": ["00"]}, "oldest_document_s": 0, "instances": []}
    assert codes(rules, debug) == [
        "debug",
        "root-not-allowed",
        "register-missing",
        "document-too-old",
        "no-code-named",
        "instance-not-allowed",
    ]
    assert "debug" not in codes(rules | {"admit": ["debug"]}, debug)


def test_a_nitrotpm_cannot_stand_in_for_an_enclave() -> None:
    # Its owner extends PCR8 from zero with the very digest that an enclave's signer has there.
    imitation = genuine(PLATFORM.document(REPORT, "nitrotpm", nitrotpm_pcrs={8: b"\x09" * 48}))
    assert codes({"registers": {"pcr8": ["09" * 48]}}, imitation) == ["document-kind-not-allowed"]


@pytest.mark.parametrize(
    "rules",
    [
        {"oldest_document_s": 3 * 3600 + 1},
        {"oldest_document_s": -1},
        {"oldest_document_s": None},
        {"document": "any"},
        {"instances": "all"},
        {"pcr0": ["00"]},
    ],
)
def test_rules_are_strict(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NitroRules.model_validate(TRUSTED | rules)


def test_rules_of_nitro_appraise_nothing_else() -> None:
    with pytest.raises(TypeError):
        list(NitroRules().refusals(object()))
