"""TPMs for tests: a real software TPM (swtpm) with a maker's CA of its own, and a fake that needs no program."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.attester.tpm.attester import AK_TEMPLATE
from sealwright.attester.tpm.commands import Tpm
from sealwright.attester.tpm.transport import connect
from sealwright.endorsement.tpm import AK_EKU
from sealwright.endorsement.x509 import fingerprint, key_usage, load_certificate, pem_blocks
from sealwright.errors import UnavailableError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import CURVE_IDS, Scheme, TpmtPublic, TpmtSignature
from sealwright.evidence.tpmwire import ALG_ECC, ALG_RSA, PCRS, Bank, PcrSelection
from sealwright.protocol.tpm_ca import AK_LIFE, AttestationCa, new_attestation_ca
from sealwright.testing.software import FakePlatformWarning

_START_S = 10.0
_SETUP_S = 60.0
_MISSING = "swtpm is not installed: apt-get install swtpm swtpm-tools"


class SwTpm:
    """A swtpm process, made in a folder of its own, with endorsement certificates of a CA made there too.

    `with SwTpm() as tpm: TpmAttester.open(tpm.address)`. It serves one connection at a time.

    Args:
        state: a folder that `manufacture` made, which is copied; None: a TPM is made anew (about 1.7 s).
    """

    def __init__(self, state: Path | None = None) -> None:
        warnings.warn("SwTpm is a program that anybody can look into", FakePlatformWarning, stacklevel=2)
        self._state = state
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> bool:
        """Return whether swtpm is on this machine."""
        return shutil.which("swtpm") is not None and shutil.which("swtpm_setup") is not None

    @property
    def folder(self) -> Path:
        """The running TPM's folder."""
        if self._folder is None:
            raise RuntimeError("the TPM is not running")
        return Path(self._folder.name)

    @property
    def address(self) -> str:
        """Where it listens, as `connect` takes it."""
        return f"unix:{self.folder / 'server'}"

    def roots(self) -> frozenset[bytes]:
        """Return the SHA-256 of the maker's root certificate."""
        return frozenset({fingerprint(load_certificate(self._certificate("swtpm-localca-rootca-cert.pem")))})

    def ek_chain(self) -> tuple[bytes, ...]:
        """Return the maker's issuing certificate and root, DER."""
        return self._certificate("issuercert.pem"), self._certificate("swtpm-localca-rootca-cert.pem")

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="swtpm-")
        try:
            if self._state is None:
                manufacture(self.folder)
            else:
                shutil.copytree(self._state, self.folder, dirs_exist_ok=True)
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.shutdown()
        finally:
            self._end()

    def restart(self) -> None:
        """Shut it down in order and start it again: PCRs are reset, the reset count goes up."""
        self.shutdown()
        self._stop()
        self._start()

    def shutdown(self) -> None:
        """Send TPM2_Shutdown: without it the next start counts an attack, and the clock is not safe."""
        with Tpm(connect(self.address, timeout_s=_START_S)) as tpm:
            tpm.shutdown()

    def _certificate(self, name: str) -> bytes:
        ((_, der),) = pem_blocks((self.folder / "ca" / name).read_bytes())
        return der

    def _start(self) -> None:
        folder = self.folder
        for name in ("server", "control"):
            (folder / name).unlink(missing_ok=True)
        command = [
            "swtpm",
            "socket",
            "--tpm2",
            f"--tpmstate=dir={folder / 'state'}",
            f"--server=type=unixio,path={folder / 'server'}",
            f"--ctrl=type=unixio,path={folder / 'control'}",
            "--flags=not-need-init,startup-clear",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError("swtpm did not start", code="swtpm-failed")
            time.sleep(0.002)

    def _listens(self) -> bool:
        try:
            connect(self.address, timeout_s=_START_S).close()
        except UnavailableError:
            return False
        return True

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _end(self) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def manufacture(folder: Path) -> None:
    """Make a TPM in `folder`: endorsement keys RSA-2048 and P-384 with certificates of a CA in `folder`/ca.

    Raises:
        UnavailableError: `swtpm-missing`, `swtpm-failed`.
    """
    if not SwTpm.installed():
        raise UnavailableError(_MISSING, code="swtpm-missing")
    ca, state = folder / "ca", folder / "state"
    ca.mkdir()
    state.mkdir()
    (ca / "localca.conf").write_text(
        f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/issuercert.pem\n"
        f"certserial = {ca}/certserial\n"
    )
    (ca / "localca.options").write_text(
        "--platform-manufacturer Sealwright\n--platform-version 1\n--platform-model test\n"
    )
    (ca / "setup.conf").write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
        f"create_certs_tool_config = {ca}/localca.conf\n"
        f"create_certs_tool_options = {ca}/localca.options\n"
        "active_pcr_banks = sha256,sha384\n"
    )
    command = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--config", str(ca / "setup.conf")]
    done = subprocess.run(
        [*command, "--create-ek-cert", "--lock-nvram"], capture_output=True, timeout=_SETUP_S, check=False
    )
    if done.returncode:
        reason = done.stdout.decode(errors="replace")[-500:]
        raise UnavailableError(f"swtpm_setup failed: {reason}", code="swtpm-failed")


