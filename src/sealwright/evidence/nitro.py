"""Attestation documents of AWS Nitro: bytes in, frozen record out (docs/spec/nitro.md).

Two kinds share one format: of Nitro Enclaves (NSM), whose registers are `pcrs`, and of NitroTPM, `nitrotpm_pcrs`.
Rules: attestation_process.md of aws-nitro-enclaves-nsm-api, section 3. No signature check, clock or network here;
see `sealwright.verify.nitro`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn, Self

from sealwright.crypto.cbor import CborValue, Tagged, decode, encode
from sealwright.errors import EvidenceFormatError

MAX_DOCUMENT = 20 * 1024  # bytes: the largest payload, and what COSE adds
MAX_PAYLOAD = 16 * 1024
MAX_CERTIFICATE = 1024
MAX_CABUNDLE = 8  # certificates; Nitro sends four
MAX_USER_DATA = 512  # of user_data and nonce
MAX_PUBLIC_KEY = 1024
SIGNATURE_SIZE = 96  # bytes: r and s of P-384
COSE_SIGN1 = 18  # tag
ES384 = {1: -35}  # the one protected header there may be

Kind = Literal["enclave", "nitrotpm"]
_REGISTERS: dict[str, Kind] = {"pcrs": "enclave", "nitrotpm_pcrs": "nitrotpm"}
_NEEDED = frozenset({"module_id", "digest", "timestamp", "certificate", "cabundle"})
_OPTIONAL = frozenset({"public_key", "user_data", "nonce"})  # absent, or null
_PCR_SIZES = frozenset({32, 48, 64})


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroDocument:
    """One document, parsed; nothing in it is believed before `verify_nitro` has returned."""

    kind: Kind
    tagged: bool  # COSE_Sign1 came with its tag 18
    module_id: str
    digest: Literal["SHA384"]
    timestamp: int  # milliseconds since 1970
    pcrs: Mapping[int, bytes]  # of either kind
    certificate: bytes  # DER, of the key that signed
    cabundle: tuple[bytes, ...]  # DER, root first, the issuer of `certificate` last
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    protected: bytes  # as received
    payload: bytes  # as received
    signature: bytes  # 96 bytes, r and s

    @property
    def signed(self) -> bytes:
        """What the signature covers: the Sig_structure (RFC 9052, section 4.4) over the bytes as received."""
        return encode(["Signature1", self.protected, b"", self.payload])

    @property
    def instance_id(self) -> str:
        """The EC2 instance that `module_id` names (`i-…`), or empty."""
        head, separator, _ = self.module_id.rpartition("-")
        return head if separator and head.startswith("i-") else ""

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a document.

        Raises:
            EvidenceFormatError: not CBOR, or a rule of its specification does not hold (`malformed-document`).
        """
        item = decode(raw, limit=MAX_DOCUMENT, tags=(COSE_SIGN1,), error=EvidenceFormatError)
        cose = item.value if isinstance(item, Tagged) else item
        if not isinstance(cose, list) or len(cose) != 4:
            _malformed("not a COSE_Sign1 array of four")
        protected, unprotected, payload, signature = cose
        _check_header(protected, unprotected)
        if not isinstance(signature, bytes) or len(signature) != SIGNATURE_SIZE:
            _malformed(f"the signature has {SIGNATURE_SIZE} bytes")
        payload = _bytes(payload, "payload", MAX_PAYLOAD, least=1)
        members = _members(payload)
        ((name, kind),) = ((name, kind) for name, kind in _REGISTERS.items() if name in members)
        document = cls(
            kind=kind,
            tagged=isinstance(item, Tagged),
            module_id=_module_id(members["module_id"]),
            digest=_digest(members["digest"]),
            timestamp=_timestamp(members["timestamp"]),
            pcrs=_pcrs(members[name]),
            certificate=_bytes(members["certificate"], "certificate", MAX_CERTIFICATE, least=1),
            cabundle=_cabundle(members["cabundle"]),
            public_key=_maybe(members, "public_key", MAX_PUBLIC_KEY, least=1),
            user_data=_maybe(members, "user_data", MAX_USER_DATA),
            nonce=_maybe(members, "nonce", MAX_USER_DATA),
            protected=protected,
            payload=payload,
            signature=signature,
        )
        # The payload may be written in any way, since it is signed as it is; what is around it, in one way only.
        if document.encode() != raw:
            _malformed("COSE_Sign1 is not in its deterministic form")
        return document

    def encode(self) -> bytes:
        """Return the bytes that `parse` accepts."""
        cose: list[CborValue] = [self.protected, {}, self.payload, self.signature]
        return encode(Tagged(COSE_SIGN1, cose) if self.tagged else cose)


def _check_header(protected: object, unprotected: object) -> None:
    raw = _bytes(protected, "protected header", 16, least=1)
    if decode(raw, error=EvidenceFormatError) != ES384 or unprotected != {}:
        _malformed("the protected header says ES384, and that alone; the unprotected one is empty")


def _members(payload: bytes) -> Mapping[object, object]:
    members = decode(payload, error=EvidenceFormatError)
    if not isinstance(members, dict):
        _malformed("the payload is a map")
    kinds = _REGISTERS.keys() & members.keys()
    if len(kinds) != 1:
        _malformed("either pcrs or nitrotpm_pcrs is there")
    missing, unknown = _NEEDED - members.keys(), members.keys() - _NEEDED - _OPTIONAL - kinds
    if missing or unknown:
        _malformed(f"{len(missing)} members are missing, {len(unknown)} are not known")
    return members


def _module_id(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
        _malformed("module_id is a text that is not empty")
    return value


def _digest(value: object) -> Literal["SHA384"]:
    if value != "SHA384":
        _malformed("digest is SHA384")
    return "SHA384"


def _timestamp(value: object) -> int:
    # A year past 9999 is not one that a clock has.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 253_402_300_800_000:
        _malformed("timestamp is a positive number of milliseconds")
    return value


def _pcrs(value: object) -> Mapping[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= 32:
        _malformed("there are 1 to 32 registers")
    for index, pcr in value.items():
        if not isinstance(index, int) or not 0 <= index < 32:
            _malformed("a register's index is 0 to 31")
        if not isinstance(pcr, bytes) or len(pcr) not in _PCR_SIZES:
            _malformed("a register has 32, 48 or 64 bytes")
    return MappingProxyType(dict(sorted(value.items())))


def _cabundle(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CABUNDLE:
        _malformed(f"cabundle has 1 to {MAX_CABUNDLE} certificates")
    return tuple(_bytes(one, "cabundle", MAX_CERTIFICATE, least=1) for one in value)


def _maybe(members: Mapping[object, object], name: str, most: int, *, least: int = 0) -> bytes | None:
    # The specification says that nothing is null; Nitro sends null for what was not asked for.
    value = members.get(name)
    return None if value is None else _bytes(value, name, most, least=least)


def _bytes(value: object, name: str, most: int, *, least: int = 0) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        _malformed(f"{name} has {least} to {most} bytes")
    return value


def _malformed(what: str) -> NoReturn:
    raise EvidenceFormatError(f"not an attestation document of Nitro: {what}", code="malformed-document")
