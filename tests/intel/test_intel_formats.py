"""Parsers: exact layouts, and nothing but EvidenceFormatError for whatever bytes come."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.intel.support import NOW, quote_bytes

from sealwright.crypto.der import read_der
from sealwright.endorsement.intel import parse_intel_json
from sealwright.endorsement.intel_json import top_members
from sealwright.endorsement.intel_pck import PckExtension, parse_pck_chain
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.dcap import EnclaveReport, PckCertificates, PckIdentifier
from sealwright.evidence.sgx import SgxQuote
from sealwright.evidence.tdx import TdxQuote
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform, enclave_report, td_extension
from sealwright.testing.software import FakePlatformWarning

DATA = bytes(range(64))


def _platforms() -> tuple[SgxTestPlatform, TdxTestPlatform]:
    with pytest.warns(FakePlatformWarning):
        return SgxTestPlatform(NOW), TdxTestPlatform(NOW)


SGX, TDX = _platforms()
QUOTES = {
    "sgx": (SgxQuote, SGX.evidence(DATA)[0]),
    "tdx4": (TdxQuote, TDX.evidence(DATA)[0]),
    "tdx5-1.0": (TdxQuote, TDX.evidence(DATA, version=5, body=2)[0]),
    "tdx5-1.5": (TdxQuote, TDX.evidence(DATA, version=5)[0]),
    "tdx5-ex": (TdxQuote, TDX.evidence(DATA, version=5, body=4)[0]),
}


def refused(parse: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(EvidenceFormatError) as caught:
        parse(*args, **named)
    return caught.value.code


@pytest.mark.parametrize("name", QUOTES)
def test_fields(name: str) -> None:
    kind, raw = QUOTES[name]
    quote = kind.parse(raw)
    assert quote.report.report_data == DATA
    assert raw.startswith(quote.signed)
    assert quote.padding == 0
    assert isinstance(quote.signature.certification, PckCertificates)
    assert kind.parse(raw + bytes(70)).padding == 70


@pytest.mark.parametrize("name", QUOTES)
def test_every_cut_is_refused(name: str) -> None:
    kind, raw = QUOTES[name]
    for size in range(0, len(raw), 7):
        assert refused(kind.parse, raw[:size]) == "truncated-quote"


@pytest.mark.parametrize("name", QUOTES)
def test_lengths_that_lie(name: str) -> None:
    kind, raw = QUOTES[name]
    assert refused(kind.parse, raw + b"\0\1") == "trailing-data"
    assert refused(kind.parse, raw + bytes(64 * 1024)) == "too-large"
    place = len(kind.parse(raw).signed)
    size = struct.unpack_from("<I", raw, place)[0]
    for said in (size - 1, size + 1, 0xFFFFFFFF, 0):
        changed = raw[:place] + struct.pack("<I", said) + raw[place + 4 :]
        assert refused(kind.parse, changed) in {"truncated-quote", "wrong-length", "trailing-data"}
    longer = raw[:place] + struct.pack("<I", size + 1) + raw[place + 4 :] + b"\0"
    assert refused(kind.parse, longer) == "wrong-length"


@pytest.mark.parametrize(
    ("name", "place", "value", "code"),
    [
        ("sgx", 0, b"\4", "unsupported-quote"),
        ("sgx", 2, b"\3", "unsupported-quote"),
        ("sgx", 4, b"\x81", "unsupported-quote"),
        ("sgx", 48 + 20, b"\1", "reserved-not-zero"),
        ("tdx4", 0, b"\3", "unsupported-quote"),
        ("tdx4", 0, b"\6", "unsupported-quote"),
        ("tdx4", 2, b"\3", "unsupported-quote"),
        ("tdx4", 4, b"\0", "unsupported-quote"),
        ("tdx4", 8, b"\1", "reserved-not-zero"),
        ("tdx4", 48 + 584 + 4 + 128, b"\5", "unsupported-certification-data"),
        ("tdx5-1.5", 48, b"\1", "unsupported-quote"),
        ("tdx5-1.5", 48, b"\5", "unsupported-quote"),
        ("tdx5-1.5", 48, b"\4", "wrong-length"),
        ("tdx5-ex", 48, b"\3", "wrong-length"),
        ("tdx5-ex", 50, b"\x74", "wrong-length"),
        ("tdx5-1.5", 48, b"\2", "wrong-length"),
        ("tdx5-1.0", 48, b"\3", "wrong-length"),
    ],
)
def test_fields_that_have_one_value(name: str, place: int, value: bytes, code: str) -> None:
    kind, raw = QUOTES[name]
    assert refused(kind.parse, raw[:place] + value + raw[place + 1 :]) == code


def test_extension_of_a_td_report() -> None:
    """Offsets as in Intel's sgx_quote_5.h, counted from the start of the body."""
    fields = {
        "td_id": b"\2" * 32,
        "dev_info": b"\3" * 48,
        "init_servtd_hash": b"\4" * 48,
        "init_servtd_attr": b"\5" * 8,
        "init_cpu_svn": b"\6" * 16,
        "init_tee_tcb_svn": b"\7" * 16,
        "init_tee_fmspc": b"\x08" * 12,
        "curr_servtd_hash": b"\x09" * 48,
        "curr_servtd_attr": b"\x0a" * 8,
    }
    raw = TDX.evidence(DATA, version=5, body=4, extension=td_extension(vmid=1, **fields))[0]
    assert (int.from_bytes(raw[48:50], "little"), int.from_bytes(raw[50:54], "little")) == (4, 885)
    body, found = raw[54 : 54 + 885], TdxQuote.parse(raw).report.extension
    assert found is not None
    assert (body[648], found.vmid) == (1, 1)
    places = {
        "td_id": 649,
        "dev_info": 681,
        "init_servtd_hash": 729,
        "init_servtd_attr": 777,
        "init_cpu_svn": 785,
        "init_tee_tcb_svn": 801,
        "init_tee_fmspc": 817,
        "curr_servtd_hash": 829,
        "curr_servtd_attr": 877,
    }
    for name, place in places.items():
        assert body[place:].startswith(fields[name])
        assert getattr(found, name) == fields[name]


