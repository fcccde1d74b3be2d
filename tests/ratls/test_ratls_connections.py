"""Attested TLS over loopback, end to end: what is let through, and that nothing else is, not by one byte."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.ratls.support import CODE, KEY, NONCE, NOW, appraise, attest, attest_other_code, clock

from sealwright.errors import AppraisalError, SealwrightError, UnavailableError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.testing.ratls import certificate
from sealwright.transport.ratls import (
    WITHOUT_NONCE,
    AttestationRefused,
    Identity,
    Nonces,
    accept,
    attested,
    client_context,
    connect,
    make_certificate,
    server_context,
)
from sealwright.transport.ratls.certificate import EVIDENCE_OID
from sealwright.transport.ratls.names import NO_HOST, name_with, nonce_in, nonce_or_none

OURS = Identity(attest=attest, key=KEY, clock=clock)
OTHERS = Identity(attest=attest_other_code, clock=clock)
Address = tuple[str, int]
Serve = Callable[..., contextlib.AbstractContextManager["Server"]]


class Server:
    """Accepts connections one after the other, answers each message with it reversed, and notes what it saw."""

    def __init__(self, take: Callable[[socket.socket], ssl.SSLSocket]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self.listener.getsockname()
        self.seen: list[Any] = []  # messages, or why a connection came to nothing
        self.peers: list[Any] = []
        self.names: list[str | None] = []
        self._take = take
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A connection that says nothing ends the loop, whatever it is waiting for.
        self.closing = True
        with contextlib.suppress(OSError), socket.create_connection(self.address, 5):
            pass
        self._thread.join(20)
        self.listener.close()
        assert not self._thread.is_alive()

    closing = False

    def _run(self) -> None:
        while not self.closing:
            try:
                with self._take(self.listener) as connection:
                    with contextlib.suppress(ValueError):
                        self.peers.append(attested(connection))
                    message = connection.recv(100)
                    if message:
                        self.seen.append(message)
                        connection.sendall(message[::-1])
            except (OSError, SealwrightError) as error:
                self.seen.append(error)


def attesting(context: ssl.SSLContext) -> Server:
    return Server(lambda listener: accept(listener, context, timeout_s=10))


def presenting(der: bytes, key: ec.EllipticCurvePrivateKey, folder: Path) -> Server:
    """Return a server of plain TLS that presents any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = folder / "server.pem"
    path.write_bytes(
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context.load_cert_chain(path)

    def take(listener: socket.socket) -> ssl.SSLSocket:
        raw, _ = listener.accept()
        raw.settimeout(10)
        return context.wrap_socket(raw, server_side=True)

    return Server(take)


def client(**options: Any) -> ssl.SSLContext:
    return client_context(options.pop("appraise", appraise), **{"clock": clock, **options})


def exchange(address: Address, context: ssl.SSLContext, message: bytes = b"hello") -> bytes:
    with connect(address, context, timeout_s=10) as connection:
        connection.sendall(message)
        return connection.recv(100)


def refused(address: Address, context: ssl.SSLContext, stage: str, code: str) -> None:
    with pytest.raises(SealwrightError) as caught:
        connect(address, context, timeout_s=10)
    assert (caught.value.stage, caught.value.code) == (stage, code)


# --- servers prove themselves ---


def test_a_server_is_attested() -> None:
    with attesting(server_context(OURS)) as server:
        with connect(server.address, client()) as connection:
            assert attested(connection).registers[0] == CODE
            assert connection.version() == "TLSv1.3"
            connection.sendall(b"hello")
            assert connection.recv(100) == b"olleh"
        assert exchange(server.address, client(), b"again") == b"niaga"
    assert server.seen[:2] == [b"hello", b"again"]
    assert server.peers[:2] == [None, None]  # it asked for no certificate


def test_each_connection_is_attested_over_its_own_nonce() -> None:
    asked: list[bytes] = []

    def noting(report_data: bytes) -> EvidenceEnvelope:
        asked.append(report_data)
        return attest(report_data)

    context = client()
    with attesting(server_context(Identity(attest=noting, key=KEY, clock=clock))) as server:
        for _ in range(3):
            exchange(server.address, context)
    assert len(set(asked)) == 3


def test_other_code_is_refused_before_a_byte_is_sent() -> None:
    with attesting(server_context(OTHERS)) as server:
        refused(server.address, client(), "appraisal", "code-not-allowed")
        assert exchange(server.address, client(appraise=lambda *_: True)) == b"olleh"
    assert b"hello" in server.seen
    assert [one for one in server.seen if isinstance(one, bytes)] == [b"hello"]


def test_a_replayed_certificate_is_refused(tmp_path: Path) -> None:
    old = make_certificate(
        KEY, attest, nonce=NONCE, now=NOW
    )  # genuine, its key included, made for another client
    with presenting(old, KEY, tmp_path) as server:
        refused(server.address, client(), "nonce", "nonce-mismatch")
        assert exchange(server.address, client(server_nonce=False)) == b"olleh"
    assert [one for one in server.seen if isinstance(one, bytes)] == [b"hello"]


def test_a_stolen_certificate_is_of_no_use(tmp_path: Path) -> None:
    # Evidence of another's key in a certificate of one's own key.
    stolen = x509.load_der_x509_certificate(make_certificate(KEY, attest, nonce=WITHOUT_NONCE, now=NOW))
    evidence = stolen.extensions.get_extension_for_oid(EVIDENCE_OID).value.value
    key = ec.generate_private_key(ec.SECP256R1())
    with presenting(certificate(key, NOW, [(EVIDENCE_OID, evidence)]), key, tmp_path) as server:
        refused(server.address, client(server_nonce=False), "key", "key-not-attested")
    assert not any(isinstance(one, bytes) for one in server.seen)


def test_a_certificate_without_evidence_is_refused(tmp_path: Path) -> None:
    with presenting(certificate(KEY, NOW, []), KEY, tmp_path) as server:
        refused(server.address, client(), "parse", "evidence-missing")


def test_an_oversize_extension_is_refused(tmp_path: Path) -> None:
    with presenting(certificate(KEY, NOW, [(EVIDENCE_OID, bytes(70_000))]), KEY, tmp_path) as server:
        refused(server.address, client(), "parse", "too-large")


def test_an_oversize_certificate_does_not_get_through_the_handshake(tmp_path: Path) -> None:
    der = certificate(KEY, NOW, [(EVIDENCE_OID, bytes(1 << 18))])
    with presenting(der, KEY, tmp_path) as server, pytest.raises(ssl.SSLError):
        connect(server.address, client(), timeout_s=10)


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    old = make_certificate(KEY, attest, nonce=NONCE, now=NOW - timedelta(days=2))
    with presenting(old, KEY, tmp_path) as server:
        refused(server.address, client(), "certificate", "certificate-expired")


def test_what_an_appraisal_breaks_with_closes_the_connection() -> None:
    def broken(envelope: EvidenceEnvelope, report_data: bytes) -> None:
        raise KeyError("a bug")

    with attesting(server_context(OURS)) as server, pytest.raises(KeyError):
        connect(server.address, client(appraise=broken))
    assert not any(isinstance(one, bytes) for one in server.seen)


def test_a_server_that_cannot_attest_serves_nobody() -> None:
    def broken(report_data: bytes) -> EvidenceEnvelope:
        raise UnavailableError("no quote", code="no-quote")

    context = server_context(Identity(attest=broken, clock=clock))
    with attesting(context) as server, pytest.raises(ssl.SSLError):
        connect(server.address, client(), timeout_s=10)
    assert isinstance(server.seen[0], ssl.SSLError)
    assert isinstance(server.seen[0].__cause__, UnavailableError)


def test_a_client_without_nonce_is_served_by_name_only() -> None:
    plain = client(server_nonce=False)
    with attesting(server_context(OURS)) as server, pytest.raises(ssl.SSLError, match=r"(?i)name"):
        connect(server.address, plain, timeout_s=10)
    with attesting(server_context(OURS, without_nonce=True)) as server:
        assert exchange(server.address, plain) == b"olleh"
        assert exchange(server.address, client()) == b"olleh"


def test_older_tls_is_refused(tmp_path: Path) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        attesting(server_context(OURS, without_nonce=True)) as server,
        socket.create_connection(server.address) as raw,
        pytest.raises(ssl.SSLError),
    ):
        old.wrap_socket(raw)


