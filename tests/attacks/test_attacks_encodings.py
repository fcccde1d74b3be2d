"""Documents that mean two things, or end in an exception that is not ours."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwright.appraisal.yaml import load_yaml
from sealwright.crypto.canonical import MAX_DEPTH, canonical, parse_json
from sealwright.crypto.document import Document, Time
from sealwright.crypto.encoding import rfc3339, rfc3339_decode
from sealwright.errors import FormatError, MessageFormatError, SettingsError
from sealwright.protocol.enclave_config import EnclaveConfig
from sealwright.protocol.kbs import MAX_ATTEST, AttestRequest, parse_message
from sealwright.protocol.keyset import TeePubkey


class Dated(Document):
    """A document with a time."""

    format: str = "dated/v1"
    at: Time


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1e400}', b'{"a":-1e999}', b'{"a":"\\ud800"}', b'{"\\udfff":1}', b'["\\uDBFF\\u0041"]'],
)
def test_a_value_without_canonical_form_is_refused_when_it_is_parsed(raw: bytes) -> None:
    # Found later it would be our own ValueError: answered 500, and in no log.
    with pytest.raises(MessageFormatError):
        parse_json(raw)


@given(
    st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0123456789dDeE+-.ab ', max_size=60).map(str.encode)
)
def test_whatever_parses_has_a_canonical_form(raw: bytes) -> None:
    try:
        value = parse_json(raw)
    except MessageFormatError:
        return
    canonical(value)


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize("text", ['[["]"],[[{"a":"\\\\"}]]]', '["[[[[", {"a": "\\"[[["}]'])
def test_brackets_in_strings_are_no_depth(text: str) -> None:
    assert parse_json(text.encode()) is not None


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_bounded(opening: bytes) -> None:
    with pytest.raises(MessageFormatError) as caught:
        parse_json(opening * (MAX_DEPTH + 1))
    assert caught.value.code == "too-deep"


def test_evidence_without_canonical_form_never_reaches_the_broker() -> None:
    raw = b'{"tee-evidence":{"primary_evidence":{"x":1e999},"additional_evidence":""}}'
    with pytest.raises(MessageFormatError):
        parse_message(AttestRequest, raw, limit=MAX_ATTEST)


@pytest.mark.parametrize("year", ["0001", "0999", "1969"])
def test_years_that_break_arithmetic_are_refused(year: str) -> None:
    # `created - skew` of year 1 is an OverflowError in client and broker, before any signature was checked.
    with pytest.raises(MessageFormatError):
        rfc3339_decode(f"{year}-01-01T00:00:00Z")


@given(st.from_regex(re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII), fullmatch=True))
def test_a_time_that_parses_can_be_reckoned_with_and_has_one_spelling(text: str) -> None:
    try:
        when = rfc3339_decode(text)
    except MessageFormatError:
        return
    assert isinstance(when - timedelta(days=1), datetime)
    assert isinstance(when + timedelta(days=1), datetime)
    assert rfc3339(when) == text


def test_a_document_that_leaves_its_format_out_is_refused() -> None:
    # Else two byte strings are one document, and its digest is not that of what was signed or measured.
    assert Dated.parse(b'{"at":"2026-01-01T00:00:00Z","format":"dated/v1"}')
    with pytest.raises(MessageFormatError) as caught:
        Dated.parse(b'{"at":"2026-01-01T00:00:00Z"}')
    assert caught.value.code == "not-canonical"


def test_a_config_or_key_without_its_type_is_refused() -> None:
    with pytest.raises(FormatError):
        EnclaveConfig.parse(b'{"suite":"default"}')

    class Holder(Document):
        key: TeePubkey

    with pytest.raises(FormatError):
        Holder.parse(b'{"key":{"pub":"AAAA"}}')


@pytest.mark.parametrize(
    "text",
    [
        "a: !!binary aGVsbG8=",
        "a: &x 1",
        "a: !!timestamp 9999-12-31T23:59:59-12:00",
        'a: !!int ""',
        'a: !!float ""',
        "a: !!bool x",
        "a: !!set {x}",
        "a: !!omap [{b: 1}]",
        "a: !!str 5",
        "!!map {a: 1}",
        "a: ! b",
        "a: &x [1]",
        '"\\ud800": 1',
        'a: ["\\udfff"]',
        "? [1]\n: 2",
    ],
)
def test_yaml_has_no_tags_no_anchors_no_halves_of_characters(text: str) -> None:
    with pytest.raises(SettingsError):
        load_yaml(text.encode())


@pytest.mark.parametrize("text", ["a: 017", "a: 1:30", "a: 0x10", "a: 1_000", "a: 0b11"])
def test_yaml_numbers_are_what_they_look_like(text: str) -> None:
    # YAML 1.1 reads 017 as 15, 1:30 as 90: left as text they are refused where a number is wanted.
    assert load_yaml(text.encode()) == {"a": text[3:]}


@given(st.text(alphabet="ab:!&*-[]{}\"'\\ud8 0x_\n|>?%@,#", max_size=40))
def test_yaml_raises_only_its_own_error(text: str) -> None:
    with contextlib.suppress(SettingsError):
        load_yaml(text.encode())
