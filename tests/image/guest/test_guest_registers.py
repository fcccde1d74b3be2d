"""The config into the register of each platform: exactly once, compared where the host chose it, read back after."""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealwright.attester.nsm import Nsm
from sealwright.attester.tdx import TdxMeasurements
from sealwright.attester.tpm import Tpm, connect
from sealwright.attester.tpm.transport import Transport
from sealwright.attester.tsm import TsmReports
from sealwright.errors import SealwrightError, UnavailableError, VerificationError
from sealwright.image.guest import pcr, registers
from sealwright.image.guest.registers import Interfaces, bind_config
from sealwright.image.guest.tdreport import mrconfigid_of
from sealwright.testing.nsm import FakeNsm
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import SwTpm
from sealwright.testing.tsm import FakeConfigfs, FakeTdxRegisters, Options, SevGuest

CONFIG = hashlib.sha256(b"config").digest()
OTHER = hashlib.sha256(b"other").digest()


def quietly(make: Callable[[], object]) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return make()


def refusal(machine: Interfaces, digest: bytes = CONFIG) -> tuple[str, str, type[SealwrightError]]:
    with pytest.raises(SealwrightError) as caught:
        bind_config(digest, machine)
    return caught.value.code, caught.value.stage, type(caught.value)


USED = ("config-register-used", "config-register", VerificationError)
MISMATCH = ("config-register-mismatch", "config-register", VerificationError)


# --- TPM: a real software TPM ---


@pytest.fixture(scope="module")
def swtpm() -> Iterator[SwTpm]:
    if not SwTpm.installed():
        pytest.skip("swtpm is not installed: apt-get install swtpm swtpm-tools")
    made = quietly(SwTpm)
    assert isinstance(made, SwTpm)
    with made:
        yield made


@pytest.fixture
def tpm(swtpm: SwTpm) -> Iterator[Transport]:
    swtpm.restart()
    transport = connect(swtpm.address)
    yield transport
    transport.close()


def test_a_tpm_holds_the_config_alone(tpm: Transport) -> None:
    assert bind_config(CONFIG, Interfaces(tpm=tpm.send)) == ("PCR8",)
    assert Tpm(tpm).pcr_read("sha256", [8])[8] == hashlib.sha256(bytes(32) + CONFIG).digest()


def test_a_tpm_refuses_a_second_config_even_the_same(tpm: Transport) -> None:
    bind_config(CONFIG, Interfaces(tpm=tpm.send))
    assert refusal(Interfaces(tpm=tpm.send), OTHER) == USED
    assert refusal(Interfaces(tpm=tpm.send)) == USED
    assert Tpm(tpm).pcr_read("sha256", [8])[8] == hashlib.sha256(bytes(32) + CONFIG).digest()


def test_what_another_extends_at_the_same_time_is_found(tpm: Transport) -> None:
    def send(command: bytes) -> bytes:
        answer = tpm.send(command)
        if command[6:10] == b"\0\0\1\x82":
            tpm.send(command)
        return answer

    assert refusal(Interfaces(tpm=send)) == USED


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x80\x01\0\0\0\x0b\0\0\0\0",
        b"\x80\x01\0\0\0\x0a\0\0\x01\x01",
        b"\x80\x01\0\0\0\x0a\0\0\0\0",
        b"\x80\x01" + struct.pack(">II", 62, 0) + bytes(52),
    ],
)
def test_answers_of_another_form_are_refused(answer: bytes) -> None:
    assert refusal(Interfaces(tpm=lambda _: answer)) == ("tpm-refused", "config-register", UnavailableError)


def test_a_busy_tpm_is_asked_again(tpm: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcr, "_PAUSE_S", 0)
    left = [0x922, 0x908, 0x90A]

    def send(command: bytes) -> bytes:
        if left:
            return b"\x80\x01" + struct.pack(">II", 10, left.pop())
        return tpm.send(command)

    assert bind_config(CONFIG, Interfaces(tpm=send)) == ("PCR8",)
    busy = b"\x80\x01" + struct.pack(">II", 10, 0x922)
    assert refusal(Interfaces(tpm=lambda _: busy))[0] == "tpm-refused"


# --- SNP: HOST_DATA, chosen by the host ---


class Launched(SevGuest):
    """A guest launched with HOST_DATA."""

    host_data = bytes(32)

    def report_new(self, options: Options) -> tuple[bytes, bytes]:
        report, blob = super().report_new(options)
        return report[:0xC0] + self.host_data + report[0xE0:], blob


def snp(host_data: bytes) -> TsmReports:
    provider = Launched()
    provider.host_data = host_data
    files = quietly(lambda: FakeConfigfs(provider))
    return TsmReports(files, sleep=lambda _: None)  # type: ignore[arg-type]


def test_host_data_is_compared() -> None:
    assert bind_config(CONFIG, Interfaces(snp=snp(CONFIG))) == ("HOST_DATA",)
    assert refusal(Interfaces(snp=snp(OTHER))) == MISMATCH


