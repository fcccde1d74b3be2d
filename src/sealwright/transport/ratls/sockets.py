"""TLS sockets that check their peer's evidence at the end of the handshake, and are of no use before."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sealwright.errors import SealwrightError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.transport.ratls.certificate import AttestedCertificate, Nonce

Appraise = Callable[[EvidenceEnvelope, bytes], Any]  # as `check_certificate` takes it
Clock = Callable[[], datetime]


class AttestationRefused(ssl.SSLError):
    """The peer's evidence was refused and the connection closed; `error` says why."""

    def __init__(self, error: SealwrightError) -> None:
        super().__init__(ssl.SSLErrorNumber.SSL_ERROR_SSL, f"{error} [{error.code}]")
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What is asked of a peer."""

    appraise: Appraise
    clock: Clock
    # Which nonce counts, by certificate and server name.
    nonce: Callable[[AttestedCertificate, str | None], Nonce]

    def check(self, der: bytes | None, name: str | None) -> Any:
        """Return what the appraisal makes of a peer's certificate."""
        if der is None:
            raise VerificationError(
                "the peer has no certificate", code="key-not-attested", stage="certificate"
            )
        certificate = AttestedCertificate.parse(der, at=self.clock())
        certificate.check_nonce(self.nonce(certificate, name))
        return self.appraise(certificate.unverified_evidence, certificate.report_data)


class Checking:
    """Part of a socket that is of no use before its peer was checked."""

    _attested: tuple[Any] | None = None  # the result, once there is one
    _refused: Exception | None = None
    _no_certificate: Exception | None = None  # why a server could make none

    def _handshake(self, shake: Callable[[], None]) -> None:
        if self._refused is None and self._attested is None:
            try:
                shake()
            except ssl.SSLError as error:
                raise error from self._no_certificate
        self._check_peer()

    def _check_peer(self) -> None:
        if self._refused is not None:
            raise self._refused
        if self._attested is not None:
            return
        mine: Any = self
        try:
            found = mine.context.check_peer(mine.getpeercert(binary_form=True), mine.server_hostname)
        except SealwrightError as error:
            self._refused = AttestationRefused(error)
            raise self._refused from error
        except BaseException:
            self._refused = AttestationRefused(
                VerificationError("the peer could not be checked", code="key-not-attested", stage="appraisal")
            )
            raise
        self._attested = (found,)

    def _require(self) -> None:
        if self._attested is None:
            mine: Any = self
            mine.do_handshake()


class AttestedSocket(Checking, ssl.SSLSocket):
    """A TLS socket; refused, it is closed."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            self._handshake(lambda: super(AttestedSocket, self).do_handshake(block))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:
            self.close()
            raise

    # Everything else that reads or writes comes down to these three.
    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - ssl's own name
        self._require()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        self._require()
        return super().write(data)

    def send(self, data: Any, flags: int = 0) -> int:
        self._require()
        return super().send(data, flags)


class AttestedObject(Checking, ssl.SSLObject):
    """TLS without a socket, as asyncio uses it."""

    def do_handshake(self) -> None:
        self._handshake(super().do_handshake)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - ssl's own name
        self._require()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        self._require()
        return super().write(data)
