"""configfs-tsm, against a stand-in that follows the kernel: what is asked, what is refused, who meddles."""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.vector_files import vector

from sealwright.attester.files import OsFiles
from sealwright.attester.snp import SnpAttester
from sealwright.attester.tdx import TdxAttester, TdxMeasurements, report_data_of
from sealwright.attester.tsm import PAUSES_S, TsmReports
from sealwright.errors import UnavailableError, VerificationError
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tsm import FakeConfigfs, FakeTdxRegisters, SevGuest, TdxGuest, fail

OURS = bytes(range(64))
THEIRS = bytes(64)
VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")


def configfs(provider: Any, **kw: Any) -> FakeConfigfs:
    with pytest.warns(FakePlatformWarning):
        return FakeConfigfs(provider, **kw)


def reports(files: FakeConfigfs) -> TsmReports:
    return TsmReports(files, sleep=lambda _: None)


def table(*entries: tuple[UUID, bytes]) -> bytes:
    at = 24 * (len(entries) + 1)
    head, body = b"", b""
    for guid, blob in entries:
        head += guid.bytes + struct.pack("<II", at + len(body), len(blob))
        body += blob
    return head + bytes(24) + body


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(UnavailableError) as caught:
        call()
    assert caught.value.stage == "collect"
    return caught.value.code


def test_a_report_is_over_our_data_and_the_entry_is_gone_after() -> None:
    files = configfs(SevGuest())
    envelope = SnpAttester(reports(files)).quote(OURS)
    assert (envelope.type, envelope.evidence[0x50:0x90], envelope.endorsements) == ("snp", OURS, ())
    assert len(envelope.evidence) == 0x4A0
    assert files.entries == {}


def test_the_order_of_calls_is_the_one_the_kernel_documents() -> None:
    files = configfs(SevGuest())
    calls: list[str] = []
    files.before = lambda operation, path: calls.append(f"{operation} {path.rpartition('/')[2]}")
    reports(files).report(OURS, provider="sev_guest")
    entry = calls[0].removeprefix("mkdir ")
    assert calls == [
        f"mkdir {entry}",
        "read provider",
        "read generation",
        "read privlevel_floor",
        "write privlevel",
        "write inblob",
        "close inblob",
        "read outblob",
        "fill outblob",
        "read auxblob",
        "read generation",
        f"rmdir {entry}",
    ]


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_other_lengths_are_our_callers_bug(length: int) -> None:
    files = configfs(SevGuest())
    for attester in (SnpAttester(reports(files)), TdxAttester(reports(files), files)):
        with pytest.raises(ValueError, match="64 bytes"):
            attester.quote(bytes(length))
    assert files.entries == {}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"mounted": False}, "tee-interface-missing"),
        ({"provider": None}, "tee-provider"),
        ({"provider": TdxGuest()}, "tee-provider"),
        ({"root": False}, "tee-permission"),
    ],
)
def test_what_is_missing_is_told_apart(change: dict[str, Any], code: str) -> None:
    files = configfs(SevGuest())
    for name, value in change.items():
        setattr(files, name, value)
    assert code_of(lambda: SnpAttester(reports(files)).quote(OURS)) == code
    assert files.entries == {}


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.EINVAL, errno.ETIMEDOUT, errno.ENOTTY, errno.ENXIO, errno.EFBIG]
)
def test_what_the_firmware_refuses_is_refused_at_once(number: int) -> None:
    provider = SevGuest(failures=[number, number])
    files = configfs(provider)
    assert code_of(lambda: SnpAttester(reports(files)).quote(OURS)) == "tee-refused"
    assert len(provider.failures) == 1, "asked once, not again"
    assert files.entries == {}


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN, errno.EINTR])
def test_a_busy_provider_is_asked_again_with_pauses(number: int) -> None:
    provider = TdxGuest(failures=[number] * (len(PAUSES_S) - 1))
    files = configfs(provider)
    slept: list[float] = []
    envelope = TdxAttester(TsmReports(files, sleep=slept.append), files).quote(OURS)
    assert envelope.evidence[568:632] == OURS
    assert slept == list(PAUSES_S)
    provider.failures = [number] * len(PAUSES_S)
    assert code_of(lambda: TdxAttester(reports(files), files).quote(OURS)) == "tee-busy"