def test_a_launch_without_host_data_needs_a_tpm(tpm: Transport) -> None:
    assert refusal(Interfaces(snp=snp(bytes(32))))[0] == "no-config-register"
    assert bind_config(CONFIG, Interfaces(snp=snp(bytes(32)), tpm=tpm.send)) == ("PCR8",)


def test_host_data_and_a_tpm_both_hold_it(tpm: Transport) -> None:
    assert refusal(Interfaces(snp=snp(OTHER), tpm=tpm.send)) == MISMATCH
    assert not any(Tpm(tpm).pcr_read("sha256", [8])[8])
    assert bind_config(CONFIG, Interfaces(snp=snp(CONFIG), tpm=tpm.send)) == ("HOST_DATA", "PCR8")


# --- TDX: MRCONFIGID, chosen by the host, or RTMR3 ---


def rtmr() -> FakeTdxRegisters:
    made = quietly(FakeTdxRegisters)
    assert isinstance(made, FakeTdxRegisters)
    return made


def tdx(value: bytes, files: FakeTdxRegisters | None = None) -> Interfaces:
    return Interfaces(mrconfigid=lambda: value, rtmr=None if files is None else TdxMeasurements(files))


def test_mrconfigid_is_compared_with_its_padding() -> None:
    assert bind_config(CONFIG, tdx(CONFIG + bytes(16), rtmr())) == ("MRCONFIGID",)
    assert refusal(tdx(CONFIG + b"\1" + bytes(15))) == MISMATCH
    assert refusal(tdx(OTHER + bytes(16))) == MISMATCH


def test_without_mrconfigid_rtmr3_is_extended_once() -> None:
    files = rtmr()
    assert bind_config(CONFIG, tdx(bytes(48), files)) == ("RTMR3",)
    wanted = hashlib.sha384(bytes(48) + CONFIG + bytes(16)).digest()
    assert files.values["rtmr3:sha384"] == wanted
    assert refusal(tdx(bytes(48), files)) == USED
    assert refusal(tdx(bytes(48), files), OTHER) == USED
    assert files.values["rtmr3:sha384"] == wanted


def test_a_kernel_without_registers_gives_none() -> None:
    assert refusal(tdx(bytes(48))) == ("no-config-register", "config-register", UnavailableError)


def test_a_tdreport_is_read_where_its_layout_says() -> None:
    asked = bytes(range(64))
    report = bytearray(1024)
    report[128:192] = asked
    report[576:624] = bytes(range(100, 148))
    assert mrconfigid_of(bytes(report), asked) == bytes(range(100, 148))
    for wrong in (bytes(report[:-1]), bytes(1024)):
        with pytest.raises(SealwrightError):
            mrconfigid_of(wrong, asked)


# --- Nitro: PCR 16, extended and locked ---


def nitro() -> FakeNsm:
    made = quietly(FakeNsm)
    assert isinstance(made, FakeNsm)
    return made


def test_nitro_locks_its_register() -> None:
    nsm = nitro()
    assert bind_config(CONFIG, Interfaces(nsm=Nsm(nsm))) == ("PCR16",)
    found = Nsm(nsm).describe_pcr(16)
    assert (found.lock, found.data) == (True, hashlib.sha384(bytes(48) + CONFIG).digest())
    assert refusal(Interfaces(nsm=Nsm(nsm)), OTHER) == USED
    assert refusal(Interfaces(nsm=Nsm(nsm))) == USED


def test_nitro_refuses_a_register_that_is_used_and_open() -> None:
    nsm = nitro()
    Nsm(nsm).extend_pcr(16, CONFIG)
    assert refusal(Interfaces(nsm=Nsm(nsm))) == USED


# --- What a machine has ---


def test_what_there_is_is_found() -> None:
    def machine(*paths: str) -> Interfaces:
        return registers.found(None, exists=lambda path: path in paths)

    assert machine() == Interfaces()
    assert machine("/dev/nsm").nsm is not None
    assert machine("/dev/sev-guest").snp is not None
    assert machine("/dev/tdx_guest").rtmr is None
    assert machine("/dev/tdx_guest").mrconfigid is not None
    both = machine("/dev/tdx_guest", "/sys/devices/virtual/misc/tdx_guest/measurements")
    assert both.rtmr is not None


def test_a_machine_without_a_register_does_not_start() -> None:
    assert refusal(Interfaces()) == ("no-config-register", "config-register", UnavailableError)


def test_a_digest_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32"):
        bind_config(b"x", Interfaces(tpm=lambda _: b""))


def test_a_device_is_one_command_one_response(tmp_path: Path) -> None:
    fifo = tmp_path / "tpm"
    fifo.write_bytes(b"")
    with pcr.opened(str(fifo)) as send:
        assert send(b"command") == b""
    assert fifo.read_bytes() == b"command"