# --- clients prove themselves ---


@pytest.fixture
def mutual() -> Iterator[tuple[Server, Nonces]]:
    nonces = Nonces()
    context = server_context(OURS, appraise=appraise, client_nonces=nonces, clock=clock)
    with attesting(context) as server:
        yield server, nonces


def silent(address: Address, context: ssl.SSLContext) -> None:
    """Send a message to a server that is to refuse this client; nothing comes back."""
    with contextlib.suppress(OSError):
        assert exchange(address, context, b"secret") == b""


def test_both_are_attested(mutual: tuple[Server, Nonces]) -> None:
    server, nonces = mutual
    assert exchange(server.address, client(identity=OURS, own_nonce=nonces.issue())) == b"olleh"
    assert server.peers[0].registers[0] == CODE


def test_a_client_whose_nonce_comes_back_is_refused(mutual: tuple[Server, Nonces]) -> None:
    server, nonces = mutual
    context = client(identity=OURS, own_nonce=nonces.issue())
    assert exchange(server.address, context) == b"olleh"
    silent(server.address, context)
    assert server.seen[0] == b"hello"
    wait(server, 2)
    assert server.seen[1].code == "nonce-mismatch"


def wait(server: Server, number: int) -> None:
    done = threading.Event()
    for _ in range(500):
        if len(server.seen) >= number:
            return
        done.wait(0.01)
    raise AssertionError(f"the server saw {server.seen}")


