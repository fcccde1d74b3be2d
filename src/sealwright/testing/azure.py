"""A paravisor without Azure: over a fake AMD or a fake Intel, with a vTPM key of its own. Every part can be told to lie."""

from __future__ import annotations

import base64
import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.azure import HARDWARE_REPORT_SIZE, AzureEvidence, HclReport
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import Scheme, TpmtSignature
from sealwright.evidence.tpmwire import PcrSelection
from sealwright.testing.intel import TdxTestPlatform, td_report
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import ak_public

PCRS = 24
# Of a TDREPORT (Intel TDX Module ABI specification, TDREPORT_STRUCT).
_REPORT_DATA = slice(128, 192)
_TEE_TCB = slice(264, 384)  # TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, ATTRIBUTES, behind VALID
_TD_INFO = slice(512, 912)  # as in a quote's body


class Paravisor(ABC):
    """What Azure's confidential VMs share, whatever their hardware.

    `claims` are the paravisor's runtime data, `pcrs` the values of bank sha256, `report` fields of the hardware's
    report that differ: change them at will.
    """

    kind: Literal["snp", "tdx"]
    hardware: SnpTestPlatform | TdxTestPlatform

    def __init__(self) -> None:
        warnings.warn(f"{type(self).__name__} signs anything", FakePlatformWarning, stacklevel=3)
        self.key = _key("ak")
        self.report: dict[str, Any] = {}
        self.claims: dict[str, Any] = {
            "keys": [self.jwk()],
            "vm-configuration": {"secure-boot": True, "tpm-enabled": True, "vmUniqueId": "TEST"},
            "user-data": "00" * 64,
        }
        self.pcrs = {number: bytes([number]) * 32 if number < 12 else bytes(32) for number in range(PCRS)}

    @abstractmethod
    def hardware_report(self, report_data: bytes, **report: Any) -> bytes:
        """Return the hardware's report over `report_data` (64 bytes). Args: report: fields that differ."""

    @abstractmethod
    def td_quote(self, hardware_report: bytes) -> bytes | None:
        """Return the quote that belongs to a report of `hardware_report`; None: it needs none."""

    @abstractmethod
    def metadata(self, path: str, body: bytes | None) -> bytes:
        """Answer as the instance metadata service."""

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes)."""
        return self.hardware.root_fingerprint

    def endorsements(self) -> list[bytes]:
        """Return what comes with the evidence, DER, or as Intel serves it."""
        return self.hardware.endorsements()

    def jwk(self, key: rsa.RSAPrivateKey | None = None, **changes: Any) -> dict[str, Any]:
        """Return the vTPM's key as the paravisor states it. Args: changes: members that differ."""
        numbers = (key or self.key).public_key().public_numbers()
        stated = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA"}
        return {**stated, "e": b64url_integer(numbers.e), "n": b64url_integer(numbers.n), **changes}

    def hcl(self, *, report_data: bytes | None = None, hash_name: str = "sha256", **report: Any) -> HclReport:
        """Return the paravisor's report.

        Args:
            report_data: else what it has to be, 64 bytes.
            report: fields of the hardware's report that differ, as `hardware_report`.
        """
        data = json.dumps(self.claims).encode()
        bound = hashlib.new(hash_name, data).digest().ljust(64, b"\0")
        return HclReport(
            version=2,
            kind=self.kind,
            hash_name=hash_name,
            hardware_report=self.hardware_report(report_data or bound, **(self.report | report)),
            runtime_data=data,
            padding=8,
        )

    def quote(self, extra_data: bytes, *, key: rsa.RSAPrivateKey | None = None, **attest: Any) -> TpmQuote:
        """Return a quote of the vTPM.

        Args:
            extra_data: report data without its zero padding.
            key: else the vTPM's own.
            attest: members of TPMS_ATTEST that differ.
        """
        fields: dict[str, Any] = {
            "qualifiedSigner": b"\x00\x0b" + bytes(32),
            "extraData": extra_data,
            "clock": 1,
            "resetCount": 0,
            "restartCount": 0,
            "safe": True,
            "firmwareVersion": 1,
            "pcrSelect": (PcrSelection(bank="sha256", pcrs=tuple(sorted(self.pcrs))),),
            "pcrDigest": hashlib.sha256(b"".join(value for _, value in sorted(self.pcrs.items()))).digest(),
        }
        said = TpmsAttest(**(fields | attest), signed=b"")
        signed = said.encode()
        signature = (key or self.key).sign(signed, padding.PKCS1v15(), SHA256())
        return TpmQuote(
            attest=replace(said, signed=signed),
            signature=TpmtSignature(scheme=Scheme(name="rsassa", hash="sha256"), values=(signature,)),
            pcrs={"sha256": dict(self.pcrs)},
        )

    def evidence(self, extra_data: bytes, **report: Any) -> tuple[AzureEvidence, list[bytes]]:
        """Return evidence over `extra_data` and the endorsements for it. Args: report: as `hcl`."""
        hcl = self.hcl(**report)
        td_quote = self.td_quote(hcl.hardware_report)
        return AzureEvidence(hcl=hcl, quote=self.quote(extra_data), td_quote=td_quote), self.endorsements()


