"""Whom to ask for each need, what to ask, and how to read the answer. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sealwright.collateral.need import Need
from sealwright.collateral.record import MAX_BLOB, Dates, Piece
from sealwright.collateral.sources import amd, google, intel, nvidia, service
from sealwright.collateral.sources.examine import other
from sealwright.collateral.sources.request import Answer, Hosts, Request

__all__ = ["Answer", "Hosts", "Request", "examine", "read_answer", "request_for"]

_VENDORS = {
    "amd-kds": amd,
    "azure-imds": amd,
    "intel-pcs": intel,
    "nvidia-rim": nvidia,
    "nvidia-ocsp": nvidia,
    "google": google,
}


def request_for(need: Need, hosts: Hosts) -> Request:
    """Return what to ask for `need`, and of whom."""
    if hosts.service and need.facts.kept:
        return service.request(need)
    return intel.request(need, hosts) if need.source == "intel-pcs" else _request(need)


def read_answer(need: Need, request: Request, answer: Answer, *, now: datetime) -> Piece:
    """Return the piece in an answer: in its format, and about what was asked for.

    Raises:
        EvidenceFormatError: it is not.
    """
    if request.host == "service":
        served = service.read(need, answer.body)
        blobs, fetched = served.blobs, min(served.fetched, now)
    else:
        blobs, fetched = _VENDORS[need.source].unwrap(need, answer), now
    return piece_of(need, blobs, fetched=fetched)


def piece_of(need: Need, blobs: Sequence[bytes], *, fetched: datetime) -> Piece:
    """Return the piece of `blobs`, with the dates that stand in them. Raises EvidenceFormatError."""
    dates = examine(need, blobs)
    return Piece(
        need=need,
        blobs=tuple(blobs),
        fetched=fetched.replace(microsecond=0),
        issued=dates.issued,
        next_update=dates.next_update,
    )


def examine(need: Need, blobs: Sequence[bytes]) -> Dates:
    """Return the dates that `blobs` name, if they are about `need`.

    Raises:
        EvidenceFormatError: one is malformed, or about something else.
    """
    if any(not 0 < len(blob) <= MAX_BLOB for blob in blobs):
        raise other("an empty blob, or a very large one")
    dates: Dates = _VENDORS[need.source].examine(need, blobs)
    return dates


def _request(need: Need) -> Request:
    match need.source:
        case "nvidia-rim" | "nvidia-ocsp":
            return nvidia.request(need)
        case "google":
            return google.request(need)
    return amd.request(need)
