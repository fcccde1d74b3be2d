"""What `scripts/fuzz.py` feeds: every parser of evidence and endorsements, and the whole verification of a file."""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.audit.detect import detect
from sealwright.audit.evidence import check_evidence
from sealwright.audit.given import Given
from sealwright.collateral.need import Need
from sealwright.collateral.pack import Pack
from sealwright.collateral.peek import needs_of
from sealwright.collateral.record import Piece
from sealwright.crypto import cbor
from sealwright.endorsement.amd import VekCertificate
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.google import LaunchEndorsement
from sealwright.endorsement.intel import parse_intel_json
from sealwright.endorsement.intel_pck import PckExtension, parse_pck_chain
from sealwright.endorsement.nvidia import dice_info
from sealwright.endorsement.nvidia_rim import Rim
from sealwright.endorsement.ocsp import OcspAnswer
from sealwright.endorsement.strict_xml import parse_xml
from sealwright.endorsement.token import parse_jwks
from sealwright.endorsement.x509 import load_certificate, load_crl, pem_blocks
from sealwright.errors import FormatError, SealwrightError
from sealwright.evidence.azure import AzureEvidence, HclReport, RuntimeClaims
from sealwright.evidence.azuretrustee import parse_trustee
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.eventlog import CcelTable, EventLog
from sealwright.evidence.ima import parse_ima_list
from sealwright.evidence.nitro import NitroDocument
from sealwright.evidence.nvgpu import parse_devices
from sealwright.evidence.runtimelog import parse_aael, parse_systemd_log
from sealwright.evidence.sgx import SgxQuote
from sealwright.evidence.snp_certs import CertificateTable, ExtendedReport
from sealwright.evidence.software import SoftwareQuote
from sealwright.evidence.spdm import SpdmReport
from sealwright.evidence.tdx import TdxQuote
from sealwright.evidence.token import CloudToken
from sealwright.evidence.tpm import TpmQuote, TpmsAttest
from sealwright.evidence.tpmkey import TpmtPublic, TpmtSignature
from sealwright.evidence.uefi import VariableData, parse_signature_lists
from sealwright.testing.azure import AzureTdxTestPlatform, AzureTestPlatform
from sealwright.testing.eventlog import BootLogBuilder
from sealwright.testing.google_endorsement import FakeGoogle
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform
from sealwright.testing.nitro import NitroTestPlatform
from sealwright.testing.nvgpu import FakeNvidia
from sealwright.testing.snp import SnpTestPlatform
from sealwright.testing.software import SoftwareTestPlatform
from sealwright.testing.token import TokenTestService
from sealwright.testing.tpm import TpmTestPlatform
from sealwright.verify.boot import read_boot
from sealwright.verify.context import COLLATERAL_KINDS, Tolerance
from sealwright.verify.eventlog import replay, verify_event_log
from sealwright.verify.verified import MADE_BY_VERIFY, Verified

