"""What can be needed: kinds of collateral, and keys that name one piece each.

A need is plain text on purpose: it names a file of the cache, an entry of a pack, a route of the service and a
request to a vendor, and each of them is derived from it alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Self, get_args

from sealwright.errors import MessageFormatError

Kind = Literal[
    "amd-vcek",
    "amd-chain",
    "amd-crl",
    "azure-thim",
    "intel-tcb-info",
    "intel-qe-identity",
    "intel-pck-crl",
    "intel-root-crl",
    "intel-tcb-numbers",
    "nvidia-rim",
    "nvidia-ocsp",
    "google-endorsement",
    "google-root",
]
Source = Literal["amd-kds", "azure-imds", "intel-pcs", "nvidia-rim", "nvidia-ocsp", "google"]

_DAY = timedelta(days=1)
PRODUCTS = frozenset({"Milan", "Genoa", "Turin"})  # of AMD; others have names of this form
_PRODUCT = r"[A-Z][A-Za-z0-9]{1,15}"
_SPL = r"(?:0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_UPDATE = r"(?::(?:early|[1-9][0-9]{0,5}))?"  # standard, early, or a tcbEvaluationDataNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class KindFacts:
    """What holds for all collateral of one kind."""

    source: Source
    lane: str  # requests that share a rate limit
    key: re.Pattern[str]
    max_age: timedelta | None  # asked for again when it was fetched so long ago; None: it never changes
    in_bag: bool = True  # `Endorsements.detect` reads it
    kept: bool = True  # in the cache; else it is about the machine that asks, at that moment
    finite: bool = False  # few keys; see `Need.listed`


def _facts(source: Source, key: str, max_age: timedelta | None, **more: bool | str) -> KindFacts:
    lane = more.pop("lane", source)
    return KindFacts(source=source, lane=str(lane), key=re.compile(key), max_age=max_age, **more)  # type: ignore[arg-type]


KINDS: Mapping[Kind, KindFacts] = {
    # {product}:{hwID}:{blSPL}:{teeSPL}:{snpSPL}:{ucodeSPL}[:{fmcSPL}]
    "amd-vcek": _facts(
        "amd-kds",
        rf"{_PRODUCT}:(?:[0-9a-f]{{128}}:{_SPL}(?::{_SPL}){{3}}|[0-9a-f]{{16}}:{_SPL}(?::{_SPL}){{4}})",
        None,
        lane="amd-vcek",
    ),
    "amd-chain": _facts("amd-kds", rf"(?:vcek|vlek):{_PRODUCT}", 30 * _DAY, finite=True),
    "amd-crl": _facts("amd-kds", rf"(?:vcek|vlek):{_PRODUCT}", _DAY, finite=True),
    "azure-thim": _facts("azure-imds", r"this-vm", None, kept=False),
    "intel-tcb-info": _facts("intel-pcs", rf"(?:sgx|tdx):[0-9a-f]{{12}}{_UPDATE}", _DAY),
    "intel-qe-identity": _facts("intel-pcs", rf"(?:sgx|tdx){_UPDATE}", _DAY),
    "intel-pck-crl": _facts("intel-pcs", r"processor|platform", _DAY, finite=True),
    "intel-root-crl": _facts("intel-pcs", r"root", _DAY, finite=True),
    "intel-tcb-numbers": _facts("intel-pcs", r"sgx|tdx", _DAY, in_bag=False, finite=True),
    "nvidia-rim": _facts("nvidia-rim", r"NV_[A-Z]{2,8}_[A-Za-z0-9._-]{1,96}", 30 * _DAY),
    # {SHA-384 of the issuer's name}:{SHA-384 of the issuer's key}:{serial number}
    "nvidia-ocsp": _facts("nvidia-ocsp", r"[0-9a-f]{96}:[0-9a-f]{96}:[1-9a-f][0-9a-f]{0,39}", _DAY / 2),
    "google-endorsement": _facts("google", r"(?:sevsnp|tdx):[0-9a-f]{96}", 30 * _DAY, in_bag=False),
    "google-root": _facts("google", r"1", 30 * _DAY, finite=True),
}


@dataclass(frozen=True, slots=True, order=True)
class Need:
    """One piece of collateral, by name."""

    kind: Kind
    key: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not KINDS[self.kind].key.fullmatch(self.key):
            raise ValueError("not a kind of collateral, or not a key of that kind")

    @classmethod
    def named(cls, kind: str, key: str) -> Self:
        """Return the need that was named from outside.

        Raises:
            MessageFormatError: `unknown-collateral`.
        """
        for known in get_args(Kind):
            if kind == known and KINDS[known].key.fullmatch(key):
                return cls(known, key)
        raise MessageFormatError(
            f"no collateral is called {kind[:32]!r} {key[:300]!r}; see docs/spec/collateral-pack.md",
            code="unknown-collateral",
        )

    @property
    def facts(self) -> KindFacts:
        """What holds for its kind."""
        return KINDS[self.kind]

    @property
    def source(self) -> Source:
        """Whom to ask."""
        return self.facts.source

    @property
    def parts(self) -> list[str]:
        """The key's parts."""
        return self.key.split(":")

    @property
    def listed(self) -> bool:
        """Whether it is one of a few names, so that whoever asks may have it fetched."""
        return self.facts.finite and (self.source != "amd-kds" or self.parts[-1] in PRODUCTS)

    def __str__(self) -> str:
        return f"{self.kind} {self.key if len(self.key) <= 48 else self.key[:45] + '…'}"