def meddle(files: FakeConfigfs, when: str, act: Callable[[str], None], *, times: int = 1) -> list[str]:
    """Let a second writer act just before a step of ours, on our entry, `times` times. Returns what it did."""
    done: list[str] = []

    def before(operation: str, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if f"{operation} {name}" == when and len(done) < times:
            done.append(folder)
            files.before = lambda *_: None  # its own calls are not watched
            act(folder)
            files.before = before

    files.before = before
    return done


STEPS = [
    "read provider",
    "read generation",
    "write privlevel",
    "write inblob",
    "read outblob",
    "fill outblob",
    "read auxblob",
]


@pytest.mark.parametrize("when", STEPS)
@pytest.mark.parametrize("name", ["inblob", "privlevel"])
def test_a_second_writer_at_any_step_is_noticed_and_its_report_is_never_used(when: str, name: str) -> None:
    files = configfs(SevGuest())
    value = THEIRS if name == "inblob" else b"3"
    done = meddle(files, when, lambda folder: files.write(f"{folder}/{name}", value))
    envelope = SnpAttester(reports(files)).quote(OURS)
    assert len(done) == 1, "the writer acted"
    assert envelope.evidence[0x50:0x90] == OURS
    assert envelope.evidence[0x30] == 0
    assert files.entries == {}
    done = meddle(files, when, lambda folder: files.write(f"{folder}/{name}", value), times=99)
    assert code_of(lambda: SnpAttester(reports(files)).quote(OURS)) == "tee-busy"
    assert len(done) >= len(PAUSES_S)


def test_a_service_set_before_we_looked_is_noticed_though_our_own_writes_all_count() -> None:
    """Its generation is 1 before we begin: counting only our own writes would miss it."""
    provider = SevGuest(attributes=SevGuest().attributes | {"service_provider"})
    files = configfs(provider)
    meddle(
        files, "read provider", lambda folder: files.write(f"{folder}/service_provider", b"svsm"), times=99
    )
    assert code_of(lambda: SnpAttester(reports(files)).quote(OURS)) == "tee-busy"


def test_a_write_that_the_kernel_dropped_on_close_yields_nothing() -> None:
    """EBUSY of a binary attribute comes on close, where nobody sees it."""
    files = configfs(SevGuest())

    def drop(folder: str) -> None:
        entry = files.entries[folder.rpartition("/")[2]]
        entry.made = entry.written + 1  # as after 2^64 - 1 writes without a read

    meddle(files, "close inblob", drop)
    assert code_of(lambda: SnpAttester(reports(files)).quote(OURS)) == "tee-refused"

    def drop_ours_for_theirs(folder: str) -> None:
        files.write(f"{folder}/inblob", THEIRS)
        drop(folder)

    meddle(files, "close inblob", drop_ours_for_theirs)
    with pytest.raises(VerificationError) as caught:  # the generation is what it should be; the report is not
        SnpAttester(reports(files)).quote(OURS)
    assert caught.value.code == "report-data-mismatch"


def test_an_entry_that_another_removed_is_made_again() -> None:
    files = configfs(SevGuest())
    done = meddle(files, "read outblob", files.rmdir)
    assert SnpAttester(reports(files)).quote(OURS).evidence[0x50:0x90] == OURS
    assert len(done) == 1


def test_an_attribute_that_is_no_number_is_refused() -> None:
    class Odd(FakeConfigfs):
        def _show(self, entry: Any, name: str) -> object:
            return "1e9" if name == "generation" else super()._show(entry, name)

    with pytest.warns(FakePlatformWarning):
        files = Odd(SevGuest())
    assert code_of(lambda: SnpAttester(reports(files)).quote(OURS)) == "tee-refused"


@pytest.mark.parametrize(("floor", "asked", "vmpl"), [(0, None, 0), (0, 2, 2), (1, None, 1), (2, 3, 3)])
def test_the_vmpl_is_the_guests_own_or_the_one_asked_for(floor: int, asked: int | None, vmpl: int) -> None:
    files = configfs(SevGuest(floor=floor))
    assert SnpAttester(reports(files), vmpl=asked).quote(OURS).evidence[0x30] == vmpl


@pytest.mark.parametrize(("floor", "asked"), [(1, 0), (0, 4), (0, -1)])
def test_a_vmpl_that_cannot_be_had_is_refused(floor: int, asked: int) -> None:
    files = configfs(SevGuest(floor=floor))
    assert code_of(lambda: SnpAttester(reports(files), vmpl=asked).quote(OURS)) == "tee-refused"


def test_tdx_has_no_privilege_levels() -> None:
    files = configfs(TdxGuest())
    ask = lambda: reports(files).report(OURS, provider="tdx_guest", privlevel=0)  # noqa: E731
    assert code_of(ask) == "tee-refused"


class _Sloppy(SevGuest):
    """Firmware whose report is not what was asked for."""

    cut = 0
    data = OURS
    vmpl = 0

    def report_new(self, options: Any) -> tuple[bytes, bytes]:
        report, _ = SevGuest.report_new(self, options)
        report = report[:0x30] + bytes([self.vmpl]) + report[0x31:0x50] + self.data + report[0x90:]
        return report[: len(report) - self.cut], b""


def test_a_report_that_is_not_ours_is_refused() -> None:
    short, other, level = _Sloppy(), _Sloppy(), _Sloppy()
    short.cut, other.data, level.vmpl = 1, THEIRS, 1
    assert code_of(lambda: SnpAttester(reports(configfs(short))).quote(OURS)) == "tee-refused"
    assert code_of(lambda: SnpAttester(reports(configfs(level))).quote(OURS)) == "tee-refused"
    with pytest.raises(VerificationError) as caught:
        SnpAttester(reports(configfs(other))).quote(OURS)
    assert (caught.value.code, caught.value.stage) == ("report-data-mismatch", "collect")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # AMD gives every VCEK the number 0
def test_the_hosts_certificates_travel_as_endorsements() -> None:
    vcek = vector("sev-snp/trustee/test-vcek.der")
    unknown = UUID("00000000-0000-4000-8000-000000000001")
    made = SnpAttester(reports(configfs(SevGuest(auxblob=table((unknown, b"anything"), (VCEK, vcek))))))
    assert (made.quote(OURS).endorsements, made.note) == ((vcek,), "")


@pytest.mark.parametrize("blob", [b"", bytes(24), bytes(4096)])
def test_a_host_without_a_table_is_no_sloppy_one(blob: bytes) -> None:
    made = SnpAttester(reports(configfs(SevGuest(auxblob=blob))))
    assert (made.quote(OURS).endorsements, made.note) == ((), "")


@pytest.mark.parametrize(
    ("blob", "code"),
    [
        (VCEK.bytes, "malformed-certificate-table"),  # no whole entry
        (VCEK.bytes + struct.pack("<II", 24, 0), "malformed-certificate-table"),  # no end
        (VCEK.bytes + struct.pack("<II", 48, 1) + bytes(24), "malformed-certificate-table"),  # behind its end
        (VCEK.bytes + struct.pack("<II", 0xFFFFFFFF, 2) + bytes(24), "malformed-certificate-table"),
        (table((VCEK, b"")), "malformed-certificate-table"),
        (table(*[(VCEK, b"x")] * 65), "malformed-certificate-table"),
        (table((VCEK, b"x"), (VCEK, b"x")), "malformed-certificate-table"),
        (table((VCEK, b"x")), "unknown-endorsement"),
        (table((VCEK, b"\x30\x03\x02\x01\x01")), "unknown-endorsement"),
    ],
)
def test_a_sloppy_hosts_table_stops_no_quote(blob: bytes, code: str) -> None:
    provider = SevGuest(auxblob=blob)
    made = SnpAttester(reports(configfs(provider)))
    envelope = made.quote(OURS)
    assert (envelope.evidence[0x50:0x90], envelope.endorsements) == (OURS, ())
    assert made.note.endswith(f"[{code}]")
    assert made.describe()["note"] == made.note
    provider.auxblob = b""  # mended: the note was on the last quote
    assert (made.quote(OURS).endorsements, made.note) == ((), "")


# TDX


class _WithLog(FakeConfigfs):
    log: bytes | int = b"log area"

    def read(self, path: str) -> bytes:
        if path == "/sys/firmware/acpi/tables/data/CCEL":
            if isinstance(self.log, int):
                raise fail(self.log, path)
            return self.log
        return super().read(path)


def tdx(provider: TdxGuest | None = None, log: bytes | int = b"log area") -> TdxAttester:
    with pytest.warns(FakePlatformWarning):
        files = _WithLog(provider or TdxGuest())
    files.log = log
    return TdxAttester(reports(files), files)


@pytest.mark.parametrize(("version", "at"), [(4, 568), (5, 574)])
def test_a_tdx_quote_comes_with_the_firmwares_log(version: int, at: int) -> None:
    envelope = tdx(TdxGuest(version=version)).quote(OURS)
    assert (envelope.type, envelope.evidence[at : at + 64], envelope.event_log) == ("tdx", OURS, b"log area")


def test_the_report_data_of_real_quotes_is_where_we_look_for_it() -> None:
    quote = vector("tpm/trustee-az/test_data__az-tdx-vtpm__td-quote.bin")
    hcl = vector("tpm/trustee-az/test_data__az-tdx-vtpm__hcl-report.bin")
    claims = hcl[1236 : 1236 + struct.unpack_from("<I", hcl, 1232)[0]]
    assert report_data_of(quote)[:32] == hashlib.sha256(claims).digest()


def test_without_a_log_there_is_none_but_one_that_cannot_be_read_is_an_error() -> None:
    assert tdx(log=errno.ENOENT).quote(OURS).event_log is None
    assert tdx(log=b"").quote(OURS).event_log is None
    assert code_of(lambda: tdx(log=errno.EACCES).quote(OURS)) == "tee-permission"
    assert code_of(lambda: tdx(log=errno.EIO).quote(OURS)) == "tee-refused"
    assert tdx().describe() == {"interface": "configfs-tsm", "provider": "tdx_guest", "event_log": 8}


@pytest.mark.parametrize("left", [b"", b"\4", bytes(2000), b"\4\0" + bytes(600), b"\6\0" + bytes(2000)])
def test_what_a_failed_request_left_behind_is_no_quote(left: bytes) -> None:
    assert code_of(lambda: tdx(TdxGuest(quote=left)).quote(OURS)) == "tee-refused"


def test_an_old_quote_that_the_host_replays_is_refused() -> None:
    stale, _ = TdxGuest().report_new(type("O", (), {"inblob": THEIRS})())
    with pytest.raises(VerificationError) as caught:
        tdx(TdxGuest(quote=stale)).quote(OURS)
    assert caught.value.code == "report-data-mismatch"


# Registers


def registers() -> FakeTdxRegisters:
    with pytest.warns(FakePlatformWarning):
        return FakeTdxRegisters()


def test_a_config_digest_is_the_only_extend_of_rtmr3() -> None:
    files = registers()
    measured = TdxMeasurements(files)
    digest = hashlib.sha256(b"config").digest()
    wanted = hashlib.sha384(bytes(48) + digest + bytes(16)).digest()
    assert measured.extend_config(digest) == wanted
    assert measured.extend_config(digest) == wanted, "doing it twice does it once"
    assert measured.read()["rtmr3"] == wanted
    assert set(measured.read()) == {
        "mrtd",
        "mrconfigid",
        "mrowner",
        "mrownerconfig",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
    }
    with pytest.raises(VerificationError) as caught:
        measured.extend_config(bytes(32))
    assert caught.value.code == "config-register-used"


def test_an_extend_by_another_at_the_same_time_is_noticed() -> None:
    files = registers()

    def before(operation: str, path: str) -> None:
        if operation == "write":
            files.before = lambda *_: None
            files.write(path, b"\1" * 48)

    files.before = before
    with pytest.raises(VerificationError) as caught:
        TdxMeasurements(files).extend_config(bytes(32))
    assert caught.value.code == "config-register-used"
    files.before = before
    with pytest.raises(VerificationError):
        TdxMeasurements(files).extend_rtmr(2, bytes(48))


def test_extends_are_whole_and_leave_the_firmwares_registers_alone() -> None:
    measured = TdxMeasurements(registers())
    assert measured.extend_rtmr(2, b"\7" * 48) == hashlib.sha384(bytes(48) + b"\7" * 48).digest()
    for index, digest in ((0, bytes(48)), (1, bytes(48)), (4, bytes(48)), (3, bytes(32))):
        with pytest.raises(ValueError, match="48 bytes"):
            measured.extend_rtmr(index, digest)
    with pytest.raises(ValueError, match="32 bytes"):
        measured.extend_config(bytes(48))


def test_older_kernels_and_odd_registers() -> None:
    files = registers()
    files.values["mrtd:sha384"] = bytes(32)
    assert code_of(TdxMeasurements(files).read) == "tee-refused"
    files.values.clear()
    assert code_of(TdxMeasurements(files).read) == "tee-interface-missing"
    files.before = lambda operation, path: (_ for _ in ()).throw(fail(errno.EACCES, path))  # type: ignore[assignment,return-value]
    assert code_of(TdxMeasurements(files).read) == "tee-permission"


# The real file operations


def test_the_real_operations_do_what_their_names_say(tmp_path: Path) -> None:
    files = OsFiles()
    folder = str(tmp_path / "entry")
    files.mkdir(folder)
    (tmp_path / "entry" / "inblob").touch()
    files.write(f"{folder}/inblob", OURS)
    assert files.read(f"{folder}/inblob") == OURS
    files.write(f"{folder}/inblob", b"ab")
    assert files.read(f"{folder}/inblob") == b"ab" + OURS[2:], "nothing is truncated"
    with pytest.raises(FileNotFoundError):
        files.write(f"{folder}/none", b"x")
    (tmp_path / "entry" / "inblob").unlink()
    files.rmdir(folder)
    with (tmp_path / "large").open("wb") as large:
        large.truncate(1 << 20)
    with pytest.raises(OSError, match="too large") as caught:
        files.read(str(tmp_path / "large"))
    assert caught.value.errno == errno.EFBIG


def test_this_machine_has_no_tsm_and_says_so(tmp_path: Path) -> None:
    absent = TsmReports(base=str(tmp_path / "config/tsm/report"), sleep=lambda _: None)
    assert code_of(lambda: absent.report(OURS, provider="sev_guest")) == "tee-interface-missing"
    assert code_of(absent.provider) == "tee-interface-missing"
