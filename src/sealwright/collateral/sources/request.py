"""Requests and answers as plain values, and the table of hosts. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args
from urllib.parse import unquote, urlencode, urlsplit

from pydantic import AfterValidator

from sealwright.crypto.document import Record
from sealwright.endorsement.x509 import pem_blocks
from sealwright.errors import EvidenceFormatError

MAX_HEADER = 32 * 1024  # bytes of a header that is kept


def _base(url: str) -> str:
    """Return the base URL of a host: https, or plain http to this machine or its link-local metadata service."""
    if not url:
        return url
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.query or parts.fragment or parts.username or not parts.hostname or not port_ok:
        raise ValueError("a URL of scheme, host, port and path only")
    if parts.scheme == "https" or (parts.scheme == "http" and _near(parts.hostname)):
        return url.rstrip("/")
    raise ValueError("https, or http to an address of this machine")


def _near(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local


Base = Annotated[str, AfterValidator(_base)]


class Hosts(Record):
    """Whom to ask. The defaults are the vendors' public services; mirrors and caches of one's own go here."""

    amd_kds: Base = "https://kdsintf.amd.com"
    azure_imds: Base = "http://169.254.169.254"
    intel_pcs: Base = "https://api.trustedservices.intel.com"
    intel_certificates: Base = "https://certificates.trustedservices.intel.com"
    intel_pccs: Base = ""  # a caching service; asked in place of the two above
    nvidia_rim: Base = "https://rim.attestation.nvidia.com"
    nvidia_ocsp: Base = "https://ocsp.ndis.nvidia.com"
    google_storage: Base = "https://storage.googleapis.com"
    google_pki: Base = "https://pki.goog"
    service: Base = ""  # a broker's collateral service; asked in place of all, but not of azure_imds


HostName = Literal[
    "amd_kds",
    "azure_imds",
    "intel_pcs",
    "intel_certificates",
    "intel_pccs",
    "nvidia_rim",
    "nvidia_ocsp",
    "google_storage",
    "google_pki",
    "service",
]
if set(get_args(HostName)) != set(Hosts.model_fields):
    raise RuntimeError("HostName names the members of Hosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to ask, of whom, and what may come back."""

    host: HostName
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None  # POST, if there is one
    lane: str  # requests that share a rate limit
    limit: int  # bytes of an answer
    keep: tuple[str, ...] = ()  # headers of the answer that carry something, lower case

    def url(self, hosts: Hosts) -> str:
        """Return the whole URL."""
        base: str = getattr(hosts, self.host)
        return base + self.path + (f"?{urlencode(self.query)}" if self.query else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back with status 200."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)  # those that were to be kept


def chain_header(answer: Answer, name: str) -> bytes:
    """Return the PEM chain of a header, where it stands URL-encoded.

    Raises:
        EvidenceFormatError: it is not there, too large, or not PEM.
    """
    text = answer.headers.get(name, "")
    if not text or len(text) > MAX_HEADER:
        raise EvidenceFormatError(f"no header {name}, or a very long one", code="malformed-pem")
    try:
        chain = unquote(text, errors="strict").encode("ascii")
    except ValueError:
        raise EvidenceFormatError(f"header {name} is not URL-encoded PEM", code="malformed-pem") from None
    pem_blocks(chain)
    return chain
