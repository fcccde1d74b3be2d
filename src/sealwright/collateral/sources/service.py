"""The collateral service of a broker, asked in place of the vendors."""

from __future__ import annotations

from sealwright.collateral.need import Need
from sealwright.collateral.record import MAX_ANSWER, Served
from sealwright.collateral.sources.examine import other
from sealwright.collateral.sources.request import Request
from sealwright.errors import EvidenceFormatError

PATH = "/sealwright/v1/collateral"


def request(need: Need) -> Request:
    """Return what to ask for `need`."""
    return Request(host="service", path=f"{PATH}/{need.kind}/{need.key}", lane="service", limit=MAX_ANSWER)


def read(need: Need, body: bytes) -> Served:
    """Return the answer, about `need`. Raises EvidenceFormatError."""
    served = Served.parse(body, limit=MAX_ANSWER, error=EvidenceFormatError)
    if served.need() != need:
        raise other("the service answered about something else")
    return served