def test_the_other_kind_of_quote() -> None:
    assert refused(SgxQuote.parse, QUOTES["tdx4"][1]) == "unsupported-quote"
    assert refused(TdxQuote.parse, QUOTES["sgx"][1]) == "unsupported-quote"


def test_enclave_report() -> None:
    raw = enclave_report(report_data=DATA, isv_prod_id=7, isv_svn=9, misc_select=1)
    report = EnclaveReport.parse(raw)
    assert (report.isv_prod_id, report.isv_svn, report.misc_select, report.report_data) == (7, 9, 1, DATA)
    assert refused(EnclaveReport.parse, raw + b"\0") == "wrong-length"
    for start, size in ((20, 12), (96, 32), (160, 32), (262, 42)):
        for place in (start, start + size - 1):
            assert refused(EnclaveReport.parse, raw[:place] + b"\1" + raw[place + 1 :]) == "reserved-not-zero"


@pytest.mark.parametrize(("kind", "size"), [(1, 16), (2, 256), (3, 384)])
def test_pck_identifiers(kind: int, size: int) -> None:
    platform, _ = _platforms()
    platform.certification = kind, bytes(size) + bytes(range(16)) + b"\5\0" + b"\1\2"
    found = SgxQuote.parse(platform.evidence(DATA)[0]).signature.certification
    assert isinstance(found, PckIdentifier)
    assert (found.cpu_svn, found.pce_svn, found.pce_id) == (bytes(range(16)), 5, b"\1\2")
    platform.certification = kind, bytes(size + 18)  # as early quoting libraries wrote it
    found = SgxQuote.parse(platform.evidence(DATA)[0]).signature.certification
    assert isinstance(found, PckIdentifier)
    assert found.pce_id == b""
    for wrong in (size + 17, size + 19, size + 21):
        platform.certification = kind, bytes(wrong)
        assert refused(SgxQuote.parse, platform.evidence(DATA)[0]) in {"truncated-quote", "wrong-length"}


