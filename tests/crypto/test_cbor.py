"""CBOR: vectors of RFC 8949, what is refused, and the same answers as cbor2."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sealwright.crypto.cbor import MAX_DEPTH, MAX_ITEMS, Tagged, decode, encode
from sealwright.errors import EvidenceFormatError, MessageFormatError

# RFC 8949, appendix A: item, encoding.
EXAMPLES = [
    (0, "00"),
    (23, "17"),
    (24, "1818"),
    (255, "18ff"),
    (256, "190100"),
    (1000000, "1a000f4240"),
    (1000000000000, "1b000000e8d4a51000"),
    (18446744073709551615, "1bffffffffffffffff"),
    (-1, "20"),
    (-100, "3863"),
    (-18446744073709551616, "3bffffffffffffffff"),
    (False, "f4"),
    (True, "f5"),
    (None, "f6"),
    (b"", "40"),
    (b"\1\2\3\4", "4401020304"),
    ("", "60"),
    ("ü", "62c3bc"),
    ("\U00010151", "64f0908591"),
    ([], "80"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    ({}, "a0"),
    ({1: 2, 3: 4}, "a201020304"),
    ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
    (Tagged(18, b"\1"), "d24101"),
]

# RFC 8949, appendix A: the same with indefinite lengths.
INDEFINITE = [
    (b"\1\2\3\4\5", "5f42010243030405ff"),
    ("streaming", "7f657374726561646d696e67ff"),
    (b"", "5fff"),
    ([], "9fff"),
    ([1, [2, 3], [4, 5]], "9f018202039f0405ffff"),
    ({"a": 1, "b": [2, 3]}, "bf61610161629f0203ffff"),
    ({"Fun": True, "Amt": -2}, "bf6346756ef563416d7421ff"),
]

REFUSED = [
    ("", "malformed-cbor"),  # nothing
    ("0000", "malformed-cbor"),  # two items
    ("1817", "malformed-cbor"),  # 23 in two bytes
    ("190018", "malformed-cbor"),
    ("1a0000ffff", "malformed-cbor"),
    ("1b00000000ffffffff", "malformed-cbor"),
    ("5817" + "00" * 23, "malformed-cbor"),
    ("f93c00", "malformed-cbor"),  # floats
    ("fa47c35000", "malformed-cbor"),
    ("fb3ff199999999999a", "malformed-cbor"),
    ("f7", "malformed-cbor"),  # undefined
    ("f0", "malformed-cbor"),  # unassigned simple values
    ("f818", "malformed-cbor"),
    ("f8ff", "malformed-cbor"),
    ("1c", "malformed-cbor"),  # reserved lengths
    ("5d", "malformed-cbor"),
    ("fc", "malformed-cbor"),
    ("1f", "malformed-cbor"),  # indefinite integers and tags
    ("3f", "malformed-cbor"),
    ("dfff", "malformed-cbor"),
    ("ff", "malformed-cbor"),  # breaks that end nothing
    ("81ff", "malformed-cbor"),
    ("a1ff", "malformed-cbor"),
    ("a101ff", "malformed-cbor"),
    ("bf01ff", "malformed-cbor"),
    ("9f01", "malformed-cbor"),  # no break
    ("bf0102", "malformed-cbor"),
    ("5f4101", "malformed-cbor"),
    ("5f6161ff", "malformed-cbor"),  # text in bytes
    ("7f4161ff", "malformed-cbor"),
    ("5f5f4101ffff", "malformed-cbor"),  # nested indefinite chunks
    ("5f01ff", "malformed-cbor"),
    ("7f61c361bcff", "malformed-cbor"),  # a character cut in two by chunks
    ("62c328", "malformed-cbor"),  # not UTF-8
    ("63eda080", "malformed-cbor"),  # half of a surrogate pair
    ("4401", "malformed-cbor"),  # cut off
    ("9bffffffffffffffff", "malformed-cbor"),
    ("bb7fffffffffffffff", "malformed-cbor"),
    ("5b7fffffffffffffff", "malformed-cbor"),
    ("a2010201", "malformed-cbor"),
    ("a1f500", "malformed-cbor"),  # keys that are neither integer, text nor bytes
    ("a1f600", "malformed-cbor"),
    ("a18000", "malformed-cbor"),
    ("a1d2410100", "malformed-cbor"),
    ("c100", "malformed-cbor"),  # a tag nobody asked for
    ("a201020103", "duplicate-key"),
    ("bf6161016161 02ff", "duplicate-key"),
    ("81" * (MAX_DEPTH + 1) + "00", "too-deep"),
    ("9f" * 2000, "too-deep"),
    ("99" + f"{MAX_ITEMS:04x}" + "00" * MAX_ITEMS, "too-large"),
    ("9f" + "00" * MAX_ITEMS + "ff", "too-large"),
    ("5f" + "40" * MAX_ITEMS + "ff", "too-large"),
    ("59ffff" + "00" * 65535, "too-large"),
]

keys = st.one_of(st.integers(-(1 << 64), (1 << 64) - 1), st.text(max_size=8), st.binary(max_size=8))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), keys, st.binary(max_size=300)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(keys, inner, max_size=5),
        st.builds(Tagged, st.just(18), inner),
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("value", "raw"), EXAMPLES, ids=[raw for _, raw in EXAMPLES])
def test_the_examples_of_the_rfc(value: object, raw: str) -> None:
    assert decode(bytes.fromhex(raw), tags=(18,)) == value
    assert encode(value).hex() == raw


@pytest.mark.parametrize(("value", "raw"), INDEFINITE, ids=[raw for _, raw in INDEFINITE])
def test_indefinite_lengths_are_read(value: object, raw: str) -> None:
    assert decode(bytes.fromhex(raw)) == value


@pytest.mark.parametrize(("raw", "code"), REFUSED, ids=[raw[:24] for raw, _ in REFUSED])
def test_refused(raw: str, code: str) -> None:
    with pytest.raises(EvidenceFormatError) as refused:
        decode(bytes.fromhex(raw), tags=(18,), error=EvidenceFormatError)
    assert refused.value.code == code


def test_the_bounds_themselves_are_accepted() -> None:
    assert decode(bytes.fromhex("81" * MAX_DEPTH + "00")) is not None
    assert decode(b"\x40", limit=1) == b""
    with pytest.raises(MessageFormatError, match="over the limit"):
        decode(b"\x40\x40", limit=1)


def test_true_and_one_are_not_the_same() -> None:
    assert decode(b"\xf5") is True
    assert decode(b"\x01") == 1
    assert decode(b"\x01") is not True


def test_keys_are_sorted_by_their_encoding() -> None:
    assert encode({"aa": 0, "b": 0, -1: 0, 100: 0, 10: 0}).hex() == "a50a001864002000616200626161 00".replace(
        " ", ""
    )


@pytest.mark.parametrize("value", [1.5, object(), {1.5: 0}, 1 << 64, -(1 << 64) - 1])
def test_what_has_no_form_is_our_bug(value: object) -> None:
    with pytest.raises(ValueError, match=r"no CBOR form|64 bits"):
        encode(value)


@given(values)
def test_what_is_written_is_read_back(value: object) -> None:
    assume(_depth(value) <= MAX_DEPTH)
    assert decode(encode(value), tags=(18,)) == value


@given(st.binary(max_size=200))
def test_the_reader_raises_only_its_own_error(raw: bytes) -> None:
    with contextlib.suppress(MessageFormatError):
        decode(raw, tags=(18,))


@given(values)
def test_the_writer_agrees_with_cbor2(value: object) -> None:
    cbor2 = pytest.importorskip("cbor2", reason="cbor2, the oracle of these tests, is not installed")

    # Its canonical form is the older one (RFC 7049, shorter keys first), so maps are only read back.
    if "map" not in _kinds(value):
        assert encode(value) == cbor2.dumps(_theirs(value, cbor2.CBORTag))
    assert _ours(cbor2.loads(encode(value)), cbor2.CBORTag) == value


@given(st.binary(max_size=64))
def test_the_reader_accepts_nothing_that_cbor2_refuses(raw: bytes) -> None:
    cbor2 = pytest.importorskip("cbor2", reason="cbor2, the oracle of these tests, is not installed")
    try:
        ours = decode(raw)
    except MessageFormatError:
        return
    assert _ours(cbor2.loads(raw), cbor2.CBORTag) == ours


def _theirs(value: object, tag: type) -> object:
    match value:
        case Tagged(number, inner):
            return tag(number, _theirs(inner, tag))
        case list():
            return [_theirs(item, tag) for item in value]
        case dict():
            return {key: _theirs(item, tag) for key, item in value.items()}
        case _:
            return value


def _ours(value: object, tag: type) -> object:
    if isinstance(value, tag):
        return Tagged(value.tag, _ours(value.value, tag))
    if isinstance(value, list | tuple):
        return [_ours(item, tag) for item in value]
    if isinstance(value, Mapping):
        return {key: _ours(item, tag) for key, item in value.items()}
    return value


def _depth(value: object) -> int:
    match value:
        case Tagged(_, inner):
            return 1 + _depth(inner)
        case list():
            return 1 + max(map(_depth, value), default=0)
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
        case _:
            return 0


def _kinds(value: object) -> set[str]:
    match value:
        case Tagged(_, inner):
            return _kinds(inner)
        case list():
            return set().union(*(_kinds(item) for item in value))
        case dict():
            return {"map"}
        case _:
            return set()
