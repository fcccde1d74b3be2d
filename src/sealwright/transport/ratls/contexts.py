"""TLS contexts that check the peer's evidence at the end of the handshake, before a byte of the application.

Python's ssl cannot ask us during the handshake. So the sockets of these contexts ask right after it and close on a
refusal; reading and writing wait for that check. It cannot be forgotten, whoever uses the context: `connect`, http.client,
asyncio, an HTTP client library. Spec: docs/spec/attested-tls.md.
"""

from __future__ import annotations

import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from sealwright.errors import SealwrightError
from sealwright.transport.ratls.certificate import (
    WITHOUT_NONCE,
    Attest,
    Nonce,
    WithoutNonce,
    make_certificate,
    open_issuer,
)
from sealwright.transport.ratls.names import NONCE_SIZE, Nonces, name_with, nonce_in, nonce_or_none
from sealwright.transport.ratls.sockets import (
    Appraise,
    AttestationRefused,
    AttestedObject,
    AttestedSocket,
    Checking,
    Clock,
    Peer,
)

_NO_CHECK_TIME = ssl.VerifyFlags(
    0x200000
)  # X509_V_FLAG_NO_CHECK_TIME: the caller's clock decides, see `Peer`


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An own key with the means to attest to it."""

    attest: Attest
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False
    )
    clock: Clock = _now


class _Context(ssl.SSLContext):
    _peer: Peer | None = None

    def check_peer(self, der: bytes | None, name: str | None) -> Any:
        """Return what the appraisal makes of the peer; None where a server asks for no certificate."""
        return None if self._peer is None else self._peer.check(der, name)

    def _harden(self) -> None:
        self.minimum_version = ssl.TLSVersion.TLSv1_3
        self.sslsocket_class = AttestedSocket
        self.sslobject_class = AttestedObject

    def _present(self, identity: Identity, nonce: Nonce, *, for_python_server: bool) -> None:
        der = make_certificate(
            identity.key,
            identity.attest,
            nonce=nonce,
            now=identity.clock(),
            for_python_server=for_python_server,
        )
        # ssl reads keys from files only: this one is encrypted under a password that never leaves memory.
        password = secrets.token_hex(32)
        pem = identity.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
        )
        with TemporaryDirectory(prefix="sealwright-") as folder:
            path = Path(folder) / "identity.pem"
            path.write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) + pem)
            self.load_cert_chain(path, password=password)


class _ClientContext(_Context):
    _fresh = True  # ask for a certificate over a nonce of this connection

    def __new__(cls) -> _ClientContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        return super().wrap_socket(
            sock,
            server_side,
            do_handshake_on_connect,
            suppress_ragged_eofs,
            self._name(server_hostname, server_side, session),
        )

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = self._name(server_hostname, server_side, session)
        return super().wrap_bio(incoming, outgoing, server_side, name)

    def _name(
        self, host: str | bytes | None, server_side: bool, session: ssl.SSLSession | None
    ) -> str | None:
        if server_side or session is not None:
            raise ValueError("a client's context resumes no session: each handshake is attested")
        host = host.decode("ascii") if isinstance(host, bytes) else host
        return name_with(secrets.token_bytes(NONCE_SIZE), host) if self._fresh else host


class _ServerContext(_Context):
    def __new__(cls) -> _ServerContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)


def client_context(
    appraise: Appraise,
    *,
    identity: Identity | None = None,
    own_nonce: Nonce = WITHOUT_NONCE,
    server_nonce: bool = True,
    clock: Clock = _now,
) -> ssl.SSLContext:
    """Return a context for clients: the server's evidence decides, its name and issuer do not.

    Args:
        appraise: as `check_certificate` takes it; what it returns is what `attested` returns.
        identity: to present a certificate of one's own; made once, for `own_nonce`.
        own_nonce: what the server gave out for it.
        server_nonce: each connection asks for a certificate over a fresh nonce, sent in the server name. False: for
            servers that cannot, like Gramine's; what they present may be as old as the policy lets evidence be.
    """
    context = _ClientContext()
    context._harden()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # OpenSSL's part: there is no issuer. `Checking` does ours.
    context._fresh = server_nonce
    context._peer = Peer(
        appraise=appraise,
        clock=clock,
        nonce=(lambda _, name: nonce_in(name)) if server_nonce else (lambda _, __: WITHOUT_NONCE),
    )
    if identity is not None:
        context._present(identity, own_nonce, for_python_server=True)
    return context


def server_context(
    identity: Identity,
    *,
    without_nonce: bool = False,
    appraise: Appraise | None = None,
    client_nonces: Nonces | WithoutNonce | None = None,
    alpn: Sequence[str] = (),
    clock: Clock = _now,
) -> ssl.SSLContext:
    """Return a context for servers: a certificate is made, and attested, for the nonce of each connection.

    Args:
        without_nonce: serve clients that send no nonce too.
        appraise: to ask clients for a certificate and check it; then `client_nonces` says which nonces count.
        alpn: protocols, in order of preference.
    """
    if (appraise is None) is not (client_nonces is None):
        raise ValueError("appraise and client_nonces come together")
    peer = None
    if appraise is not None:
        peer = Peer(
            appraise=appraise,
            clock=clock,
            nonce=lambda certificate, _: (
                client_nonces.redeem(certificate.nonce)
                if isinstance(client_nonces, Nonces)
                else WITHOUT_NONCE
            ),
        )

    def new() -> _ServerContext:
        context = _ServerContext()
        context._harden()
        context.num_tickets = 0  # no resumption: each handshake is attested
        context._peer = peer
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if peer is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= _NO_CHECK_TIME
            context.load_verify_locations(cadata=open_issuer().public_bytes(Encoding.DER))
        return context

    def choose(sock: Any, name: str | None, _: ssl.SSLContext) -> int | None:
        nonce = nonce_or_none(name)
        if nonce is None and not without_nonce:
            return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        context = new()
        try:
            context._present(identity, WITHOUT_NONCE if nonce is None else nonce, for_python_server=False)
        except (SealwrightError, ValueError, OSError) as error:
            sock._no_certificate = error
            return ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR
        sock.context = context
        return None

    context = new()
    context.sni_callback = choose
    return context


def connect(address: tuple[str, int], context: ssl.SSLContext, *, timeout_s: float = 30) -> ssl.SSLSocket:
    """Return a connection to a server whose evidence was accepted; else it is closed.

    Raises:
        SealwrightError: what was refused. OSError: no connection, or no handshake.
    """
    _require_own(context)
    raw = socket.create_connection(address, timeout_s)
    return _wrapped(raw, lambda: context.wrap_socket(raw, server_hostname=address[0]))


def accept(listener: socket.socket, context: ssl.SSLContext, *, timeout_s: float = 10) -> ssl.SSLSocket:
    """Return the next connection; where clients are checked, one whose evidence was accepted.

    Raises:
        SealwrightError: what was refused; the connection is closed. OSError: no handshake.
    """
    _require_own(context)
    raw, _ = listener.accept()
    raw.settimeout(timeout_s)
    return _wrapped(raw, lambda: context.wrap_socket(raw, server_side=True))


def attested(connection: ssl.SSLSocket | ssl.SSLObject) -> Any:
    """Return what the appraisal made of the peer of a connection; None where a server asks for no certificate."""
    if not isinstance(connection, Checking) or connection._attested is None:
        raise ValueError("not a connection whose peer was checked")
    return connection._attested[0]


def _wrapped(raw: socket.socket, wrap: Callable[[], ssl.SSLSocket]) -> ssl.SSLSocket:
    try:
        return wrap()
    except AttestationRefused as refused:
        raise refused.error from None
    finally:
        raw.close()  # `wrap_socket` has taken the descriptor, or closed it


def _require_own(context: ssl.SSLContext) -> None:
    if not isinstance(context, _Context):
        raise TypeError("a context of client_context or server_context is wanted")
