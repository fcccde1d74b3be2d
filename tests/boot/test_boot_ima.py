"""IMA lists replay to PCR 10, in either form, up to the record that was last when the quote was made."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.boot.support import builder, signed

from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.ima import parse_ima_list
from sealwright.verify.boot import read_boot, with_boot
from sealwright.verify.eventlog import verify_event_log
from sealwright.verify.ima import verify_ima

PCRS = {f"pcr{number}": bytes([number]) * 32 for number in range(10)}
AGGREGATE = hashlib.sha256(b"".join(PCRS.values())).digest()


def data(digest: bytes, name: str, *third: bytes) -> bytes:
    fields = [b"sha256:\0" + digest, name.encode() + b"\0", *third]
    return b"".join(struct.pack("<I", len(field)) + field for field in fields)


RECORDS = [
    ("ima-ng", data(AGGREGATE, "boot_aggregate")),
    ("ima-sig", data(bytes(32), "/usr/bin/a file with spaces", b"\x03\x02signature")),
    ("ima-sig", data(bytes(32), "/etc/unsigned", b"")),
    ("ima-buf", data(bytes(32), "kexec-cmdline", b"quiet")),
]


def binary(records=RECORDS, spoil: int = -1) -> bytes:
    out = b""
    for number, (template, fields) in enumerate(records):
        head = bytes(20) if number == spoil else hashlib.sha1(fields).digest()
        out += struct.pack("<I", 10) + head + struct.pack("<I", len(template)) + template.encode()
        out += struct.pack("<I", len(fields)) + fields
    return out


def text(spoil: int = -1) -> bytes:
    lines = []
    for record in parse_ima_list(binary(spoil=spoil)):
        line = f"10 {record.template_hash.hex()} {record.template} {record.file_digest} {record.file_name}"
        lines.append(line if record.template == "ima-ng" else f"{line} {record.third.hex()}")
    return "\n".join(lines).encode() + b"\n"


def pcr10(records=RECORDS, *, padded: bool = False, spoil: int = -1) -> bytes:
    value = bytes(32)
    for number, (_, fields) in enumerate(records):
        digest = hashlib.sha1(fields).digest().ljust(32, b"\0") if padded else hashlib.sha256(fields).digest()
        value = hashlib.sha256(value + (b"\xff" * 32 if number == spoil else digest)).digest()
    return value


@pytest.mark.parametrize("raw", [binary(), text()])
@pytest.mark.parametrize("padded", [False, True])
def test_list_replays(raw: bytes, padded: bool) -> None:
    records = parse_ima_list(raw)
    found = verify_ima(records, signed("tpm", PCRS | {"pcr10": pcr10(padded=padded)}))
    assert (found.records, found.unproved, found.padded) == (records, 0, padded)
    assert found.boot_aggregate
    assert [record.file_name for record in found.records][1] == "/usr/bin/a file with spaces"


def test_list_joins_the_account_of_its_boot() -> None:
    made = builder()
    made.boot()
    verified = signed("tpm", made.registers() | {"pcr10": pcr10(spoil=1)})
    account = read_boot(verify_event_log(made.log(), verified))
    ima = verify_ima(parse_ima_list(binary(spoil=1)), verified)
    joined = with_boot(verified, account, ima)
    assert joined.facts["ima"]["records"] == 4
    assert [one.code for one in joined.conditions] == ["ima-violation"]
    with pytest.raises(ValueError, match="pcr10"):
        with_boot(signed("tpm", made.registers()), account, ima)


def test_records_after_the_quote_are_left_out() -> None:
    found = verify_ima(parse_ima_list(binary()), signed("tpm", {"pcr10": pcr10(RECORDS[:2])}))
    assert (len(found.records), found.unproved, found.boot_aggregate) == (2, 2, False)


def test_violation_is_a_condition() -> None:
    for raw in (binary(spoil=1), text(spoil=1)):
        found = verify_ima(parse_ima_list(raw), signed("tpm", {"pcr10": pcr10(spoil=1)}))
        assert [one.code for one in found.conditions] == ["ima-violation"]


@pytest.mark.parametrize("position", range(len(binary())))
def test_every_part_of_a_record_counts(position: int) -> None:
    raw = bytearray(binary())
    raw[position] ^= 1
    with pytest.raises((EvidenceFormatError, VerificationError)):
        verify_ima(parse_ima_list(bytes(raw)), signed("tpm", {"pcr10": pcr10()}))


def test_refusals() -> None:
    records = parse_ima_list(binary())
    for registers, code in (({"pcr10": bytes(32)}, "ima-mismatch"), ({"pcr0": bytes(32)}, "bad-register")):
        with pytest.raises(VerificationError) as caught:
            verify_ima(records, signed("tpm", registers))
        assert (caught.value.code, caught.value.stage) == (code, "ima")
    broken = text().replace(b"kexec-cmdline", b"kexec-cmdlinf")
    with pytest.raises(VerificationError) as caught:
        verify_ima(parse_ima_list(broken), signed("tpm", {"pcr10": pcr10()}))
    assert caught.value.code == "ima-template-mismatch"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"10 " + b"00" * 20 + b" ima-ng sha256:00 name\n",
        b"10 " + b"0" * 39 + b" ima-ng sha256:" + b"00" * 32 + b" name\n",
        b"10 " + b"00" * 20 + b" ima-unknown sha256:" + b"00" * 32 + b" name\n",
        b"99 " + b"00" * 20 + b" ima-ng sha256:" + b"00" * 32 + b" name\n",
        b"10 " + b"AA" * 20 + b" ima-ng sha256:" + b"00" * 32 + b" name\n",
        b"\xff\xff",
        binary()[:-1],
        struct.pack("<I", 10) + bytes(20) + struct.pack("<I", 1 << 31),
    ],
)
def test_malformed_list(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_ima_list(raw)
    assert caught.value.code == "malformed-ima-list"


@given(
    raw=st.one_of(
        st.binary(max_size=200), st.builds(lambda tail: b"\x0a\0\0\0" + tail, st.binary(max_size=200))
    )
)
def test_parser_raises_its_own_error_alone(raw: bytes) -> None:
    with suppress(EvidenceFormatError):
        parse_ima_list(raw)


def test_a_hash_that_no_register_is_made_of_is_malformed() -> None:
    # MD5 is a hash of files, not of records: no PCR bank has it.
    record = data(bytes(32), "/bin/true")
    line = f"10 {hashlib.md5(record).hexdigest()} ima-ng sha256:{bytes(32).hex()} /bin/true\n"
    with pytest.raises(EvidenceFormatError) as caught:
        parse_ima_list(line.encode())
    assert caught.value.code == "malformed-ima-list"
