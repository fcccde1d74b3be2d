"""The Nitro Secure Module: byte-exact requests, its error codes, and a config register that holds one thing."""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.vector_files import vector

from sealwright.attester.nsm import IOCTL_RAW, NitroAttester, Nsm
from sealwright.crypto.cbor import Tagged, decode, encode
from sealwright.errors import EvidenceFormatError, SealwrightError, UnavailableError, VerificationError
from sealwright.testing.nsm import FakeNsm, unsigned_document
from sealwright.testing.software import FakePlatformWarning

OURS = bytes(range(64))
DIGEST = hashlib.sha256(b"config").digest()
LOCKED = hashlib.sha384(bytes(48) + DIGEST).digest()


@pytest.fixture
def fake() -> FakeNsm:
    with pytest.warns(FakePlatformWarning):
        return FakeNsm()


def code_of(call: Callable[[], object], kind: type[SealwrightError] = UnavailableError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.stage == "collect"
    return caught.value.code


def test_the_ioctl_number_is_the_kernels() -> None:
    read_write, size, magic, number = 3, struct.calcsize("=QQQQ"), 0x0A, 0
    assert read_write << 30 | size << 16 | magic << 8 | number == IOCTL_RAW


def test_a_document_is_over_our_report_data(fake: FakeNsm) -> None:
    envelope = NitroAttester(Nsm(fake)).quote(OURS)
    assert (envelope.type, envelope.endorsements) == ("nitro", ())
    payload = decode(decode(envelope.evidence)[2])  # type: ignore[index,call-overload,arg-type]
    assert isinstance(payload, dict)
    assert (payload["user_data"], payload["nonce"], payload["public_key"]) == (OURS, None, None)
    assert sorted(payload["pcrs"]) == list(range(16))  # type: ignore[arg-type,type-var]


def test_requests_byte_for_byte(fake: FakeNsm) -> None:
    nsm = Nsm(fake)
    nsm.attestation(user_data=b"\1\2")
    nsm.describe_pcr(16)
    nsm.extend_pcr(16, b"\xff")
    nsm.lock_pcr(16)
    nsm.lock_pcrs(24)
    nsm.describe()
    nsm.random()
    assert [request.hex() for request in fake.requests] == [
        "a1" + "6b" + b"Attestation".hex() + "a3" + "65" + b"nonce".hex() + "f6"
        "69" + b"user_data".hex() + "420102" + "6a" + b"public_key".hex() + "f6",
        "a1" + "6b" + b"DescribePCR".hex() + "a1" + "65" + b"index".hex() + "10",
        "a1"
        + "69"
        + b"ExtendPCR".hex()
        + "a2"
        + "64"
        + b"data".hex()
        + "41ff"
        + "65"
        + b"index".hex()
        + "10",
        "a1" + "67" + b"LockPCR".hex() + "a1" + "65" + b"index".hex() + "10",
        "a1" + "68" + b"LockPCRs".hex() + "a1" + "65" + b"range".hex() + "1818",
        "6b" + b"DescribeNSM".hex(),
        "69" + b"GetRandom".hex(),
    ]


def test_the_answer_to_get_random_that_the_kernel_itself_expects(fake: FakeNsm) -> None:
    """drivers/misc/nsm.c compares these first bytes."""
    head = bytes.fromhex("a1" + "69" + b"GetRandom".hex() + "a1" + "66" + b"random".hex())
    fake.answer = head + b"\x44abcd"
    assert Nsm(fake).random() == b"abcd"


@pytest.mark.parametrize("length", [0, 63, 65])
def test_other_lengths_are_our_callers_bug(fake: FakeNsm, length: int) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        NitroAttester(Nsm(fake)).quote(bytes(length))
    assert fake.requests == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, "tee-interface-missing"),
        (errno.ENODEV, "tee-interface-missing"),
        (errno.EACCES, "tee-permission"),
        (errno.EPERM, "tee-permission"),
        (errno.ETIMEDOUT, "tee-refused"),
        (errno.EIO, "tee-refused"),
        (errno.EMSGSIZE, "tee-refused"),
    ],
)
def test_what_the_driver_says(fake: FakeNsm, number: int, code: str) -> None:
    fake.failure = number
    assert code_of(lambda: NitroAttester(Nsm(fake)).quote(OURS)) == code


@pytest.mark.parametrize(
    "name",
    [
        "InvalidArgument",
        "InvalidIndex",
        "InvalidResponse",
        "ReadOnlyIndex",
        "InvalidOperation",
        "BufferTooSmall",
        "InputTooLarge",
        "InternalError",
    ],
)
def test_the_modules_own_codes_are_named(fake: FakeNsm, name: str) -> None:
    fake.answer = encode({"Error": name})
    with pytest.raises(UnavailableError, match=name) as caught:
        NitroAttester(Nsm(fake)).quote(OURS)
    assert caught.value.code == "tee-refused"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xa1",
        encode("Attestation"),
        encode({}),
        encode({"Attestation": {}}),
        encode({"Attestation": {"document": ""}}),
        encode({"Attestation": {"document": b""}}),
        encode({"Attestation": {"document": b"\x00"}}),
        encode({"Attestation": {"document": encode([b"", {}, encode([]), b""])}}),
        encode({"Attestation": {"document": encode([b"", {}, b"\xff", b""])}}),
        encode({"DescribePCR": {"document": b"x"}}),
        encode({"Attestation": {"document": b"x"}, "Error": "InternalError"}),
        encode({"Attestation": {"document": b"x"}}) + b"\0",
        encode({"Error": 3}),
    ],
)
def test_an_answer_in_no_format_is_refused(fake: FakeNsm, answer: bytes) -> None:
    fake.answer = answer
    with pytest.raises((EvidenceFormatError, VerificationError)) as caught:
        NitroAttester(Nsm(fake)).quote(OURS)
    assert caught.value.code in {"malformed-nsm-response", "report-data-mismatch"}


