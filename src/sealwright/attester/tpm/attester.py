"""Quotes of a TPM as evidence: the attestation key, the PCRs and the quote over them, in our envelope."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from sealwright.attester.base import check_ours
from sealwright.attester.tpm.commands import RH_ENDORSEMENT, LoadedKey, Tpm
from sealwright.attester.tpm.transport import connect
from sealwright.errors import FormatError, UnavailableError, VerificationError
from sealwright.evidence import tpmkey
from sealwright.evidence.envelope import EvidenceEnvelope, PlatformType
from sealwright.evidence.runtimelog import parse_systemd_log
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import CURVE_IDS, Scheme, TpmtPublic, TpmtSignature
from sealwright.evidence.tpmwire import ALG_ECC, PCRS, Bank, PcrSelection, malformed
from sealwright.verify.eventlog import SYSTEM

EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
RUNTIME_LOG = Path("/run/log/systemd/tpm2-measure.log")
REPORT_DATA_SIZE = 64  # bytes
CONFIG_PCR = 8  # holds exactly one extend: the config's digest
_TRIES = 8  # while somebody extends PCRs
_MAX_EVENT_LOG = 512 * 1024  # bytes

# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign. noDA: a power cut must not count
# as an attack on a key whose password is empty.
AK_TEMPLATE = TpmtPublic(
    type=ALG_ECC,
    nameAlg="sha256",
    objectAttributes=(
        tpmkey.FIXED_TPM
        | tpmkey.FIXED_PARENT
        | tpmkey.SENSITIVE_DATA_ORIGIN
        | tpmkey.USER_WITH_AUTH
        | tpmkey.NO_DA
        | tpmkey.RESTRICTED
        | tpmkey.SIGN
    ),
    scheme=Scheme(name="ecdsa", hash="sha256"),
    curveID=CURVE_IDS["secp256r1"],
)


def primary_ak(tpm: Tpm) -> LoadedKey:
    """Return the attestation key of the endorsement hierarchy: the same after each boot, with nothing to store."""
    return tpm.create_primary(RH_ENDORSEMENT, AK_TEMPLATE)


def persistent_ak(tpm: Tpm, handle: int) -> LoadedKey:
    """Return an attestation key that somebody made persistent at `handle`."""
    return LoadedKey(handle=handle, public=tpm.read_public(handle))


class TpmAttester:
    """Quotes with one attestation key, one quote at a time: threads wait for each other.

    Args:
        tpm: closed with this.
        ak: the attestation key; flushed with this, unless it is persistent.
        endorsements: certificates and CRLs of the attestation key, DER or PEM, which go into each envelope.
        event_log: the kernel's TCG log, read at each quote; None: none goes along.
        banks: PCR banks that are quoted.
        pcrs: PCRs that are quoted.
    """

    def __init__(
        self,
        tpm: Tpm,
        ak: LoadedKey,
        *,
        endorsements: Sequence[bytes] = (),
        event_log: Path | None = None,
        banks: Sequence[Bank] = ("sha256",),
        pcrs: Iterable[int] = range(PCRS),
    ) -> None:
        self.tpm = tpm
        self.ak = ak
        self._lock = Lock()
        self._endorsements = tuple(endorsements)
        self._event_log = event_log
        numbers = tuple(sorted(set(pcrs)))
        self._selection = tuple(PcrSelection(bank=bank, pcrs=numbers) for bank in banks)

    @classmethod
    def open(
        cls,
        address: str = "/dev/tpmrm0",
        *,
        endorsements: Sequence[bytes] = (),
        event_log: Path | None = None,
        banks: Sequence[Bank] = ("sha256",),
        handle: int | None = None,
    ) -> Self:
        """Return an attester of the TPM at `address` (see `connect`).

        Args:
            handle: of a persistent attestation key; None: the primary one is made.

        Raises:
            SettingsError, UnavailableError, EvidenceFormatError: no such TPM, or it refuses.
        """
        tpm = Tpm(connect(address))
        try:
            ak = primary_ak(tpm) if handle is None else persistent_ak(tpm, handle)
            return cls(tpm, ak, endorsements=endorsements, event_log=event_log, banks=banks)
        except BaseException:
            tpm.close()
            raise

    def close(self) -> None:
        """Flush the key, unless it is persistent, and let go of the TPM."""
        try:
            if not self.ak.persistent:
                self.tpm.flush(self.ak.handle)
        finally:
            self.tpm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return evidence over `report_data` (64 bytes, without its zero padding in the quote).

        Raises:
            UnavailableError: `tpm-unreachable`, `tpm-refused`, `tpm-pcr-missing`, `tpm-pcrs-change`,
                `event-log-unreadable`.
            VerificationError: `report-data-mismatch`.
        """
        if len(report_data) != REPORT_DATA_SIZE or not any(report_data):
            raise ValueError(f"report data has {REPORT_DATA_SIZE} bytes, not all of them zero")
        wanted = report_data.rstrip(b"\0")
        with self._lock:
            quote = self._consistent(wanted)
        check_ours(quote.attest.extraData, wanted)
        return EvidenceEnvelope(
            type="tpm",
            evidence=quote.encode(),
            event_log=None if self._event_log is None else _read_log(self._event_log),
            runtime_log=None if self._event_log is None else _system_log(RUNTIME_LOG),
            endorsements=self._endorsements,
        )

    @property
    def platform(self) -> PlatformType:
        """The type of the envelopes that `quote` returns."""
        return "tpm"

    def describe(self) -> Mapping[str, object]:
        """Return what the TPM says of itself. Nothing of it is signed."""
        banks = {bank: sorted(numbers) for bank, numbers in self.tpm.pcr_banks().items()}
        return {"pcr_banks": banks, "ak_name": self.ak.public.name().hex()}

    def bind_config(self, config_digest: bytes) -> None:
        """Extend `config_digest` (32 bytes) into PCR 8, whose only extend it is; where this was done before, nothing is.

        Raises:
            VerificationError: `config-register-used`: PCR 8 holds something else.
            UnavailableError: as `quote`.
        """
        if len(config_digest) != hashlib.sha256().digest_size:
            raise ValueError("a config digest has 32 bytes")
        if not any(self._config_pcr()):
            self.tpm.pcr_extend(CONFIG_PCR, {"sha256": config_digest})
        wanted = hashlib.sha256(bytes(len(config_digest)) + config_digest).digest()
        if not hmac.compare_digest(self._config_pcr(), wanted):
            raise VerificationError(
                f"PCR {CONFIG_PCR} does not hold what was extended alone",
                code="config-register-used",
                stage="collect",
            )

    def _config_pcr(self) -> bytes:
        return self.tpm.pcr_read("sha256", [CONFIG_PCR])[CONFIG_PCR]

    def _consistent(self, qualifying_data: bytes) -> TpmQuote:
        """Return a quote with the PCRs that it covers: somebody may extend one between reading and quoting."""
        for _ in range(_TRIES):
            pcrs = {one.bank: self.tpm.pcr_read(one.bank, one.pcrs) for one in self._selection}
            attest, signature = self.tpm.quote(self.ak, qualifying_data, self._selection)
            quote = TpmQuote(attest=attest, signature=signature, ak_public=self.ak.public, pcrs=pcrs)
            if attest.selected() != {bank: frozenset(values) for bank, values in pcrs.items()}:
                malformed("a TPM quotes other PCRs than it was asked for")
            if _digest(quote, attest, signature) == attest.pcrDigest:
                return quote
        raise UnavailableError("PCRs change faster than they can be quoted", code="tpm-pcrs-change")


