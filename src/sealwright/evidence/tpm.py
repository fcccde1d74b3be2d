"""Quotes of a TPM 2.0: TPMS_ATTEST of type quote, and our document that carries one with the PCRs it covers.

No signature check, clock or network here; see `sealwright.verify.tpm`. Spec: docs/spec/tpm.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from sealwright.crypto.document import Bytes, Document
from sealwright.crypto.encoding import hex_decode
from sealwright.errors import EvidenceFormatError, FormatError
from sealwright.evidence.tpmkey import TpmtPublic, TpmtSignature
from sealwright.evidence.tpmwire import (
    DIGEST_SIZE,
    PCRS,
    Bank,
    PcrSelection,
    Reader,
    encode_selections,
    malformed,
    read_selections,
    sized,
    u16,
    u32,
)

TPM_GENERATED = 0xFF544347  # no TPM signs this with a restricted key over bytes that came from outside
ATTEST_QUOTE = 0x8018
MAX_QUOTE = 32 * 1024  # bytes of our document
MAX_EXTRA_DATA = 64  # bytes; report data has no more
_MAX_CLOCK = 1 << 53  # milliseconds

Pcrs = Mapping[Bank, Mapping[int, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmsAttest:
    """TPMS_ATTEST of type quote; members as the specification spells them."""

    qualifiedSigner: bytes
    extraData: bytes
    clock: int  # milliseconds that the TPM has been powered
    resetCount: int
    restartCount: int
    safe: bool  # false: the clock may have run backwards
    firmwareVersion: int
    pcrSelect: tuple[PcrSelection, ...]
    pcrDigest: bytes
    signed: bytes  # as received, what the signature covers

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a whole attest structure.

        Raises:
            EvidenceFormatError: `not-a-tpm-quote`: another magic or type; `malformed-tpm`,
                `unsupported-tpm-algorithm`.
        """
        reader = Reader(raw, "a TPM attest structure")
        if reader.integer(4) != TPM_GENERATED or reader.integer(2) != ATTEST_QUOTE:
            malformed("not a TPM quote: another magic or type", code="not-a-tpm-quote")
        signer, extra = _read_name(reader), reader.sized(MAX_EXTRA_DATA)
        clock, resets, restarts, safe = (reader.integer(size) for size in (8, 4, 4, 1))
        if safe > 1 or clock >= _MAX_CLOCK:
            malformed("a TPM clock is out of its range")
        firmware, selections, digest = reader.integer(8), read_selections(reader), reader.sized(64)
        reader.end()
        return cls(
            qualifiedSigner=signer,
            extraData=extra,
            clock=clock,
            resetCount=resets,
            restartCount=restarts,
            safe=bool(safe),
            firmwareVersion=firmware,
            pcrSelect=selections,
            pcrDigest=digest,
            signed=raw,
        )

    def encode(self) -> bytes:
        """Return the wire form of the fields; `parse(x).encode() == x`."""
        clock = self.clock.to_bytes(8, "big") + u32(self.resetCount) + u32(self.restartCount)
        return (
            u32(TPM_GENERATED)
            + u16(ATTEST_QUOTE)
            + sized(self.qualifiedSigner)
            + sized(self.extraData)
            + clock
            + bytes([self.safe])
            + self.firmwareVersion.to_bytes(8, "big")
            + encode_selections(self.pcrSelect)
            + sized(self.pcrDigest)
        )

    def selected(self) -> dict[Bank, frozenset[int]]:
        """Return the PCRs that are covered, by bank; banks of which none is covered are left out."""
        return {one.bank: frozenset(one.pcrs) for one in self.pcrSelect if one.pcrs}


class _Quote(Document):
    format: Literal["sealwright-tpm-quote/v1"] = "sealwright-tpm-quote/v1"
    attest: Bytes  # TPMS_ATTEST
    signature: Bytes  # TPMT_SIGNATURE
    ak_public: Bytes | None = None  # TPMT_PUBLIC; left out where other evidence holds the key, as on Azure
    pcrs: Annotated[dict[Bank, dict[str, str]], Field(min_length=1, max_length=4)]

    @field_validator("pcrs")
    @classmethod
    def _check(cls, pcrs: dict[Bank, dict[str, str]]) -> dict[Bank, dict[str, str]]:
        for bank, values in pcrs.items():
            if not values or not values.keys() <= _NUMBERS.keys():
                raise ValueError(f"bank {bank} names no PCR, or one that there is not")
            for value in values.values():
                try:
                    hex_decode(value, length=DIGEST_SIZE[bank])
                except FormatError as exc:
                    raise ValueError(str(exc)) from None
        return pcrs


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuote:
    """A quote, the key that it says signed it, and the PCR values that it says it covers. Nothing is verified."""

    attest: TpmsAttest
    signature: TpmtSignature
    ak_public: TpmtPublic | None = None
    pcrs: Pcrs  # bank → number → value; none of them is empty

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse our document.

        Raises:
            EvidenceFormatError: it, or one of the TPM's structures in it, is not exactly in its format.
        """
        said = _Quote.parse(raw, limit=MAX_QUOTE, error=EvidenceFormatError)
        return cls(
            attest=TpmsAttest.parse(said.attest),
            signature=TpmtSignature.parse(said.signature),
            ak_public=None if said.ak_public is None else TpmtPublic.parse(said.ak_public),
            pcrs=MappingProxyType({bank: _numbered(values) for bank, values in said.pcrs.items()}),
        )

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        pcrs = {
            bank: {str(number): value.hex() for number, value in values.items()}
            for bank, values in self.pcrs.items()
        }
        return _Quote(
            attest=self.attest.signed,
            signature=self.signature.encode(),
            ak_public=None if self.ak_public is None else self.ak_public.encode(),
            pcrs=pcrs,
        ).encode()


_NUMBERS: Mapping[str, int] = MappingProxyType({str(number): number for number in range(PCRS)})


def _numbered(values: Mapping[str, str]) -> Mapping[int, bytes]:
    return MappingProxyType({_NUMBERS[number]: bytes.fromhex(value) for number, value in values.items()})


def _read_name(reader: Reader) -> bytes:
    name = reader.sized(66)
    inner = Reader(name, "a TPM name")
    inner.take(DIGEST_SIZE[inner.hash_name()])
    inner.end()
    return name
