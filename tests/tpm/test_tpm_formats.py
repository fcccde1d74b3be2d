"""TPM structures and our document: exact, and nothing but EvidenceFormatError for the rest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from tests.tpm.support import REPORT_DATA, platform

from sealwright.attester.tpm.codec import parse_answer
from sealwright.crypto.canonical import canonical
from sealwright.endorsement.tpm import EK_TEMPLATES, ek_public, spki
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import Scheme, TpmtPublic, TpmtSignature
from sealwright.evidence.tpmwire import ALG_RSA, PCRS, PcrSelection, u16, u32

QUOTE = platform().quote(REPORT_DATA)
ATTEST = QUOTE.attest.encode()
SIGNATURE = QUOTE.signature.encode()
EC_KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
PUBLIC = ek_public(EC_KEY).encode()
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
RSA_PUBLIC = ek_public(RSA_KEY)
DOCUMENT = QUOTE.encode()

PARSERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "attest": (TpmsAttest.parse, ATTEST),
    "signature": (TpmtSignature.parse, SIGNATURE),
    "public": (TpmtPublic.parse, PUBLIC),
    "rsa public": (TpmtPublic.parse, RSA_PUBLIC.encode()),
    "document": (TpmQuote.parse, DOCUMENT),
}


def code(parse: Callable[[bytes], object], raw: bytes) -> str:
    with pytest.raises(EvidenceFormatError) as refused:
        parse(raw)
    return refused.value.code


@pytest.mark.parametrize("name", PARSERS)
def test_round_trip_and_exact_length(name: str) -> None:
    parse, raw = PARSERS[name]
    assert parse(raw).encode() == raw
    for size in range(len(raw)):
        code(parse, raw[:size])
    code(parse, raw + b"\0")


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_parsers_raise_their_own_error_only(name: str, data: st.DataObject) -> None:
    parse, raw = PARSERS[name]
    changed = bytearray(raw)
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    try:
        parsed = parse(bytes(changed))
    except EvidenceFormatError:
        return
    assert parsed.encode() == bytes(changed)


@pytest.mark.parametrize("name", PARSERS)
@given(raw=st.binary(max_size=300))
def test_parsers_of_anything(name: str, raw: bytes) -> None:
    with contextlib.suppress(EvidenceFormatError):
        assert PARSERS[name][0](raw).encode() == raw


@given(raw=st.binary(max_size=64), handles=st.integers(0, 2))
def test_answers_of_anything(raw: bytes, handles: int) -> None:
    with contextlib.suppress(EvidenceFormatError):
        parse_answer(raw, handles=handles)


@given(
    pcrs=st.sets(st.integers(0, PCRS - 1), min_size=1),
    extra=st.binary(max_size=64),
    clock=st.integers(0, (1 << 53) - 1),
    counts=st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1)),
    firmware=st.integers(0, (1 << 64) - 1),
    safe=st.booleans(),
)
def test_attest_of_any_values(
    pcrs: set[int], extra: bytes, clock: int, counts: tuple[int, int], firmware: int, safe: bool
) -> None:
    attest = replace(
        QUOTE.attest,
        extraData=extra,
        clock=clock,
        resetCount=counts[0],
        restartCount=counts[1],
        firmwareVersion=firmware,
        safe=safe,
        pcrSelect=(PcrSelection(bank="sha256", pcrs=tuple(sorted(pcrs))),),
    )
    raw = attest.encode()
    assert TpmsAttest.parse(raw) == replace(attest, signed=raw)


def test_what_a_restricted_key_never_signs() -> None:
    assert code(TpmsAttest.parse, b"\0" + ATTEST[1:]) == "not-a-tpm-quote"  # magic
    assert code(TpmsAttest.parse, ATTEST[:4] + u16(0x8017) + ATTEST[6:]) == "not-a-tpm-quote"  # certify


def test_selections() -> None:
    def with_selection(raw: bytes) -> bytes:
        whole = replace(QUOTE.attest, pcrSelect=()).encode()
        digest = len(whole) - 34
        return whole[: digest - 4] + raw + whole[digest:]

    one = u16(0x000B) + b"\x03\xff\xff\xff"
    assert TpmsAttest.parse(with_selection(u32(1) + one)).pcrSelect == QUOTE.attest.pcrSelect
    assert code(TpmsAttest.parse, with_selection(u32(2) + one + one)) == "malformed-tpm"  # a bank twice
    assert code(TpmsAttest.parse, with_selection(u32(9) + one * 9)) == "malformed-tpm"
    assert code(TpmsAttest.parse, with_selection(u32(1) + u16(0x000B) + b"\x04\xff\xff\xff\x00")) == (
        "malformed-tpm"
    )
    assert code(TpmsAttest.parse, with_selection(u32(1) + u16(0x0012) + b"\x03\xff\xff\xff")) == (
        "unsupported-tpm-algorithm"
    )


def test_clock_and_safe_are_in_their_range() -> None:
    start = 6 + 2 + len(QUOTE.attest.qualifiedSigner) + 2 + len(QUOTE.attest.extraData)
    assert code(TpmsAttest.parse, ATTEST[: start + 16] + b"\x02" + ATTEST[start + 17 :]) == "malformed-tpm"
    assert code(TpmsAttest.parse, ATTEST[:start] + b"\xff" + ATTEST[start + 1 :]) == "malformed-tpm"


def test_extra_data_is_no_longer_than_report_data() -> None:
    assert code(TpmsAttest.parse, replace(QUOTE.attest, extraData=bytes(65)).encode()) == "malformed-tpm"


@pytest.mark.parametrize(
    "changes",
    [
        {"exponent": 3},
        {"keyBits": 1024, "unique": (b"\xff" * 128,)},
        {"curveID": 5, "type": 0x23, "unique": (bytes(32), bytes(32))},
        {"symmetric_bits": 192},
    ],
)
def test_keys_that_are_not_read(changes: dict[str, Any]) -> None:
    assert code(TpmtPublic.parse, replace(RSA_PUBLIC, **changes).encode()) == "unsupported-tpm-algorithm"


@pytest.mark.parametrize(
    "changes",
    [
        {"unique": (b"\x7f" + bytes(254) + b"\x01",)},  # a shorter modulus
        {"unique": (b"\xff" * 255 + b"\xfe",)},  # even
        {"unique": (b"\xff" * 255,)},
        {"unique": (b"",)},
        {"objectAttributes": RSA_PUBLIC.objectAttributes | 1},  # reserved
        {"authPolicy": bytes(65)},
    ],
)
def test_malformed_keys(changes: dict[str, Any]) -> None:
    assert code(TpmtPublic.parse, replace(RSA_PUBLIC, **changes).encode()) == "malformed-tpm"


def test_points() -> None:
    public = ek_public(EC_KEY)
    x, y = public.unique
    for unique in ((bytes(32), bytes(32)), (x, x), (b"", y), (b"\0" + x, y)):
        assert code(TpmtPublic.parse, replace(public, unique=unique).encode()) == "malformed-tpm"


def test_a_point_without_leading_zeros() -> None:
    """Older TPMs leave them out; it is the same key with another Name."""
    numbers = next(
        found
        for found in (
            ec.derive_private_key(secret, ec.SECP256R1()).public_key().public_numbers()
            for secret in range(1, 5000)
        )
        if found.x < 1 << 248
    )
    whole = ek_public(numbers.public_key())
    short = replace(whole, unique=(whole.unique[0].lstrip(b"\0"), whole.unique[1]))
    parsed = TpmtPublic.parse(short.encode())
    assert spki(parsed.key()) == spki(whole.key())
    assert parsed.name() != whole.name()


def test_signatures() -> None:
    scheme = Scheme(name="ecdsa", hash="sha256")
    for raw in (
        u16(0x0010),  # none
        u16(0x0005) + u16(0x000B) + u16(32) + bytes(32),  # HMAC
        u16(0x0018) + u16(0x0012) + (u16(32) + bytes(32)) * 2,  # SM3
        TpmtSignature(scheme=scheme, values=(b"", b"\x01")).encode(),
        TpmtSignature(scheme=scheme, values=(bytes(49), b"\x01")).encode(),
        TpmtSignature(scheme=Scheme(name="rsassa", hash="sha256"), values=(bytes(513),)).encode(),
    ):
        assert code(TpmtSignature.parse, raw) in ("malformed-tpm", "unsupported-tpm-algorithm")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda said: said.pop("attest"), "malformed-document"),
        (lambda said: said.update(more=1), "malformed-document"),
        (lambda said: said.update(pcrs={}), "malformed-document"),
        (lambda said: said.update(pcrs={"sha256": {}}), "malformed-document"),
        (lambda said: said.update(pcrs={"sha256": {"24": "00" * 32}}), "malformed-document"),
        (lambda said: said.update(pcrs={"sha256": {"01": "00" * 32}}), "malformed-document"),
        (lambda said: said.update(pcrs={"sha256": {"٣": "00" * 32}}), "malformed-document"),
        (lambda said: said.update(pcrs={"sha256": {"1": "00" * 31}}), "malformed-document"),
        (lambda said: said.update(pcrs={"sha256": {"1": "0A" * 32}}), "malformed-document"),
        (lambda said: said.update(pcrs={"sm3": {"1": "00" * 32}}), "malformed-document"),
        (lambda said: said.update(format="sealwright-tpm-quote/v2"), "malformed-document"),
        (lambda said: said.pop("format"), "not-canonical"),
        (lambda said: said.update(attest=""), "malformed-tpm"),
        (lambda said: said.update(ak_public=""), "malformed-tpm"),
        (lambda said: said.update(signature=""), "malformed-tpm"),
    ],
)
def test_documents(change: Callable[[dict[str, Any]], object], wanted: str) -> None:
    said = json.loads(DOCUMENT)
    change(said)
    assert code(TpmQuote.parse, canonical(said)) == wanted


def test_a_document_without_a_key() -> None:
    """Where other evidence holds the key, as on Azure."""
    raw = replace(QUOTE, ak_public=None).encode()
    assert b"ak_public" not in raw
    assert TpmQuote.parse(raw).ak_public is None
    assert TpmQuote.parse(raw).encode() == raw


def test_a_document_too_large() -> None:
    assert code(TpmQuote.parse, b" " * (33 * 1024)) == "too-large"


def test_templates_make_their_keys() -> None:
    """One template a kind of key is met; L and H differ in what encrypting to a key does not need."""
    for key in (RSA_KEY, EC_KEY, ec.generate_private_key(ec.SECP384R1()).public_key()):
        public = ek_public(key)
        assert spki(public.key()) == spki(key)
        same = [
            template.public
            for template in EK_TEMPLATES
            if (template.public.keyBits, template.public.curveID) == (public.keyBits, public.curveID)
        ]
        assert {(one.nameAlg, one.symmetric_bits) for one in same} == {
            (public.nameAlg, public.symmetric_bits)
        }


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.RSAPublicNumbers(3, RSA_KEY.public_numbers().n).public_key(),
        rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(),
    ],
)
def test_keys_that_no_template_makes(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> None:
    with pytest.raises(EvidenceFormatError) as refused:
        ek_public(key)
    assert refused.value.code == "unsupported-tpm-algorithm"


def test_a_scheme_belongs_to_its_kind_of_key() -> None:
    wrong = replace(RSA_PUBLIC, type=ALG_RSA, scheme=Scheme(name="ecdsa", hash="sha256"))
    assert code(TpmtPublic.parse, wrong.encode()) == "unsupported-tpm-algorithm"