def certificate_in_nv(tpm: Tpm, index: int) -> bytes | None:
    """Return the DER certificate at an NV index, without what the TPM's maker padded it with; None: there is none."""
    raw = tpm.nv_read(index)
    if raw is None or raw[:1] != b"\x30":
        return None
    return raw[: _der_size(raw)]


def _digest(quote: TpmQuote, attest: TpmsAttest, signature: TpmtSignature) -> bytes:
    values = b"".join(quote.pcrs[one.bank][pcr] for one in attest.pcrSelect for pcr in one.pcrs)
    return hashlib.new(signature.scheme.hash, values).digest()


def _der_size(raw: bytes) -> int:
    """Return the length of the DER element that `raw` begins with, header included."""
    length = raw[1] if len(raw) > 1 else 0
    if length < 0x80:
        return 2 + length
    count = length & 0x7F
    return 2 + count + int.from_bytes(raw[2 : 2 + count], "big")


def _system_log(path: Path) -> bytes | None:
    """Return systemd's log; None: it is not there, not for this user, or none that a verifier takes."""
    try:
        raw = _read_log(path)
        told = {event.register for event in parse_systemd_log(raw)}
    except (UnavailableError, FormatError):
        return None
    return raw if told and told <= SYSTEM else None


def _read_log(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_EVENT_LOG + 1)
    except OSError as exc:
        raise UnavailableError(f"the event log cannot be read: {exc}", code="event-log-unreadable") from exc
    if len(raw) > _MAX_EVENT_LOG:
        raise UnavailableError(f"the event log is over {_MAX_EVENT_LOG} bytes", code="event-log-unreadable")
    return raw