class AzureTestPlatform(Paravisor):
    """An Azure confidential VM on SEV-SNP, made at `now`: it says and signs anything. Never trust its root."""

    kind = "snp"
    hardware: SnpTestPlatform

    def __init__(self, now: datetime, *, hardware: SnpTestPlatform | None = None) -> None:
        super().__init__()
        self.hardware = hardware or SnpTestPlatform(now, "Milan")

    def hardware_report(self, report_data: bytes, **report: Any) -> bytes:
        """Return a report. Args: report: as `SnpTestPlatform.report`."""
        return self.hardware.report(report_data, **report)

    def td_quote(self, hardware_report: bytes) -> bytes | None:
        """Return None: an SNP report is signed itself."""
        return None

    def metadata(self, path: str, body: bytes | None) -> bytes:
        """Answer with the VCEK, ASK and ARK, PEM."""
        vek, *chain = (
            one.public_bytes(Encoding.PEM).decode()
            for one in Endorsements.detect(self.endorsements()).certificates
        )
        return json.dumps({"vcekCert": vek, "certificateChain": "".join(chain), "tcbm": "00"}).encode()


class AzureTdxTestPlatform(Paravisor):
    """An Azure confidential VM on TDX, made at `now`: it says and signs anything. Never trust its root."""

    kind = "tdx"
    hardware: TdxTestPlatform

    def __init__(self, now: datetime, *, hardware: TdxTestPlatform | None = None) -> None:
        super().__init__()
        self.hardware = hardware or TdxTestPlatform(now)

    def hardware_report(self, report_data: bytes, **report: Any) -> bytes:
        """Return a TDREPORT and zeros. Args: report: as `td_report`."""
        body = td_report(report_data=report_data, **report)
        raw = bytearray(HARDWARE_REPORT_SIZE)
        raw[:4] = b"\x81\0\0\0"  # REPORTTYPE: TDX, version 0
        raw[_REPORT_DATA], raw[_TEE_TCB], raw[_TD_INFO] = report_data, body[:120], body[120:520]
        return bytes(raw)

    def td_quote(self, hardware_report: bytes) -> bytes | None:
        """Return a quote, version 4, of the TD with this TDREPORT."""
        report = hardware_report[_TEE_TCB] + hardware_report[_TD_INFO] + hardware_report[_REPORT_DATA]
        return self.hardware.quote(report, version=4, kind=2)

    def metadata(self, path: str, body: bytes | None) -> bytes:
        """Answer with a quote over the TDREPORT in `body`."""
        report = b64url_decode(json.loads(body or b"{}")["report"], error=EvidenceFormatError)
        return json.dumps({"quote": b64url(self.td_quote(report) or b"")}).encode()


class AzureTestVtpm:
    """The vTPM and the metadata service of a `Paravisor`, as `AzureAttester` uses them.

    Args:
        event_log: that goes along with each quote.
    """

    platform: Literal["tpm"] = "tpm"

    def __init__(self, machine: Paravisor, *, event_log: bytes | None = None) -> None:
        self.machine = machine
        self.event_log = event_log
        self.key = machine.key
        self.read: list[tuple[int, bool]] = []  # NV indices, and whether by the owner
        self.asked: list[str] = []  # paths of the metadata service

    def nv_read(self, index: int, *, owner: bool = False) -> bytes | None:
        """Return the paravisor's report out of its index."""
        self.read.append((index, owner))
        return self.machine.hcl().encode() if index == 0x01400001 else None

    def quote(self, report_data: bytes) -> EvidenceEnvelope:
        """Return a quote by `key`, as `TpmAttester` does."""
        signed = self.machine.quote(report_data.rstrip(b"\0"), key=self.key)
        return EvidenceEnvelope(
            type="tpm",
            evidence=replace(signed, ak_public=ak_public(self.key)).encode(),
            event_log=self.event_log,
            endorsements=(),
        )

    def bind_config(self, config_digest: bytes) -> None:
        """Extend PCR 8, which was not extended before."""
        self.machine.pcrs[8] = hashlib.sha256(bytes(32) + config_digest).digest()

    def describe(self) -> Mapping[str, object]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Let go of nothing."""

    def http(self, path: str, body: bytes | None) -> bytes:
        """Answer as the metadata service."""
        self.asked.append(path)
        return self.machine.metadata(path, body)


def b64url_integer(number: int) -> str:
    """Return a number as a JWK has it."""
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@cache
def _key(_name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def other_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the key of somebody else; it is made once a process."""
    return _key("other", bits)