def test_a_document_that_the_driver_cut_is_refused(fake: FakeNsm) -> None:
    fake.answer = encode({"Attestation": {"document": bytes(0x3000)}})
    assert code_of(lambda: Nsm(fake).attestation(), EvidenceFormatError) == "malformed-nsm-response"


def test_a_driver_that_lies_about_the_length_is_refused() -> None:
    def lying(number: int, raw: bytearray) -> None:
        struct.pack_into("=Q", raw, 24, 0x3001)

    assert code_of(lambda: Nsm(lying).random(), EvidenceFormatError) == "malformed-nsm-response"


def test_a_document_over_other_data_is_refused(fake: FakeNsm) -> None:
    fake.answer = encode({"Attestation": {"document": unsigned_document({}, {"user_data": bytes(64)})}})
    assert code_of(lambda: NitroAttester(Nsm(fake)).quote(OURS), VerificationError) == "report-data-mismatch"


def test_a_tagged_document_is_read_as_well(fake: FakeNsm) -> None:
    inner = decode(unsigned_document({}, {"user_data": OURS}))
    fake.answer = encode({"Attestation": {"document": encode(Tagged(18, inner))}})
    assert NitroAttester(Nsm(fake)).quote(OURS).evidence[0] == 0xD2


def test_real_documents_are_read_where_we_look(fake: FakeNsm) -> None:
    document = vector("nitro/anjuna/sample_attestation_doc_full.bin")
    fake.answer = encode({"Attestation": {"document": document}})
    assert code_of(lambda: NitroAttester(Nsm(fake)).quote(OURS), VerificationError) == "report-data-mismatch"


# PCR 16


def test_the_config_digest_is_extended_once_and_locked(fake: FakeNsm) -> None:
    attester = NitroAttester(Nsm(fake))
    assert attester.lock_config(DIGEST) == LOCKED
    assert (fake.pcrs[16], 16 in fake.locked) == (LOCKED, True)
    assert attester.lock_config(DIGEST) == LOCKED, "doing it twice does it once"
    payload = decode(decode(attester.quote(OURS).evidence)[2])  # type: ignore[index,call-overload,arg-type]
    assert payload["pcrs"][16] == LOCKED  # type: ignore[index,call-overload]
    assert code_of(lambda: attester.lock_config(bytes(32)), VerificationError) == "config-register-used"
    with pytest.raises(ValueError, match="32 bytes"):
        attester.lock_config(bytes(48))


def test_a_lock_that_failed_half_way_is_finished(fake: FakeNsm) -> None:
    fake.pcrs[16] = LOCKED
    assert NitroAttester(Nsm(fake)).lock_config(DIGEST) == LOCKED
    assert 16 in fake.locked


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("held", [b"\1" * 48, bytes(48)])
def test_a_register_that_holds_something_else_is_never_accepted(
    fake: FakeNsm, held: bytes, locked: bool
) -> None:
    fake.pcrs[16] = held
    if locked:
        fake.locked.add(16)
    elif held == bytes(48):
        fake.before = lambda command: (
            fake.pcrs.__setitem__(16, b"\2" * 48) if command == "ExtendPCR" else None
        )
    assert (
        code_of(lambda: NitroAttester(Nsm(fake)).lock_config(DIGEST), VerificationError)
        == "config-register-used"
    )


def test_another_extend_between_ours_and_the_lock_is_noticed(fake: FakeNsm) -> None:
    def before(command: str) -> None:
        if command == "LockPCR":
            fake.pcrs[16] = b"\3" * 48

    fake.before = before
    assert (
        code_of(lambda: NitroAttester(Nsm(fake)).lock_config(DIGEST), VerificationError)
        == "config-register-used"
    )


def test_registers_of_the_image_cannot_be_touched(fake: FakeNsm) -> None:
    nsm = Nsm(fake)
    assert nsm.describe_pcr(0).lock is True
    for call in (lambda: nsm.extend_pcr(0, b"x"), lambda: nsm.lock_pcr(3), lambda: nsm.describe_pcr(32)):
        assert code_of(call) == "tee-refused"
    assert code_of(lambda: nsm.lock_pcrs(33)) == "tee-refused"
    fake.answer = encode({"DescribePCR": {"data": bytes(48), "lock": 1}})
    assert code_of(lambda: nsm.describe_pcr(0), EvidenceFormatError) == "malformed-nsm-response"


def test_it_says_what_module_this_is(fake: FakeNsm) -> None:
    told = NitroAttester(Nsm(fake)).describe()
    assert (told["interface"], told["digest"], told["max_pcrs"]) == ("/dev/nsm", "SHA384", 32)
    fake.answer = encode({"DescribeNSM": {"digest": "SHA384"}})
    assert code_of(lambda: Nsm(fake).describe(), EvidenceFormatError) == "malformed-nsm-response"


def test_requests_too_large_for_the_module_are_not_sent(fake: FakeNsm) -> None:
    with pytest.raises(ValueError, match="over 4096"):
        Nsm(fake).attestation(user_data=bytes(4096))
    assert fake.requests == []


def test_a_machine_without_the_device(tmp_path: Path) -> None:
    assert code_of(Nsm(device=str(tmp_path / "nsm")).random) == "tee-interface-missing"
    (tmp_path / "nsm").touch()  # a file knows no ioctl
    assert code_of(Nsm(device=str(tmp_path / "nsm")).random) == "tee-refused"