class TpmTestPlatform:
    """A made-up TPM: an attestation key in this process, certified by a CA of its own. Never trust its root."""

    def __init__(
        self, now: datetime, *, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None
    ) -> None:
        warnings.warn("TpmTestPlatform signs anything", FakePlatformWarning, stacklevel=2)
        self.now = now
        self.ca: AttestationCa = new_attestation_ca("Sealwright test attestation CA", at=now)
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.public = ak_public(self.key)
        self.revoked: list[int] = []
        self.certificate = self.certify()

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes)."""
        return fingerprint(self.ca.root)

    def certify(
        self, extensions: Iterable[tuple[x509.ExtensionType, bool]] | None = None
    ) -> x509.Certificate:
        """Return a certificate of the attestation key, with `extensions` (and whether each is critical) alone."""
        return certify_ak(self.ca, self.key.public_key(), self.now, extensions)

    def endorsements(self) -> tuple[bytes, ...]:
        """Return certificate, root and CRL, DER."""
        crl = self.ca.crl(self.revoked, at=self.now)
        return (
            self.certificate.public_bytes(Encoding.DER),
            self.ca.root.public_bytes(Encoding.DER),
            crl.public_bytes(Encoding.DER),
        )

    def quote(
        self,
        report_data: bytes,
        *,
        pcrs: Mapping[int, bytes] | None = None,
        bank: Bank = "sha256",
        scheme: Scheme | None = None,
        **changes: object,
    ) -> TpmQuote:
        """Return a signed quote.

        Args:
            report_data: 64 bytes.
            pcrs: values that are not zero.
            scheme: None: that of the key.
            changes: members of the TPMS_ATTEST to put in place of the right ones.
        """
        scheme = scheme or self.public.scheme or Scheme(name="ecdsa", hash="sha256")
        size = hashlib.new(bank).digest_size
        values = {number: (pcrs or {}).get(number, bytes(size)) for number in range(PCRS)}
        digest = hashlib.new(scheme.hash, b"".join(values.values())).digest()
        attest = TpmsAttest(
            qualifiedSigner=self.public.name(),
            extraData=report_data.rstrip(b"\0"),
            clock=1000,
            resetCount=1,
            restartCount=0,
            safe=True,
            firmwareVersion=0x2019102300163636,
            pcrSelect=(PcrSelection(bank=bank, pcrs=tuple(range(PCRS))),),
            pcrDigest=digest,
            signed=b"",
        )
        return self.signed(replace(attest, **changes), {bank: values}, scheme)  # type: ignore[arg-type]

    def signed(
        self, attest: TpmsAttest, pcrs: Mapping[Bank, Mapping[int, bytes]], scheme: Scheme
    ) -> TpmQuote:
        """Return `attest` signed."""
        raw = attest.encode()
        signature = TpmtSignature(scheme=scheme, values=_sign(self.key, raw, scheme))
        return TpmQuote(
            attest=replace(attest, signed=raw), signature=signature, ak_public=self.public, pcrs=pcrs
        )

    def evidence(
        self, report_data: bytes, *, pcrs: Mapping[int, bytes] | None = None
    ) -> tuple[bytes, Sequence[bytes]]:
        """Return the bytes of a quote, and endorsement blobs."""
        return self.quote(report_data, pcrs=pcrs).encode(), self.endorsements()

    def envelope(self, report_data: bytes, *, pcrs: Mapping[int, bytes] | None = None) -> EvidenceEnvelope:
        """Return the same as it travels."""
        evidence, endorsements = self.evidence(report_data, pcrs=pcrs)
        return EvidenceEnvelope(type="tpm", evidence=evidence, endorsements=tuple(endorsements))


def ak_public(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> TpmtPublic:
    """Return the public area of an attestation key."""
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers().n.to_bytes(key.key_size // 8, "big")
        scheme = Scheme(name="rsassa", hash="sha256")
        return replace(
            AK_TEMPLATE, type=ALG_RSA, scheme=scheme, curveID=0, keyBits=key.key_size, unique=(modulus,)
        )
    numbers, size = key.public_key().public_numbers(), (key.curve.key_size + 7) // 8
    scheme = Scheme(name="ecdsa", hash="sha384" if size > 32 else "sha256")
    point = (numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big"))
    return replace(AK_TEMPLATE, type=ALG_ECC, scheme=scheme, curveID=CURVE_IDS[key.curve.name], unique=point)


def certify_ak(
    ca: AttestationCa,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    now: datetime,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] | None,
) -> x509.Certificate:
    """Return a certificate by `ca` of whatever key; None: the extensions that an attestation key's has."""
    if extensions is None:
        extensions = (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage([AK_EKU]), True),
        )
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test machine")]))
        .issuer_name(ca.root.subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + AK_LIFE)
        .public_key(key)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(ca.key, hashes.SHA384())


def _sign(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, raw: bytes, scheme: Scheme
) -> tuple[bytes, ...]:
    hash_ = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256(), "sha384": hashes.SHA384()}[scheme.hash]  # noqa: S303
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(raw, ec.ECDSA(hash_)))
        return r.to_bytes(size, "big"), s.to_bytes(size, "big")
    if scheme.name == "rsapss":
        return (key.sign(raw, padding.PSS(padding.MGF1(hash_), hash_.digest_size), hash_),)
    return (key.sign(raw, padding.PKCS1v15(), hash_),)