@pytest.mark.parametrize(
    ("identity", "own_nonce", "code"),
    [
        (OURS, WITHOUT_NONCE, "nonce-mismatch"),
        (OURS, NONCE, "nonce-mismatch"),
        (OTHERS, None, "code-not-allowed"),
    ],
    ids=["no nonce", "made up", "other code"],
)
def test_another_client_is_refused(
    mutual: tuple[Server, Nonces], identity: Identity, own_nonce: Any, code: str
) -> None:
    server, nonces = mutual
    silent(server.address, client(identity=identity, own_nonce=own_nonce or nonces.issue()))
    wait(server, 1)
    assert server.seen[0].code == code
    assert isinstance(server.seen[0], VerificationError | AppraisalError)
    assert server.peers == []


def test_a_client_without_certificate_is_refused(mutual: tuple[Server, Nonces]) -> None:
    server, _ = mutual
    silent(server.address, client())
    wait(server, 1)
    assert isinstance(server.seen[0], ssl.SSLError)


def test_clients_without_nonce_where_that_was_chosen() -> None:
    context = server_context(OURS, appraise=appraise, client_nonces=WITHOUT_NONCE, clock=clock)
    with attesting(context) as server:
        assert exchange(server.address, client(identity=OURS)) == b"olleh"


def test_asking_clients_is_said_whole() -> None:
    with pytest.raises(ValueError, match="together"):
        server_context(OURS, appraise=appraise)
    with pytest.raises(ValueError, match="together"):
        server_context(OURS, client_nonces=Nonces())


def test_nonces() -> None:
    nonces = Nonces(most=2)
    first, second, third = (nonces.issue() for _ in range(3))
    assert len({first, second, third}) == 3
    for gone in (first, b"", None, bytes(32)):
        with pytest.raises(VerificationError):
            nonces.redeem(gone)
    assert nonces.redeem(third) == third
    with pytest.raises(VerificationError):
        nonces.redeem(third)
    assert nonces.redeem(second) == second
    late = Nonces(life_s=0)
    with pytest.raises(VerificationError):
        late.redeem(late.issue())


# --- the check cannot be forgotten ---


def test_http_client_checks() -> None:
    with attesting(server_context(OTHERS)) as server:
        connection = http.client.HTTPSConnection(*server.address, context=client(), timeout=10)
        with pytest.raises(AttestationRefused) as caught:
            connection.request("GET", "/")
        connection.close()
        assert caught.value.error.code == "code-not-allowed"
    assert not any(isinstance(one, bytes) for one in server.seen)


def test_httpx_checks() -> None:
    with (
        attesting(server_context(OTHERS)) as server,
        httpx2.Client(verify=client(), trust_env=False) as http,
        pytest.raises(httpx2.ConnectError),
    ):
        http.get("https://{}:{}/".format(*server.address))
    assert not any(isinstance(one, bytes) for one in server.seen)


def test_asyncio_checks() -> None:
    async def ask(address: Address, context: ssl.SSLContext) -> tuple[bytes, Any]:
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        try:
            writer.write(b"hello")
            answer = await reader.read(100)
            return answer, attested(writer.get_extra_info("ssl_object"))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    with attesting(server_context(OURS)) as server:
        answer, verified = asyncio.run(ask(server.address, client()))
        assert (answer, verified.registers[0]) == (b"olleh", CODE)
    with attesting(server_context(OTHERS)) as server:
        with pytest.raises(AttestationRefused) as caught:
            asyncio.run(ask(server.address, client()))
        assert caught.value.error.code == "code-not-allowed"
    assert not any(isinstance(one, bytes) for one in server.seen)


def test_an_asyncio_server_attests_and_checks() -> None:
    served: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(attested(writer.get_extra_info("ssl_object")))
        writer.write((await reader.read(100))[::-1])
        writer.close()

    async def both() -> bytes:
        nonces = Nonces()
        context = server_context(OURS, appraise=appraise, client_nonces=nonces, clock=clock)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        async with server:
            address = server.sockets[0].getsockname()
            good = client(identity=OURS, own_nonce=nonces.issue())
            answer = await asyncio.to_thread(exchange, address, good)
            await asyncio.to_thread(silent, address, client(identity=OTHERS, own_nonce=nonces.issue()))
            return answer

    assert asyncio.run(both()) == b"olleh"
    assert len(served) == 1