@pytest.mark.parametrize("kind", [0, 6, 7, 0xFFFF])
def test_unknown_certification_data(kind: int) -> None:
    platform, _ = _platforms()
    platform.certification = kind, b""
    assert refused(SgxQuote.parse, platform.evidence(DATA)[0]) == "unsupported-certification-data"


def test_attribute_bits() -> None:
    bits = TdxQuote.parse(
        TDX.evidence(DATA, td_attributes=bytes([1, 0, 0, 0x30, 0, 1, 0, 0x80]), xfam=b"\x03\x04" + bytes(6))[
            0
        ]
    )
    assert bits.attributes.names == ("DEBUG", "SEPT_VE_DISABLE", "MIGRATABLE", "PERFMON")
    assert bits.attributes.unknown == (40,)
    assert bits.xfam.names == ("X87", "SSE")
    assert bits.xfam.unknown == (10,)
    flags = SgxQuote.parse(
        SGX.evidence(DATA, attributes=bytes([0x97, 1]) + bytes(14), misc_select=5)[0]
    ).attributes
    assert flags.flags == ("INIT", "DEBUG", "MODE64BIT", "PROVISIONKEY", "KSS")
    assert (flags.unknown_flags, flags.miscselect, flags.unknown_miscselect) == ((8,), ("EXINFO",), (2,))


@given(st.binary(max_size=1500), st.sampled_from(["sgx", "tdx4", "tdx5-1.5"]), st.integers(0, 1200))
def test_parsers_raise_their_own_error_only(tail: bytes, name: str, keep: int) -> None:
    kind, raw = QUOTES[name]
    for blob in (tail, raw[:keep] + tail):
        try:
            quote = kind.parse(blob)
        except EvidenceFormatError:
            continue
        assert blob.startswith(quote.signed)


@given(st.binary(max_size=400))
def test_der_raises_its_own_error_only(raw: bytes) -> None:
    for blob in (raw, b"\x30" + bytes([len(raw) & 0x7F]) + raw):
        try:
            element = read_der(blob)
            for read in (element.children, element.oid, element.integer, element.boolean, element.octets):
                try:
                    read()
                except EvidenceFormatError:
                    continue
        except EvidenceFormatError:
            continue


@pytest.mark.parametrize(
    "raw",
    ["", "30", "3001", "300000", "30810100", "3082000100", "30800000", "1f0100", "0284ffffffff"],
)
def test_not_der(raw: str) -> None:
    assert refused(read_der, bytes.fromhex(raw)) == "malformed-der"


@pytest.mark.parametrize(
    ("read", "raw"),
    [
        ("integer", "0200"),
        ("integer", "0201ff"),
        ("integer", "02020001"),
        ("boolean", "010101"),
        ("boolean", "01020000"),
        ("oid", "0600"),
        ("oid", "06022a86"),
        ("oid", "06032a8001"),
        ("octets", "0201aa"),
        ("children", "0400"),
    ],
)
def test_values_that_are_not_der(read: str, raw: str) -> None:
    assert refused(getattr(read_der(bytes.fromhex(raw)), read)) == "malformed-der"


def test_values_of_der() -> None:
    assert read_der(bytes.fromhex("02020080")).integer() == 128
    assert read_der(bytes.fromhex("0609 2a864886f84d010d01")).oid() == "1.2.840.113741.1.13.1"
    assert read_der(bytes.fromhex("0603 883703")).oid() == "2.999.3"
    assert read_der(bytes.fromhex("0101ff")).boolean()
    assert read_der(b"\x04\x81\x80" + bytes(128)).octets(128) == bytes(128)