ROOT = Path(__file__).resolve().parent.parent
NOW = datetime(2026, 11, 1, tzinfo=UTC)  # of the fakes
AT = datetime(2025, 6, 25, 12, tzinfo=UTC)  # most of the real certificates are valid
DATA = bytes(range(64))
MAX_SEED = 64 * 1024  # bytes
# A verification decides without collateral, so that more of it is reached.
_OUTAGE = {kind: Tolerance(missing=True, stale=timedelta(days=9999)) for kind in COLLATERAL_KINDS}
_COLLATERAL = ("tdx/dcap-qvl/tdx_quote_collateral.json", "sev-snp/openpcc/sev_certificates.txt")
_EVIDENCE = (
    "tdx/dcap-qvl/tdx_quote",
    "sgx/dcap-qvl/sgx_quote",
    "sev-snp/go-sev-guest/verify__testdata__attestation.bin",
    "nvidia/nvtrust/hopperAttestationReport.txt",
    "tpm/trustee-az/test_data__az-snp-vtpm__evidence-v1.json",
)
_TEXTS = (
    b"10 " + b"00" * 20 + b" ima-ng sha256:" + b"00" * 32 + b" boot_aggregate\n",
    b"10 " + b"00" * 20 + b" ima-sig sha256:" + b"00" * 32 + b" /usr/bin/init 0302\n",
    b"INIT/sha384 " + b"00" * 48 + b"\ncoco.com operation content\n",
    b'\x1e{"pcr":11,"digests":[],"content":{"string":"enter-initrd"}}\n',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A function of bytes, and the only errors that may come out of it."""

    act: Callable[[bytes], object]
    allowed: type[SealwrightError] = FormatError
    seed: Callable[[bytes], object] | None = None  # what good seeds pass, where it is less than `act`


def _of_certificate(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda raw: read(load_certificate(raw, serial_zero=True))


def _boot(raw: bytes) -> object:
    """Read what booted, from a log whose registers somebody signed."""
    log = EventLog.parse(raw)
    rtmr = list(log.banks) == ["sha384"]
    registers = replay(log, layout="rtmr" if rtmr else "pcr", bank=log.banks[-1])
    signed = Verified(
        platform="tdx" if rtmr else "tpm",
        report_data=DATA,
        registers=registers,
        facts={},
        conditions=(),
        proofs=(),
        root=bytes(32),
        vendor_root=True,
        _made_by=MADE_BY_VERIFY,
    )
    return list(read_boot(verify_event_log(log, signed)).lines())


def _check(raw: bytes, collateral: Endorsements | None = None) -> object:
    given = Given(collateral=_collateral() if collateral is None else collateral, outage=_OUTAGE)
    return check_evidence(raw, rules=None, at=AT, given=given)


def _check_endorsed(raw: bytes) -> None:
    """Verify real evidence with an endorsement that is being fuzzed."""
    found = Endorsements.detect([raw])
    for evidence in _evidence():
        with suppress(SealwrightError):  # nothing else may come out, of any of them
            _check(evidence, found)
            _check(evidence, found + _collateral())


@cache
def _collateral() -> Endorsements:
    return Endorsements.detect(filter(None, map(_real, _COLLATERAL)))


@cache
def _evidence() -> tuple[bytes, ...]:
    return tuple(filter(None, map(_real, _EVIDENCE))) or tuple(fakes()[:1])


def _folders() -> tuple[Path, Path]:
    vectors = Path(os.environ.get("SEALWRIGHT_VECTORS", ROOT.parent / "shared" / "vectors"))
    return vectors / "evidence", ROOT / ".cache" / "evidence"


def _real(name: str) -> bytes:
    return next((path.read_bytes() for one in _folders() if (path := one / name).is_file()), b"")


PARSERS: Mapping[str, Callable[[bytes], object]] = {
    "aael": lambda raw: parse_aael(raw, "rtmr3"),
    "azure": AzureEvidence.parse,
    "azure-claims": RuntimeClaims.parse,
    "azure-hcl": HclReport.parse,
    "azure-trustee": parse_trustee,
    "cbor": lambda raw: cbor.decode(raw, tags=(18,)),
    "ccel-table": CcelTable.parse,
    "certificate": _of_certificate(lambda one: one),
    "certificate-amd": _of_certificate(lambda one: VekCertificate.parse(one, "vcek")),
    "certificate-intel": _of_certificate(PckExtension.of),
    "certificate-nvidia": _of_certificate(dice_info),
    "certificate-table": CertificateTable.parse,
    "crl": load_crl,
    "endorsements": lambda raw: Endorsements.detect([raw]),
    "envelope": EvidenceEnvelope.parse,
    "event-log": EventLog.parse,
    "google-endorsement": LaunchEndorsement.parse,
    "ima": parse_ima_list,
    "intel-json": parse_intel_json,
    "jwks": parse_jwks,
    "nitro": NitroDocument.parse,
    "nvidia": parse_devices,
    "nvidia-rim": Rim.parse,
    "nvidia-spdm": SpdmReport.parse,
    "ocsp": OcspAnswer.parse,
    "pck-chain": parse_pck_chain,
    "pem": pem_blocks,
    "sgx": SgxQuote.parse,
    "snp": ExtendedReport.parse,
    "software": SoftwareQuote.parse,
    "systemd-log": parse_systemd_log,
    "tdx": TdxQuote.parse,
    "token": CloudToken.parse,
    "tpm": TpmQuote.parse,
    "tpm-attest": TpmsAttest.parse,
    "tpm-public": TpmtPublic.parse,
    "tpm-signature": TpmtSignature.parse,
    "uefi-signatures": parse_signature_lists,
    "uefi-variable": VariableData.parse,
    "xml": parse_xml,
}
TARGETS: Mapping[str, Target] = {
    **{name: Target(act=parser) for name, parser in PARSERS.items()},
    "boot": Target(act=_boot, allowed=SealwrightError),
    "pack": Target(act=Pack.parse, allowed=SealwrightError),  # it compares digests, too
    "needs": Target(act=needs_of, allowed=SealwrightError),
    "verify": Target(act=_check, allowed=SealwrightError, seed=detect),
    "verify-endorsed": Target(act=_check_endorsed),
}


def fakes() -> list[bytes]:
    """Return evidence and endorsements of every platform, and the parts within them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all this is made up
        return list(dict.fromkeys(_made()))


def _made() -> Iterator[bytes]:
    for platform in (SgxTestPlatform(NOW), TdxTestPlatform(NOW), SnpTestPlatform(NOW), TpmTestPlatform(NOW)):
        raw, blobs = platform.evidence(DATA)
        yield from (raw, *blobs)
    nvidia, azure, tpm = FakeNvidia(NOW), AzureTestPlatform(NOW), TpmTestPlatform(NOW)
    device, quote = nvidia.device(), tpm.quote(DATA)
    yield from (device.document(DATA[:32]), device.report(DATA[:32]), *nvidia.endorsements(device))
    yield from (one.certificate.public_bytes(Encoding.DER) for one in device.entity.entities())
    yield TdxTestPlatform(NOW).evidence(DATA, version=5, body=4)[0]
    for vm in (azure, AzureTdxTestPlatform(NOW)):
        evidence, blobs = vm.evidence(DATA)
        yield from (evidence.encode(), evidence.hcl.encode(), evidence.hcl.runtime_data, *blobs)
    yield from (quote.attest.signed, quote.signature.encode(), tpm.public.encode())
    yield from (tpm.envelope(DATA).encode(), SnpTestPlatform(NOW).table().encode())
    software = SoftwareTestPlatform(NOW).quote(DATA, (bytes(32), bytes(32)))
    yield from (software.encode(), software.evidence, *software.endorsements)
    yield NitroTestPlatform(NOW).document(DATA)
    yield FakeGoogle(NOW).endorse(sev_snp={1: bytes(48)}, tdx=[(16, False, bytes(48))])
    token = TokenTestService("maa", NOW)
    yield from (token.token("a nonce"), token.jwks)
    piece = Piece(need=Need.named("amd-chain", "vcek:Milan"), blobs=(b"blob",), fetched=NOW)
    yield Pack.of([piece], created=NOW, keys=[Ed25519PrivateKey.generate()]).encode()
    yield from _TEXTS
    guid = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
    yield guid + (28 + 48).to_bytes(4, "little") + bytes(4) + (48).to_bytes(4, "little") + bytes(48)
    for log in (BootLogBuilder(), BootLogBuilder("rtmr", ("sha384",))):
        log.boot(sections=[(".linux", b"a kernel"), (".cmdline", b"quiet")])
        yield log.log().encode()


def real() -> Iterator[bytes]:
    """Yield the real evidence that is here, with what is spelled or wrapped in it."""
    for folder in _folders():
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.is_file() and path.suffix != ".tsv":
                raw = path.read_bytes()[:MAX_SEED]
                yield raw
                yield from _within(raw)


def _within(raw: bytes) -> Iterator[bytes]:
    with suppress(SealwrightError):
        held = Endorsements.detect([raw])
        yield from (one.public_bytes(Encoding.DER) for one in held.certificates)
        yield from (crl.public_bytes(Encoding.DER) for crl in held.crls)
        yield from held.intel_json
    with suppress(ValueError):
        yield base64.b64decode(raw, validate=True)
    with suppress(ValueError):
        yield bytes.fromhex(raw.decode("ascii", errors="replace"))


def seeds(target: Target, pool: Sequence[bytes], most: int = 24) -> list[bytes]:
    """Return what of `pool` the target accepts, spread over all of it; some of the rest where it accepts none."""
    good = [raw for raw in pool if accepts(target, raw)] or list(pool[:8])
    return good[:: max(1, len(good) // most)]


def accepts(target: Target, raw: bytes) -> bool:
    """Say whether a target takes bytes as they are."""
    with suppress(target.allowed):
        (target.seed or target.act)(raw)
        return True
    return False
