"""Strict JSON, canonical JSON, text encodings: one spelling, or an error of ours."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwright.crypto.canonical import MAX_DEPTH, canonical, parse_canonical, parse_json
from sealwright.crypto.encoding import (
    b64url,
    b64url_decode,
    digest,
    hex_decode,
    joined,
    rfc3339,
    rfc3339_decode,
)
from sealwright.errors import FormatError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=5))
def test_what_is_written_is_read_back(value: dict[str, object]) -> None:
    assert parse_canonical(canonical(value)) == value


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"a":1,"a":1}', "duplicate-key"),
        (b'{"a": 1}', "not-canonical"),
        (b'{"b":1,"a":1}', "not-canonical"),
        (b'{"a":"\\u0041"}', "not-canonical"),
        (b'{"a":1.0}', "not-canonical"),
        (b'{"a":NaN}', "malformed-json"),
        (b'{"a":9007199254740992}', "integer-range"),
        (b'{"a":1}\n', "not-canonical"),
        (b"[]", "malformed-json"),
        (b"\xff", "malformed-json"),
        (b'{"a":"\\ud800"}', "not-canonical"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "too-deep"),
        (b'{"a":"' + b"x" * 100 + b'"}', "too-large"),
    ],
)
def test_another_spelling_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(FormatError) as refused:
        parse_canonical(raw, limit=100)
    assert refused.value.code == code


def test_brackets_inside_a_text_are_not_nesting() -> None:
    assert parse_json(json.dumps({"a": "[" * 200 + '"\\'}).encode())["a"].startswith("[[")


@given(st.binary(max_size=300))
def test_any_bytes_raise_only_our_error(raw: bytes) -> None:
    try:
        value = parse_canonical(raw)
    except FormatError:
        return
    assert canonical(value) == raw


@given(st.binary(max_size=64))
def test_binary_texts_have_one_spelling(raw: bytes) -> None:
    assert b64url_decode(b64url(raw)) == raw
    assert hex_decode(raw.hex()) == raw


@pytest.mark.parametrize("text", ["AA==", "A", "AB", "A+", "A/", " AA", "AA\n", "é"])
def test_other_base64_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        b64url_decode(text)


@pytest.mark.parametrize("text", ["AA", "a", "0x00", "00 ", "٠٠"])
def test_other_hex_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        hex_decode(text)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_to_the_second(when: datetime) -> None:
    if 1970 <= when.year < 9999:
        assert rfc3339_decode(rfc3339(when)) == when.replace(microsecond=0)


@pytest.mark.parametrize(
    "text",
    ["2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00", "2026-02-30T00:00:00Z", "2026-01-01t00:00:00Z", ""],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        rfc3339_decode(text)


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_joining_is_injective(left: list[bytes], right: list[bytes]) -> None:
    assert (joined(*left) == joined(*right)) == (left == right)


def test_the_label_separates_domains() -> None:
    assert joined("a", 1, b"\x02") == bytes.fromhex("00000001610000000800000000000000010000000102")
    assert digest("a", b"b") != digest("ab")
