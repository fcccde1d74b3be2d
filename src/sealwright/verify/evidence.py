"""From an envelope to verified evidence, whatever the platform: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.software import SoftwareEndorsement
from sealwright.errors import VerificationError
from sealwright.evidence.azure import AzureEvidence
from sealwright.evidence.envelope import DeviceEvidence, EvidenceEnvelope, PlatformType, VtpmEvidence
from sealwright.evidence.eventlog import EventLog
from sealwright.evidence.nitro import NitroDocument
from sealwright.evidence.nvgpu import GpuEvidence
from sealwright.evidence.runtimelog import parse_systemd_log
from sealwright.evidence.sgx import SgxQuote
from sealwright.evidence.snp_certs import ExtendedReport
from sealwright.evidence.software import SoftwareQuote
from sealwright.evidence.tdx import TdxQuote
from sealwright.evidence.tpm import TpmQuote
from sealwright.verify.azure import verify_azure
from sealwright.verify.boot import BootAccount, read_boot, with_boot
from sealwright.verify.context import Context
from sealwright.verify.eventlog import SYSTEM, verify_event_log
from sealwright.verify.nitro import verify_nitro
from sealwright.verify.nvgpu import VerifiedGpu
from sealwright.verify.nvgpu_devices import verify_devices
from sealwright.verify.sgx import verify_sgx
from sealwright.verify.snp import verify_snp
from sealwright.verify.software import verify_software
from sealwright.verify.tdx import verify_tdx
from sealwright.verify.tpm import verify_tpm
from sealwright.verify.verified import Fact, Verified

REPORT_DATA_BYTES = 64


class _Platform(NamedTuple):
    """How evidence of one platform is read and verified."""

    parse: Callable[[bytes], Any]
    verify: Callable[..., Verified]
    report_data: Callable[[Any], bytes]  # of what was parsed


def _verify_snp(extended: ExtendedReport, endorsements: Endorsements, **given: Any) -> Verified:
    table = [] if extended.table is None else extended.table.endorsements()
    verified: Verified = verify_snp(extended.report, endorsements + Endorsements.detect(table), **given)
    facts: dict[str, Fact] = {**verified.facts, "padding": extended.padding}
    return replace(verified, facts=facts)


_PLATFORMS: dict[PlatformType, _Platform] = {
    "snp": _Platform(ExtendedReport.parse, _verify_snp, lambda one: one.report.report_data),
    "tdx": _Platform(TdxQuote.parse, verify_tdx, lambda one: one.report.report_data),
    "sgx": _Platform(SgxQuote.parse, verify_sgx, lambda one: one.report.report_data),
    "nitro": _Platform(NitroDocument.parse, verify_nitro, lambda one: one.user_data or b""),
    "tpm": _Platform(TpmQuote.parse, verify_tpm, lambda one: _padded(one.attest.extraData)),
    "az-snp-vtpm": _Platform(
        AzureEvidence.parse, verify_azure, lambda one: _padded(one.quote.attest.extraData)
    ),
    "az-tdx-vtpm": _Platform(
        AzureEvidence.parse, verify_azure, lambda one: _padded(one.quote.attest.extraData)
    ),
}


def verify_evidence(
    envelope: EvidenceEnvelope,
    *,
    expected_report_data: bytes,
    context: Context,
    collateral: Endorsements,
    bound: Collection[str] = (),
) -> Verified:
    """Return the envelope's own evidence, proved genuine; its vTPM and devices are verified apart.

    With an event log, that log replays to the signed registers, and what booted is among the facts and conditions.

    Args:
        expected_report_data: 64 bytes, computed by the caller for its own purpose and nonce.
        collateral: what the caller has beside the envelope's own endorsements.
        bound: registers that the policy speaks of. The config's, and those that an operating system extends, need
            not replay then; of the latter one that is not named, and does not, is in condition `unlogged-extends`.

    Raises:
        EvidenceFormatError, VerificationError, RevokedError, CollateralError.
    """
    if envelope.type == "software":
        return verify_software(
            SoftwareQuote.parse(envelope.evidence),
            SoftwareEndorsement.parse(envelope.endorsements),
            expected_report_data=expected_report_data,
            at=context.at,
        )
    platform = _PLATFORMS[envelope.type]
    verified = platform.verify(
        platform.parse(envelope.evidence),
        sorted_endorsements(envelope.endorsements, context) + collateral,
        expected_report_data=expected_report_data,
        context=context,
    )
    if verified.platform != envelope.type:
        raise VerificationError(
            f"evidence of {verified.platform} in an envelope of {envelope.type}",
            code="type-mismatch",
            stage="evidence",
        )
    return _booted(verified, envelope, bound)


def verify_vtpm(
    vtpm: VtpmEvidence,
    *,
    expected_report_data: bytes,
    context: Context,
    collateral: Endorsements,
    bound: Collection[str] = (),
) -> Verified:
    """Return the quote of a provider's vTPM beside other evidence, proved genuine, over the same report data.

    Args, Raises: as `verify_evidence`.
    """
    verified = verify_tpm(
        TpmQuote.parse(vtpm.evidence),
        sorted_endorsements(vtpm.endorsements, context) + collateral,
        expected_report_data=expected_report_data,
        context=context,
    )
    return _booted(verified, vtpm, bound)


def verify_envelope_devices(
    devices: Sequence[DeviceEvidence], *, expected_nonce: bytes, context: Context, collateral: Endorsements
) -> tuple[VerifiedGpu, ...]:
    """Return the devices, proved genuine, each another one. See `sealwright.verify.nvgpu_devices`."""
    return verify_devices(devices, collateral, expected_nonce=expected_nonce, context=context)


def unverified_report_data(envelope: EvidenceEnvelope) -> bytes:
    """Return what the evidence says it was made for, to judge all but its freshness.

    Raises:
        EvidenceFormatError: the evidence is not in its format.
    """
    if envelope.type == "software":
        return SoftwareQuote.parse(envelope.evidence).unverified_body.report_data
    platform = _PLATFORMS[envelope.type]
    return platform.report_data(platform.parse(envelope.evidence))


def unverified_device_nonce(devices: Sequence[DeviceEvidence]) -> bytes:
    """Return the nonce (32 bytes) that the first device answers; empty without devices.

    Raises:
        EvidenceFormatError: the evidence is not in its format.
    """
    return GpuEvidence.parse(devices[0].evidence).report.request_nonce if devices else b""


def sorted_endorsements(blobs: Sequence[bytes], context: Context) -> Endorsements:
    """Return endorsements sorted by content, each parsed once where the context remembers.

    Raises:
        EvidenceFormatError: as `Endorsements.detect`.
    """
    found = Endorsements()
    for blob in blobs:
        found += context.parse(_sorted, blob)
    return found


def read_event_log(
    verified: Verified, carrier: EvidenceEnvelope | VtpmEvidence, bound: Collection[str] = ()
) -> BootAccount | None:
    """Return what booted, from the logs in `carrier` that replay to the registers that `verified` signs; None: no log.

    Raises:
        EvidenceFormatError, VerificationError: see `verify_event_log`; `bad-register`: the runtime log tells of one
            that no operating system extends.
    """
    if carrier.event_log is None:
        return None
    runtime = parse_systemd_log(carrier.runtime_log or b"")
    for event in runtime:
        if event.register not in SYSTEM:
            raise VerificationError(
                f"the runtime log has an extend of {event.register}, where the firmware's log alone counts",
                code="bad-register",
                stage="event-log",
            )
    log = EventLog.parse(carrier.event_log)
    return read_boot(verify_event_log(log, verified, runtime=runtime, unlogged=SYSTEM, bound=bound))


def _booted(verified: Verified, carrier: EvidenceEnvelope | VtpmEvidence, bound: Collection[str]) -> Verified:
    account = read_event_log(verified, carrier, bound)
    return verified if account is None else with_boot(verified, account)


def _sorted(blob: bytes) -> Endorsements:
    return Endorsements.detect([blob])


def _padded(report_data: bytes) -> bytes:
    return report_data.ljust(REPORT_DATA_BYTES, b"\0")
