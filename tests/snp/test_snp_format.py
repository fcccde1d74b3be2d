"""Reports and certificate tables: exact, or refused as malformed and as nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.snp.support import DATA, platform, refused

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.snp import HOST_VMPL, REPORT_SIZE, SIGNED_SIZE, SnpReport
from sealwright.evidence.snp_certs import GUIDS, MAX_ENTRIES, CertificateTable, ExtendedReport
from sealwright.evidence.snp_fields import GuestPolicy, PlatformInfo, TcbVersion, product_of
from sealwright.testing.snp import SnpTestPlatform

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@pytest.fixture(scope="module")
def genoa() -> SnpTestPlatform:
    return platform("Genoa")


def _numbered(raw: bytes, r: int, s: int) -> bytes:
    return raw[:SIGNED_SIZE] + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


def test_fields_stand_where_they_belong(genoa: SnpTestPlatform) -> None:
    tcbs = {
        name: TcbVersion(fmc=None, boot_loader=number, tee=number + 1, snp=number + 2, microcode=number + 200)
        for number, name in enumerate(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"))
    }
    blobs = {
        name: bytes((number,)) * length
        for number, (name, length) in enumerate(
            {
                "family_id": 16,
                "image_id": 16,
                "measurement": 48,
                "host_data": 32,
                "id_key_digest": 48,
                "author_key_digest": 48,
                "report_id": 32,
                "report_id_ma": 32,
                "chip_id": 64,
            }.items(),
            start=1,
        )
    }
    numbers = {"guest_svn": 0x01020304, "vmpl": 3, "launch_mit_vector": 5, "current_mit_vector": 1 << 63}
    report = SnpReport.parse(
        genoa.report(
            DATA,
            policy=0x3AB0137,
            platform_info=0x1A5,
            key_info=0b101,
            current=(1, 58, 9),
            committed=(1, 57, 255),
            cpuid=b"\x19\xa0\x02",
            **tcbs,
            **blobs,
            **numbers,
        )
    )
    for name, value in (tcbs | blobs | numbers).items():
        assert getattr(report, name) == value, name
    assert report.report_data == DATA
    assert (report.policy.abi, report.policy.unknown_bits) == ((1, 55), [])
    assert {bit for bit in GuestPolicy.BITS if report.policy.has(bit)} == {
        "smt",
        "debug",
        "cxl_allow",
        "rapl_dis",
        "ciphertext_hiding_dram",
        "page_swap_disable",
    }
    assert report.platform_info.unknown_bits == [8]
    assert {bit for bit in PlatformInfo.BITS if report.platform_info.has(bit)} == {
        "smt_en",
        "ecc_en",
        "alias_check_complete",
        "tio_en",
    }
    assert (report.key_info.signing_key, report.key_info.author_key_en) == ("vlek", True)
    assert (str(report.current), str(report.committed)) == ("1.58.9", "1.57.255")
    assert (report.product, report.cpuid_fms) == ("Genoa", (0x19, 0xA0, 2))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 1}, "unsupported-report"),
        ({"version": 6}, "unsupported-report"),
        ({"algorithm": 0}, "unsupported-report"),
        ({"algorithm": 2}, "unsupported-report"),
        ({"policy": 0x10000}, "reserved-not-zero"),  # bit 17 is always set
        ({"vmpl": 4}, "reserved-not-zero"),
        ({"key_info": 2 << 2}, "reserved-not-zero"),
        ({"key_info": 1 << 5}, "reserved-not-zero"),
        *[
            ({f"reserved_{number}": value}, "reserved-not-zero")
            for number, value in (
                (1, 1),
                (2, b"\1".ljust(21, b"\0")),
                (3, 1),
                (4, 1),
                (5, b"\1".rjust(152, b"\0")),
            )
        ],
        ({"current_tcb": bytes((1, 2, 3, 0, 0, 0, 4, 5))}, "reserved-not-zero"),
        ({"version": 4, "launch_mit_vector": 1}, "reserved-not-zero"),
        ({"version": 3, "current_mit_vector": 1}, "reserved-not-zero"),
        ({"version": 2}, "reserved-not-zero"),  # it has no CPUID
        ({"cpuid": b"\x17\x31\x00"}, "unknown-processor"),
        ({"cpuid": b"\x19\x20\x00"}, "unknown-processor"),
        ({"cpuid": b"\x1a\x50\x00"}, "unknown-processor"),  # Venice
        ({"cpuid": b"\x1a\x02\x01"}, "reserved-not-zero"),  # Turin's TCB is laid out otherwise
    ],
)
def test_report_out_of_its_format(genoa: SnpTestPlatform, changes: dict[str, Any], code: str) -> None:
    with refused("parse", code, EvidenceFormatError):
        SnpReport.parse(genoa.report(DATA, **changes))


def test_chip_id_of_a_turin_is_short() -> None:
    turin = platform("Turin")
    assert SnpReport.parse(turin.report(DATA)).product == "Turin"
    with refused("parse", "reserved-not-zero", EvidenceFormatError):
        SnpReport.parse(turin.report(DATA, chip_id=bytes(range(64))))


@pytest.mark.parametrize(
    ("r", "s"), [(0, 1), (1, 0), (ORDER, 1), (1, ORDER), (1 << 384, 1), (1, (1 << 576) - 1)]
)
def test_signature_out_of_range(genoa: SnpTestPlatform, r: int, s: int) -> None:
    raw = genoa.report(DATA)
    assert SnpReport.parse(_numbered(raw, 1, ORDER - 1)).signature_s == ORDER - 1
    with refused("parse", "malformed-signature", EvidenceFormatError):
        SnpReport.parse(_numbered(raw, r, s))


def test_bytes_behind_the_signature_are_zero(genoa: SnpTestPlatform) -> None:
    raw = bytearray(genoa.report(DATA))
    raw[SIGNED_SIZE + 144] = 1
    with refused("parse", "reserved-not-zero", EvidenceFormatError):
        SnpReport.parse(bytes(raw))


def test_unsigned_report_has_no_signature(genoa: SnpTestPlatform) -> None:
    for key_info in (7 << 2, 2):
        raw = genoa.report(DATA, key_info=key_info)
        assert not SnpReport.parse(_numbered(raw, 0, 0)).is_signed
        with refused("parse", "malformed-signature", EvidenceFormatError):
            SnpReport.parse(raw)


def test_report_that_the_host_asked_for(genoa: SnpTestPlatform) -> None:
    assert SnpReport.parse(genoa.report(DATA, vmpl=HOST_VMPL)).vmpl == HOST_VMPL


@pytest.mark.parametrize("length", [0, 1, REPORT_SIZE - 1, REPORT_SIZE + 1, 2 * REPORT_SIZE])
def test_length_of_a_report(genoa: SnpTestPlatform, length: int) -> None:
    with refused("parse", "wrong-length", EvidenceFormatError):
        SnpReport.parse((genoa.report(DATA) * 2)[:length])


def test_products() -> None:
    assert product_of(0x19, 0x01) == "Milan"
    assert [product_of(0x19, model) for model in (0x11, 0xA0, 0xAF)] == ["Genoa"] * 3
    assert [product_of(0x1A, model) for model in (0x02, 0x11)] == ["Turin"] * 2


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_report_is_exact_or_malformed(genoa: SnpTestPlatform, data: st.DataObject) -> None:
    raw = bytearray(genoa.report(DATA))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, REPORT_SIZE - 1))
        part = data.draw(st.binary(min_size=1, max_size=16))
        raw[start : start + len(part)] = part
    _exact_or_malformed(SnpReport, bytes(raw))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_table_is_read_or_malformed(blob: bytes) -> None:
    try:
        table = CertificateTable.parse(blob)
    except EvidenceFormatError:
        return
    assert CertificateTable.parse(table.encode()) == table


@given(
    st.lists(
        st.tuples(st.binary(min_size=16, max_size=16).filter(any), st.binary(min_size=1, max_size=40)),
        max_size=5,
        unique_by=lambda entry: entry[0],
    ),
    st.integers(0, 100),
)
def test_table_is_what_was_put_in(entries: list[tuple[bytes, bytes]], padding: int) -> None:
    table = CertificateTable(entries=tuple(entries))
    assert CertificateTable.parse(table.encode() + bytes(padding)) == table


def _exact_or_malformed(kind: Any, raw: bytes) -> None:
    try:
        parsed = kind.parse(raw)
    except EvidenceFormatError:
        return
    assert parsed.encode() == raw


def _head(offset: int, length: int, guid: bytes = GUIDS["VCEK"]) -> bytes:
    return guid + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


END = bytes(24)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        _head(24, 1),
        _head(48, 4) + END,  # outside
        _head(47, 2) + END + b"abcd",  # in the head
        _head(0xFFFFFFFF, 0xFFFFFFFF) + END + b"abcd",
        _head(48, 0) + END,
        _head(48, 4) + _head(72, 4) + END + b"abcdefgh",  # the first lies in the head
        _head(72, 4) + _head(75, 4, GUIDS["ARK"]) + END + b"abcdefgh",  # overlap
        _head(72, 4) + _head(76, 4) + END + b"abcdefgh",  # a GUID twice
        _head(48, 4) + END + b"abcdX",  # after the last
        _head(49, 3) + END + b"Xabc",  # between
        b"".join(_head(10**6, 1, bytes((n,)) * 16) for n in range(1, MAX_ENTRIES + 3)) + END,
    ],
)
def test_table_out_of_its_format(raw: bytes) -> None:
    with refused("parse", "malformed-certificate-table", EvidenceFormatError):
        CertificateTable.parse(raw)


def test_report_with_what_follows_it(genoa: SnpTestPlatform) -> None:
    raw, table = genoa.report(DATA), genoa.table()
    alone = ExtendedReport.parse(raw)
    assert (alone.report, alone.table, alone.padding) == (SnpReport.parse(raw), None, 0)
    padded = ExtendedReport.parse(raw + bytes(2816))
    assert (padded.report, padded.table, padded.padding) == (alone.report, None, 2816)
    extended = ExtendedReport.parse(raw + table.encode() + bytes(4096))
    assert (extended.report, extended.table, extended.padding) == (alone.report, table, 0)
    for rest in (b"\1", bytes(100) + b"\1", table.encode() + b"\1"):
        with refused("parse", "malformed-certificate-table", EvidenceFormatError):
            ExtendedReport.parse(raw + rest)
    with refused("parse", "too-large", EvidenceFormatError):
        ExtendedReport.parse(raw + bytes(1 << 21))


def test_table_in_the_bag_is_its_parts(genoa: SnpTestPlatform) -> None:
    parts, table = genoa.endorsements(), genoa.table()
    apart, together = Endorsements.detect(parts), Endorsements.detect([table.encode() + bytes(512)])
    assert together == apart
    of_a_cloud = CertificateTable(entries=(*table.entries, (b"\x9f" * 16, b"whatever it is")))
    assert Endorsements.detect([of_a_cloud.encode()]) == apart
    cloud_first = CertificateTable(entries=((b"\x9f" * 16, b"whatever it is"), *table.entries))
    assert Endorsements.detect([cloud_first.encode()]) == apart
    nested = CertificateTable(entries=((GUIDS["ASK"], table.encode()),))
    with refused("parse", "unknown-endorsement", EvidenceFormatError):
        Endorsements.detect([nested.encode()])
