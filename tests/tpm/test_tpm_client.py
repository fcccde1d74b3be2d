"""The TPM client against answers that no right TPM gives: transports, response codes, retries."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.tpm.support import NOW, REPORT_DATA, platform

from sealwright.attester.tpm.attester import TpmAttester, certificate_in_nv
from sealwright.attester.tpm.codes import explain
from sealwright.attester.tpm.commands import LoadedKey, Tpm, TpmRefusal
from sealwright.attester.tpm.enrol import activate
from sealwright.attester.tpm.transport import DeviceTransport, SocketTransport, connect
from sealwright.endorsement.tpm import EK_TEMPLATES
from sealwright.errors import EvidenceFormatError, SettingsError, UnavailableError, VerificationError
from sealwright.evidence.tpmwire import PcrSelection, encode_selections, sized, u16, u32
from sealwright.protocol.tpm_enrol import EnrolChallenge
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import SwTpm, TpmTestPlatform, manufacture


def answer(body: bytes = b"", code: int = 0, tag: int = 0x8001) -> bytes:
    return u16(tag) + u32(10 + len(body)) + u32(code) + body


class Script:
    """A transport that answers by what is asked."""

    def __init__(self, *answers: bytes | Callable[[bytes], bytes]) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []

    def send(self, command: bytes) -> bytes:
        self.sent.append(command)
        one = self.answers.pop(0)
        return one(command) if callable(one) else one

    def close(self) -> None:
        self.answers.clear()


def test_a_busy_tpm_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    script = Script(answer(code=0x922), answer(code=0x922), answer(code=0x90A), answer())
    Tpm(script).flush(1)
    assert len(script.sent) == 4
    assert len(set(script.sent)) == 1


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(TpmRefusal) as refused:
        Tpm(Script(*[answer(code=0x922)] * 60)).flush(1)
    assert refused.value.response == 0x922


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x921, "0x921: locked out against dictionary attacks: wait, or clear the lockout"),
        (0x922, "0x922: busy: send it again"),
        (0x9A2, "0x9a2: wrong authorization, of session 1"),
        (0x1DF, "0x1df: integrity check failed, of parameter 1"),
        (0x18B, "0x18b: no such handle, or one that is wrong for this, of handle 1"),
        (0x100, "0x100: not initialized: send Startup"),
        (0x18A, "0x18a: wrong type, of handle 1"),
        (0x500, "0x500: error of the vendor's own"),
        (0x17F, "0x17f: error"),
        (0x1BD, "0x1bd: error, of handle 1"),
    ],
)
def test_response_codes_in_words(code: int, words: str) -> None:
    assert explain(code) == words


def test_a_refusal_names_command_and_reason() -> None:
    with pytest.raises(TpmRefusal) as refused:
        Tpm(Script(answer(code=0x921))).read_public(0x81000001)
    assert (refused.value.code, refused.value.exit_code) == ("tpm-refused", 69)
    assert "ReadPublic" in str(refused.value)
    assert "locked out" in str(refused.value)


def test_startup() -> None:
    for code in (0, 0x100):
        Tpm(Script(answer(code=code))).startup()
    with pytest.raises(TpmRefusal):
        Tpm(Script(answer(code=0x101))).startup()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        answer()[:9],
        answer(tag=0x8003),
        answer() + b"\0",
        answer(b"\0" * 4, code=0x922),  # parameters beside an error
        answer(u32(5), tag=0x8002),  # parameters shorter than they say
    ],
)
def test_answers_that_are_not_in_their_format(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        Tpm(Script(raw)).create_primary(1, platform().public)


def test_a_tpm_that_reads_no_pcr() -> None:
    nothing = u32(1) + u32(1) + u16(0x000B) + b"\x03\0\0\0" + u32(0)
    with pytest.raises(UnavailableError) as refused:
        Tpm(Script(answer(nothing))).pcr_read("sha256", [0])
    assert refused.value.code == "tpm-pcr-missing"


def test_a_tpm_that_reads_other_pcrs() -> None:
    other = u32(1) + u32(1) + u16(0x000B) + b"\x03\x02\0\0" + u32(1) + sized(bytes(32))
    short = u32(1) + u32(1) + u16(0x000B) + b"\x03\x01\0\0" + u32(1) + sized(bytes(31))
    for body in (other, short):
        with pytest.raises(EvidenceFormatError):
            Tpm(Script(answer(body))).pcr_read("sha256", [0])


def test_banks_of_unknown_hashes_are_passed_over() -> None:
    sm3 = u16(0x0012) + b"\x03\xff\xff\xff"
    sha256 = u16(0x000B) + b"\x03\x01\x00\x00"
    sha384 = u16(0x000C) + b"\x03\x00\x00\x00"
    body = b"\0" + u32(5) + u32(3) + sm3 + sha256 + sha384
    assert Tpm(Script(answer(body))).pcr_banks() == {"sha256": frozenset({0})}


def test_digests_are_as_long_as_their_bank() -> None:
    with pytest.raises(ValueError, match="length"):
        Tpm(Script()).pcr_extend(8, {"sha256": b"\x01" * 31})


@pytest.mark.parametrize("padding", [b"", b"\xff" * 40, b"\0" * 3])
def test_certificates_in_nv_are_cut_to_their_length(padding: bytes) -> None:
    certificate = b"\x30\x82\x01\x00" + bytes(256)
    stored = certificate + padding
    public = answer(sized(u32(1) + u16(0x0B) + u32(0) + sized(b"") + u16(len(stored))) + sized(b""))
    read = answer(u32(len(stored) + 2) + sized(stored), tag=0x8002)
    assert certificate_in_nv(Tpm(Script(public, read)), 0x01C00002) == certificate


def test_nv_that_is_not_there_or_no_certificate() -> None:
    assert certificate_in_nv(Tpm(Script(answer(code=0x18B))), 0x01C00002) is None
    public = answer(sized(u32(1) + u16(0x0B) + u32(0) + sized(b"") + u16(4)) + sized(b""))
    with pytest.raises(TpmRefusal):  # locked out: nobody knows what is there
        certificate_in_nv(Tpm(Script(answer(code=0x921))), 0x01C00002)
    with pytest.raises(EvidenceFormatError):
        certificate_in_nv(Tpm(Script(public, answer(u32(2) + sized(b""), tag=0x8002))), 0x01C00002)
    read = answer(u32(6) + sized(bytes(4)), tag=0x8002)
    assert certificate_in_nv(Tpm(Script(public, read)), 0x01C00002) is None


@pytest.mark.parametrize("selections", [(), (PcrSelection(bank="sha384", pcrs=(0,)),)])
def test_pcrs_of_no_bank_or_another_are_not_read(selections: tuple[PcrSelection, ...]) -> None:
    script = Script(answer(u32(0) + encode_selections(selections) + u32(1) + sized(bytes(32))))
    with pytest.raises(EvidenceFormatError) as refused:
        Tpm(script).pcr_read("sha256", [0])
    assert refused.value.code == "malformed-tpm"


@pytest.mark.parametrize("length", [0, 16, 33])
def test_a_secret_of_another_length_is_no_credential_of_ours(length: int) -> None:
    """A CA chooses what it encrypts: the TPM gives out whatever that is."""
    tpm = Tpm(Script(answer()))
    tpm.create_primary = lambda *_: LoadedKey(handle=1, public=platform().public)  # type: ignore[method-assign]
    tpm.activate_credential = lambda *_: bytes(length)  # type: ignore[method-assign]
    ak = LoadedKey(handle=2, public=platform().public)
    asked = EnrolChallenge(credential_blob=b"b", encrypted_secret=b"s")
    with pytest.raises(VerificationError) as refused:
        activate(tpm, ak, asked, ek=EK_TEMPLATES[0])
    assert refused.value.code == "wrong-credential"


class Moving(Tpm):
    """A TPM whose PCR 10 is extended before each quote but the last."""

    def __init__(self, fake: TpmTestPlatform, times: int) -> None:
        super().__init__(Script())
        self.fake = fake
        self.times = times
        self.value = b"\x01" * 32

    def pcr_read(self, bank, pcrs):  # type: ignore[no-untyped-def]
        return {pcr: self.value if pcr == 10 else bytes(32) for pcr in pcrs}

    def quote(self, key, qualifying_data, selection):  # type: ignore[no-untyped-def]
        if self.times:
            self.times -= 1
            self.value = bytes([self.value[0] + 1]) * 32
        quote = self.fake.quote(qualifying_data.ljust(64, b"\0"), pcrs={10: self.value})
        return quote.attest, quote.signature


def test_pcrs_that_change_are_read_again() -> None:
    fake = platform()
    ak = LoadedKey(handle=1, public=fake.public)
    envelope = TpmAttester(Moving(fake, 3), ak).quote(REPORT_DATA)
    assert envelope.type == "tpm"
    with pytest.raises(UnavailableError) as refused:
        TpmAttester(Moving(fake, 99), ak).quote(REPORT_DATA)
    assert refused.value.code == "tpm-pcrs-change"


class Another(Moving):
    """A TPM that quotes what somebody else asked for."""

    def quote(self, key, qualifying_data, selection):  # type: ignore[no-untyped-def]
        return super().quote(key, bytes([qualifying_data[0] ^ 1]) + qualifying_data[1:], selection)


def test_a_quote_over_something_else_is_not_sent() -> None:
    fake = platform()
    with pytest.raises(VerificationError) as refused:
        TpmAttester(Another(fake, 0), LoadedKey(handle=1, public=fake.public)).quote(REPORT_DATA)
    assert (refused.value.code, refused.value.stage) == ("report-data-mismatch", "collect")


@pytest.mark.parametrize("select", [(), (PcrSelection(bank="sha384", pcrs=(0,)),)])
def test_a_quote_of_other_pcrs_is_not_in_its_format(select: tuple[PcrSelection, ...]) -> None:
    fake = platform()
    tpm = Moving(fake, 0)
    attest, signature = tpm.quote(None, REPORT_DATA, None)  # type: ignore[no-untyped-call]
    tpm.quote = lambda *_: (replace(attest, pcrSelect=select), signature)  # type: ignore[method-assign]
    with pytest.raises(EvidenceFormatError) as refused:
        TpmAttester(tpm, LoadedKey(handle=1, public=fake.public)).quote(REPORT_DATA)
    assert refused.value.code == "malformed-tpm"


@pytest.mark.parametrize(
    "address",
    ["", "unix:", "tcp:host", "tcp::1", "tcp:host:0", "tcp:host:65536", "tcp:host:x", "/etc/passwd", "tpm"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(SettingsError) as refused:
        connect(address)
    assert refused.value.code == "malformed-tpm-address"


@pytest.mark.parametrize("address", ["unix:/nowhere", "/dev/no-such-tpm", "tcp:127.0.0.1:1"])
def test_nobody_there(address: str) -> None:
    with pytest.raises(UnavailableError) as refused:
        connect(address, timeout_s=2)
    assert refused.value.code == "tpm-unreachable"


@contextmanager
def served(reply: bytes, *, stream: bool = True) -> Iterator[socket.socket]:
    """Return our end of a connection whose other end answers one command in two parts."""
    kind = socket.SOCK_STREAM if stream else socket.SOCK_SEQPACKET
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)

    def serve() -> None:
        theirs.recv(4096)
        if stream:
            for part in (reply[:3], reply[3:]):
                theirs.sendall(part)
        elif reply:
            theirs.sendall(reply)
        if not reply:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ours
    finally:
        thread.join()
        theirs.close()
        ours.close()


def test_a_socket() -> None:
    reply = answer(b"abcdef")
    with served(reply) as ours:
        assert SocketTransport(ours).send(b"command") == reply


def test_a_device() -> None:
    """A device gives a whole response to one read, as a packet socket does."""
    reply = answer(b"abcdef")
    with served(reply, stream=False) as ours:
        device = DeviceTransport(ours.fileno())
        assert device.send(b"command") == reply


@pytest.mark.parametrize("stream", [True, False])
def test_no_answer_in_time(stream: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        transport = SocketTransport(ours, 0.05) if stream else DeviceTransport(ours.fileno(), 0.05)
        with pytest.raises(UnavailableError) as refused:
            transport.send(b"command")
    assert refused.value.code == "tpm-unreachable"


def test_what_comes_late_is_not_taken_for_the_next_response() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        transport = SocketTransport(ours, 0.05)
        with pytest.raises(UnavailableError):
            transport.send(b"first")
        with contextlib.suppress(OSError):
            theirs.sendall(answer(b"to the first"))
        with pytest.raises(UnavailableError):
            transport.send(b"second")


def test_a_connection_that_ends() -> None:
    with served(b"") as ours, pytest.raises(UnavailableError):
        SocketTransport(ours, 2).send(b"command")


@pytest.mark.parametrize("size", [9, 4097, 0xFFFFFFFF])
def test_sizes_that_no_response_has(size: int) -> None:
    with served(u16(0x8001) + u32(size) + u32(0)) as ours, pytest.raises(EvidenceFormatError):
        SocketTransport(ours, 2).send(b"command")


def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    late = answer(b"to the first command")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        transport = SocketTransport(ours, 0.05)
        for _ in range(2):
            with pytest.raises(UnavailableError) as refused:
                transport.send(b"command")
            assert refused.value.code == "tpm-unreachable"
            with suppress(OSError):
                theirs.sendall(late)


def test_what_follows_an_answer_that_is_none_is_not_read() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        theirs.sendall(bytes(10) + answer())
        transport = SocketTransport(ours, 2)
        with pytest.raises(EvidenceFormatError):
            transport.send(b"command")
        with pytest.raises(UnavailableError):
            transport.send(b"command")


def test_a_real_socket_over_tcp(made: Path, tmp_path: Path) -> None:
    """The same TPM over TCP; the port is one that the system chose."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["swtpm", "socket", "--tpm2", f"--tpmstate=dir={tmp_path}", f"--server=type=tcp,port={port}"]
    control = f"--ctrl=type=unixio,path={tmp_path / 'control'}"
    with subprocess.Popen([*command, control, "--flags=not-need-init,startup-clear"]) as process:
        try:
            for _ in range(500):
                try:
                    tpm = Tpm(connect(f"tcp:127.0.0.1:{port}", timeout_s=10))
                    break
                except UnavailableError:
                    threading.Event().wait(0.01)
            with tpm:
                assert tpm.pcr_read("sha256", [0]) == {0: bytes(32)}
                tpm.shutdown()
        finally:
            process.terminate()


def test_without_swtpm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert not SwTpm.installed()
    with pytest.raises(UnavailableError) as refused:
        manufacture(tmp_path)
    assert refused.value.code == "swtpm-missing"
    assert "apt-get install swtpm swtpm-tools" in str(refused.value)


def test_fakes_warn() -> None:
    with pytest.warns(FakePlatformWarning):
        TpmTestPlatform(NOW)
    with pytest.warns(FakePlatformWarning):
        SwTpm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        with pytest.raises(RuntimeError):
            _ = SwTpm().address


def test_an_attester_takes_whole_report_data() -> None:
    fake = platform()
    attester = TpmAttester(Moving(fake, 0), LoadedKey(handle=1, public=replace(fake.public)))
    for wrong in (b"", bytes(64), bytes(63), b"\x01" * 65):
        with pytest.raises(ValueError, match="64 bytes"):
            attester.quote(wrong)
