"""The quoting process: signs quotes for one workload, over one inherited socketpair.

It is forked before the root key is read, so it never holds it; its certificates come from its parent.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealwright import __version__
from sealwright.attester.base import Attester, BindsConfig
from sealwright.attester.local import AttesterSpec
from sealwright.attester.quoter import kernel, layout
from sealwright.attester.quoter.authority import envelope, new_authority, sign_quote
from sealwright.attester.quoter.peers import allowed_peers, serve_connections
from sealwright.endorsement.software import SoftwareEndorsement
from sealwright.errors import SealwrightError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import REPORT_DATA_SIZE, Claims, QuoteBody, SoftwareQuote

_EXAMPLE = QuoteBody(
    quoter=__version__,
    boot_id="00000000-0000-4000-8000-000000000000",
    start_time=0,
    registers=(bytes(32), bytes(32)),
    report_data=bytes(REPORT_DATA_SIZE),
    claims=Claims(
        user="shared",
        sealed_root="directory",
        dumpable="late",
        core="off",
        filesystem="open",
        seccomp="none",
        network="open",
        swap="reachable",
    ),
    stated=(),
)
_RENEW_BEFORE = timedelta(hours=12)  # of a quoting certificate's end


@dataclass(slots=True, kw_only=True)
class Quoter:
    """A quoting key with its certificates. `body` is what each quote says, save for the report data."""

    body: QuoteBody
    authority: socket.socket  # to the parent, who certifies
    key: ec.EllipticCurvePrivateKey
    endorsement: SoftwareEndorsement | None = None

    def quote(self, report_data: bytes, now: datetime) -> bytes:
        """Return an evidence envelope over 64 bytes of report data."""
        body = self.body.model_copy(update={"report_data": report_data})
        current = self._current(now)
        signed = sign_quote(self.key, body)
        made = envelope(signed, current.unverified_quoting, current.unverified_root, current.unverified_crl)
        return made.encode()

    def _current(self, now: datetime) -> SoftwareEndorsement:
        """Return certificates that are valid for hours; asks the parent for new ones when they are not."""
        held = self.endorsement
        if held is None or held.unverified_quoting.not_valid_after_utc - now < _RENEW_BEFORE:
            spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            self.authority.send(spki)
            quoting, root, crl = layout.unpacked(self.authority.recv(layout.PACKET))
            held = SoftwareEndorsement.parse([bytes.fromhex(der) for der in (quoting, root, crl)])
            self.endorsement = held
        return held


@dataclass(slots=True, kw_only=True)
class HardwareQuoter:
    """Quotes of this machine's own attester, in place of ours. The config is in its register from the start."""

    attester: Attester

    def quote(self, report_data: bytes, now: datetime) -> bytes:
        """Return an evidence envelope over 64 bytes of report data."""
        return self.attester.quote(report_data).encode()


def run_quoter(
    authority: socket.socket,
    quotes: socket.socket,
    connections: socket.socket,
    uid: int,
    spec: AttesterSpec | None,
) -> NoReturn:
    """In the quoting process: drop root, wait for the body, then serve until the workload ends."""
    code = 1
    try:
        attester = _opened(spec, authority)
        _rehearse()
        parent = os.getppid()
        # A TPM is open already. The TEEs' interfaces are opened for each quote, and root alone may.
        _drop(uid if attester is None or attester.platform == "tpm" else 0)
        body, config = _told(authority)
        if os.getppid() == parent:
            quoter = _quoter(body, config, authority, attester)
            authority.send(layout.OK)
            authority.recv(layout.PACKET)  # the workload is running: what it writes now is for us
            peers = allowed_peers(config)
            threading.Thread(target=serve_connections, args=(connections, peers), daemon=True).start()
            serve_quotes(quoter, quotes)
            code = 0
    except Exception as exc:  # noqa: BLE001 - the parent ends the workload when this process ends
        print(f"quoter: {type(exc).__name__}: {exc}", file=sys.stderr)
    finally:
        os._exit(code)


def serve_quotes(quoter: Quoter | HardwareQuoter, channel: socket.socket) -> None:
    """Answer each 64-byte report data with an envelope, until the workload has closed its end."""
    while request := channel.recv(layout.PACKET):
        if len(request) != REPORT_DATA_SIZE:
            channel.send(layout.failure(ValueError("report data has 64 bytes")))
            continue
        try:
            answer = quoter.quote(request, datetime.now(UTC))
        except SealwrightError as exc:  # an interface that is busy now may answer later
            channel.send(layout.failure(exc))
            continue
        layout.send_answer(channel, answer)


def _opened(spec: AttesterSpec | None, authority: socket.socket) -> Attester | None:
    """Open the attester, and quote once, so that all is imported and a machine without it fails at the start."""
    try:
        attester = None if spec is None else spec.open()
        if attester is not None:
            attester.quote(hashlib.sha512(b"sealwright/rehearsal/v1").digest())
    except SealwrightError as exc:
        authority.send(layout.failure(exc))
        raise
    return attester


def _quoter(
    body: QuoteBody, config: bytes, authority: socket.socket, attester: Attester | None
) -> Quoter | HardwareQuoter:
    if attester is None:
        quoter = Quoter(body=body, authority=authority, key=ec.generate_private_key(ec.SECP384R1()))
        quoter.quote(bytes(REPORT_DATA_SIZE), datetime.now(UTC))  # certificates are in place before "ready"
        return quoter
    if isinstance(attester, BindsConfig):
        try:
            attester.bind_config(hashlib.sha256(config).digest())
        except SealwrightError as exc:
            authority.send(layout.failure(exc))
            raise
    return HardwareQuoter(attester=attester)


def _rehearse() -> None:
    """Quote once with throw-away keys, so that all is imported.

    After the change of user, an interpreter in a private home is out of reach.
    """
    now = datetime.now(UTC)
    made = new_authority(now)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        quoter = Quoter(body=_EXAMPLE, authority=ours, key=ec.generate_private_key(ec.SECP384R1()))
        key = quoter.key.public_key()
        theirs.send(certificates((made.certify(key, now), made.root), made.crl(now)))
        raw = quoter.quote(bytes(REPORT_DATA_SIZE), now)
    SoftwareQuote.parse(EvidenceEnvelope.parse(raw).evidence)
    "localhost".encode("idna")


def _drop(uid: int) -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() == 0 and uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C is the workload's to answer
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _told(authority: socket.socket) -> tuple[QuoteBody, bytes]:
    message = authority.recv(layout.PACKET)
    if not message:
        os._exit(0)
    body, config = layout.unpacked(message)
    return QuoteBody.parse(bytes.fromhex(body)), bytes.fromhex(config)


def certificates(
    chain: tuple[x509.Certificate, x509.Certificate], crl: x509.CertificateRevocationList
) -> bytes:
    """Return the parent's answer to a public key: quoting certificate, root and CRL."""
    return layout.packed([part.public_bytes(Encoding.DER).hex() for part in (*chain, crl)])