@given(st.binary(max_size=200))
def test_collateral_raises_its_own_error_only(raw: bytes) -> None:
    for blob in (raw, b'{"tcbInfo":' + raw, b'{"tcbInfo":{"id":"TDX"' + raw + b'},"signature":"00"}'):
        try:
            parse_intel_json(blob)
        except EvidenceFormatError:
            continue


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "malformed-intel-json"),
        (b"[]", "malformed-intel-json"),
        (b'{"a":1', "malformed-intel-json"),
        (b'{"a":1}x', "malformed-intel-json"),
        (b'{"a":1,"a":2}', "duplicate-key"),
        (b"{1:2}", "malformed-intel-json"),
        (b'{"a":' + b"9" * 5000 + b"}", "malformed-intel-json"),
        (b'{"a":' + b"[" * 100000 + b"}", "malformed-intel-json"),
        (b'{"a":"' + bytes([0xFF]) + b'"}', "malformed-intel-json"),
        (b" " * (2 * 1024 * 1024 + 1), "too-large"),
    ],
)
def test_not_an_object(raw: bytes, code: str) -> None:
    assert refused(top_members, raw) == code


def test_the_very_bytes_of_a_member() -> None:
    raw = b' {\n "tcbInfo" : { "a":1 ,\n"b" : [ "\xc3\xa9", 2.50 ] } , "signature":"00" }\n'
    assert top_members(raw)["tcbInfo"] == b'{ "a":1 ,\n"b" : [ "\xc3\xa9", 2.50 ] }'


def test_duplicate_keys_inside_signed_collateral() -> None:
    served = TDX.pki.sign_json("tcbInfo", TDX.tcb_info)
    twice = served.replace(b'"version":3', b'"version":3,"version":2')
    assert refused(parse_intel_json, twice) == "duplicate-key"
    other = served.replace(b'{"tcbInfo"', b'{"more":0,"tcbInfo"')
    assert refused(parse_intel_json, other) == "malformed-intel-json"
    both = served[:-1] + b',"enclaveIdentity":{}}'
    assert refused(parse_intel_json, both) == "malformed-intel-json"


def test_pck_chain() -> None:
    """One spelling of each block, and nothing around them."""
    quote = SgxQuote.parse(QUOTES["sgx"][1])
    assert isinstance(quote.signature.certification, PckCertificates)
    pem = quote.signature.certification.pem
    assert len(parse_pck_chain(pem)) == len(parse_pck_chain(pem.replace(b"\n", b"\r\n"))) == 3
    wrong = {
        b"x" + pem: "malformed-pem",
        pem + b"x": "malformed-pem",
        pem.replace(b"\n", b"\x0b", 2): "malformed-pem",
        pem.replace(b"CERTIFICATE", b"PUBLIC KEY"): "malformed-pem",
        pem[:-40]: "malformed-pem",
        b"": "malformed-pem",
        pem.rstrip(b"\0") + pem: "malformed-chain",
        pem + b"\n" * 40000: "too-large",
    }
    for text, code in wrong.items():
        assert refused(parse_pck_chain, text) == code


def test_pck_extension() -> None:
    said = PckExtension.of(TDX.certificate())
    assert (said.ppid, said.fmspc, said.pce_svn) == (TDX.ppid, TDX.fmspc, TDX.pce_svn)
    assert (said.sgx_type, said.platform_instance_id, said.cached_keys) == (
        "scalable",
        bytes(range(16, 32)),
        True,
    )
    plain = PckExtension.of(SGX.certificate())
    assert (plain.sgx_type, plain.platform_instance_id, plain.smt_enabled) == ("standard", None, None)
    assert refused(PckExtension.of, TDX.pki.ca) == "malformed-pck"


def test_real_pck_extension() -> None:
    quote = TdxQuote.parse(quote_bytes("tdx/trustee/tdx_quote_5.dat"))
    assert isinstance(quote.signature.certification, PckCertificates)
    said = PckExtension.of(parse_pck_chain(quote.signature.certification.pem)[0])
    assert said.fmspc.hex() == "90c06f000000"
    assert said.tcb.hex() == "01010202030100030000000000000000"
    assert said.pce_svn == 13
    assert said.sgx_type == "scalable"