@pytest.mark.parametrize("act", ["send", "sendall", "write", "recv", "read", "recv_into", "makefile"])
def test_a_socket_that_puts_its_handshake_off_is_checked_first(act: str) -> None:
    acts: dict[str, Callable[[ssl.SSLSocket], object]] = {
        "send": lambda sock: sock.send(b"secret"),
        "sendall": lambda sock: sock.sendall(b"secret"),
        "write": lambda sock: sock.write(b"secret"),
        "recv": lambda sock: sock.recv(1),
        "read": lambda sock: sock.read(1),
        "recv_into": lambda sock: sock.recv_into(bytearray(1)),
        "makefile": lambda sock: sock.makefile("rb").read(1),
    }
    with attesting(server_context(OTHERS)) as server:
        raw = socket.create_connection(server.address, 10)
        with client().wrap_socket(raw, do_handshake_on_connect=False) as late:
            with pytest.raises(AttestationRefused):
                acts[act](late)
            with pytest.raises((AttestationRefused, OSError, ValueError)):
                acts[act](late)
            with pytest.raises(ValueError, match="checked"):
                attested(late)
    assert not any(isinstance(one, bytes) for one in server.seen)


@pytest.mark.parametrize("good", [True, False])
def test_tls_without_a_socket_is_checked_first(good: bool) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(OURS if good else OTHERS).wrap_bio(to_server, to_client, server_side=True)
    mine = client().wrap_bio(to_client, to_server, server_hostname="host.example")

    def turn(act: Callable[[], object]) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            act()

    for _ in range(3):
        turn(server.do_handshake)
        if good:
            turn(lambda: mine.write(b"hello"))  # shakes hands by itself
        else:
            with contextlib.suppress(AttestationRefused):
                turn(lambda: mine.write(b"hello"))
    if good:
        assert server.read() == b"hello"
    else:
        for act in (lambda: mine.write(b"x"), mine.read, mine.do_handshake):
            with pytest.raises(AttestationRefused):
                act()
        with pytest.raises(ssl.SSLError):  # nothing came
            server.read()


def test_a_session_is_never_resumed() -> None:
    with attesting(server_context(OURS)) as server:
        context = client()
        with connect(server.address, context) as first:
            first.sendall(b"one")
            assert first.recv(100) == b"eno"
            session = first.session
        assert session is None or not session.has_ticket
        if session is not None:
            with socket.create_connection(server.address) as raw, pytest.raises(ValueError, match="resumes"):
                context.wrap_socket(raw, session=session)


def test_other_contexts_are_our_bug() -> None:
    plain = ssl.create_default_context()
    with pytest.raises(TypeError):
        connect(("127.0.0.1", 9), plain)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TypeError):
        accept(listener, plain)
    other = plain.wrap_socket(socket.socket(), server_hostname="host.example")
    with other, pytest.raises(ValueError, match="checked"):
        attested(other)
    with socket.socket() as raw, pytest.raises(ValueError, match="resumes"):
        client().wrap_socket(raw, server_side=True)


def test_alpn_is_negotiated() -> None:
    context = client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        attesting(server_context(OURS, alpn=["http/1.1"])) as server,
        connect(server.address, context) as connection,
    ):
        assert connection.selected_alpn_protocol() == "http/1.1"
        connection.sendall(b"x")


# --- names ---


@pytest.mark.parametrize(
    ("host", "rest"),
    [
        ("host.example", "host.example"),
        ("127.0.0.1", NO_HOST),
        ("::1", NO_HOST),
        ("fe80::1%eth0", NO_HOST),
        (None, NO_HOST),
        ("", NO_HOST),
    ],
)
def test_a_name_carries_a_nonce(host: str | None, rest: str) -> None:
    name = name_with(NONCE, host)
    label, _, after = name.partition(".")
    assert (len(label), after) == (53, rest)
    assert nonce_or_none(name) == nonce_or_none(name.upper()) == nonce_in(name) == NONCE


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "host.example",
        "n" + "a" * 51,
        "n" + "a" * 53,
        "n" + "a" * 51 + "1",
        "m" + "a" * 52,
        "n" + "a" * 51 + "b",  # bits that are left over
        "x." + name_with(NONCE, None),
    ],
)
def test_another_name_carries_none(name: str | None) -> None:
    assert nonce_or_none(name) is None
    with pytest.raises(RuntimeError):
        nonce_in(name)


def test_a_nonce_in_a_name_has_one_length() -> None:
    with pytest.raises(ValueError, match="32"):
        name_with(NONCE[:-1], None)
