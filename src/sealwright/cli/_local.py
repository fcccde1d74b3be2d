"""`sealwright attest --local`: collect evidence of this machine into a file. It is not verified here."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

import typer

from sealwright.attester.azure import machine_report
from sealwright.attester.base import REPORT_DATA_SIZE, Attester, Closes, TakesNotes
from sealwright.attester.detect import detect
from sealwright.attester.local import MACHINE_TPM, AttesterSpec
from sealwright.cli._files import hex_option, read_input
from sealwright.cli._output import emit, note
from sealwright.crypto.encoding import hex_decode
from sealwright.errors import FormatError, SettingsError
from sealwright.evidence.envelope import EvidenceEnvelope

AUTO = "auto"


def chosen_data(report_data: str | None, nonce: str | None) -> bytes:
    """Return the 64 bytes to quote: as given, a nonce padded with zeros, or random. Never all zeros: that is no nonce."""
    chosen = _given_data(report_data, nonce)
    if not any(chosen):
        raise typer.BadParameter("zeros alone are no nonce", param_hint="--report-data or --nonce")
    return chosen


def _given_data(report_data: str | None, nonce: str | None) -> bytes:
    if report_data is not None and nonce is not None:
        raise typer.BadParameter("give either --report-data or --nonce")
    if nonce is None:
        given = hex_option(report_data, REPORT_DATA_SIZE, "--report-data")
        return secrets.token_bytes(REPORT_DATA_SIZE) if given is None else given
    try:
        raw = hex_decode(nonce)
    except FormatError as exc:
        raise typer.BadParameter(str(exc), param_hint="--nonce") from None
    if not 16 <= len(raw) <= REPORT_DATA_SIZE:
        raise typer.BadParameter(f"16 to {REPORT_DATA_SIZE} bytes are wanted", param_hint="--nonce")
    return raw.ljust(REPORT_DATA_SIZE, b"\0")


def opened(platform: str, endorsements: Sequence[Path], *, vtpm: bool) -> Attester:
    """Return the attester of this machine that options name.

    Args:
        platform: `PLATFORM[:ADDRESS]`, or `auto`: the strongest that the machine has.
        endorsements: files that go along with a TPM's quote.

    Raises:
        SealwrightError: there is none, or it cannot be opened.
    """
    if platform == AUTO:
        platform = detect(hcl=lambda: machine_report(MACHINE_TPM)).choose()
    blobs = [read_input(path) for path in endorsements]
    try:
        spec = AttesterSpec.named(platform, blobs, vtpm=vtpm, event_log=True)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--platform") from None
    return spec.open()


def collect(attester: Attester, report_data: bytes, out: Path, *, as_json: bool) -> None:
    """Collect evidence over `report_data` into the file `out`, and print what it is; the attester is closed.

    Raises:
        SealwrightError: there is none, or the interface refuses.
    """
    try:
        envelope = attester.quote(report_data)
    finally:
        if isinstance(attester, Closes):
            attester.close()
    if isinstance(attester, TakesNotes) and attester.note:
        note(attester.note)
    raw = envelope.encode()
    try:
        out.write_bytes(raw)
    except OSError as exc:
        raise SettingsError(f"cannot write {out}: {exc.strerror}", code="unwritable-file") from exc
    result = _result(envelope, report_data, raw, out)
    check = f"sealwright verify {out} --report-data {report_data.hex()}"
    emit(
        result, as_json=as_json, lines=[*(f"{name:<13} {value}" for name, value in result.items()), "", check]
    )


def _result(envelope: EvidenceEnvelope, report_data: bytes, raw: bytes, out: Path) -> dict[str, object]:
    return {
        "confidential": False,  # collected, not verified: it proves nothing yet
        "verified": False,
        "platform": envelope.type,
        "report_data": report_data.hex(),
        "file": str(out),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "evidence": len(envelope.evidence),  # bytes
        "event_log": None if envelope.event_log is None else len(envelope.event_log),  # bytes
        "endorsements": len(envelope.endorsements),
        "vtpm": envelope.vtpm is not None,
    }
