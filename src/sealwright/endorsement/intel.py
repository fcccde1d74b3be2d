"""Intel's signed collateral: TCB info (version 2 for SGX, 3 for SGX and TDX) and identities of quoting enclaves.

The signature covers the bytes of one member as they were served; they are kept as they are. Formats: Intel PCS API
versions 3 and 4. No I/O and no clock; choosing takes the time as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, TypeVar

from sealwright.endorsement.intel_json import Members, loads, malformed, top_members

Tee = Literal["SGX", "TDX"]
IdentityId = Literal["QE", "TD_QE", "QVE"]
UP_TO_DATE = "UpToDate"


@dataclass(frozen=True, slots=True, kw_only=True)
class SvnLevel:
    """A level of a quoting enclave or TDX module: from which ISV SVN on it has which status."""

    isvsvn: int
    tcb_status: str
    tcb_date: datetime
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbLevel:
    """A level of a platform: what it takes at least, and the status it has then."""

    sgx: bytes  # 16 component SVNs
    pce_svn: int
    tdx: bytes  # 16 component SVNs; empty for SGX
    tcb_status: str
    tcb_date: datetime
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxModule:
    """The TDX module that a TCB info is about; `levels` is empty for the one without a version."""

    id: str  # "TDX_01"; empty: `tdxModule`
    mrsigner: bytes  # 48 bytes
    attributes: bytes  # 8 bytes
    attributes_mask: bytes  # 8 bytes
    levels: tuple[SvnLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signed:
    version: int
    issue_date: datetime
    next_update: datetime
    tcb_evaluation_data_number: int
    signed: bytes  # the member's value, byte for byte as served
    digest: bytes  # SHA-256 of these bytes
    signature: bytes  # 64 bytes, r and s


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbInfo(_Signed):
    """What Intel says of all platforms of one FMSPC. Not verified yet."""

    id: Tee
    fmspc: bytes  # 6 bytes
    pce_id: bytes  # 2 bytes
    levels: tuple[TcbLevel, ...]  # highest first, in the order that Intel's own library matches them
    tdx_module: TdxModule | None
    tdx_module_identities: tuple[TdxModule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveIdentity(_Signed):
    """What Intel says of one of its enclaves. Not verified yet."""

    id: IdentityId
    miscselect: bytes  # 4 bytes, little-endian
    miscselect_mask: bytes
    attributes: bytes  # 16 bytes
    attributes_mask: bytes
    mrsigner: bytes  # 32 bytes
    isvprodid: int
    levels: tuple[SvnLevel, ...]  # as served


_S = TypeVar("_S", TcbInfo, EnclaveIdentity)


def parse_intel_json(raw: bytes) -> TcbInfo | EnclaveIdentity:
    """Return the TCB info or identity in `raw`, as Intel serves it.

    Raises:
        EvidenceFormatError: `malformed-intel-json`, or the code of strict JSON.
    """
    members = top_members(raw)
    body = next((name for name in ("tcbInfo", "enclaveIdentity") if name in members), None)
    if body is None or members.keys() != {body, "signature"}:
        raise malformed("not one of tcbInfo and enclaveIdentity beside a signature")
    signature = Members({"signature": loads(members["signature"])}).hex("signature", 64)
    said = Members(loads(members[body]))
    common = {
        "issue_date": said.date("issueDate"),
        "next_update": said.date("nextUpdate"),
        "tcb_evaluation_data_number": said.number("tcbEvaluationDataNumber"),
        "signed": members[body],
        "digest": sha256(members[body]).digest(),
        "signature": signature,
    }
    return _tcb_info(said, common) if body == "tcbInfo" else _identity(said, common)


def choose_tcb_info(
    infos: Iterable[TcbInfo], *, tee: Tee, fmspc: bytes, pce_id: bytes, at: datetime
) -> TcbInfo | None:
    """Return the TCB info for a platform: current at `at` if there is one, then with the highest evaluation number."""
    return _newest([one for one in infos if (one.id, one.fmspc, one.pce_id) == (tee, fmspc, pce_id)], at)


def choose_identity(
    identities: Iterable[EnclaveIdentity], *, identity: IdentityId, at: datetime
) -> EnclaveIdentity | None:
    """Return the identity of an enclave, chosen like a TCB info."""
    return _newest([one for one in identities if one.id == identity], at)


def _newest(found: Sequence[_S], at: datetime) -> _S | None:
    def rank(one: _S) -> tuple[bool, bool, int, datetime]:
        issued = one.issue_date <= at
        return issued and at <= one.next_update, issued, one.tcb_evaluation_data_number, one.issue_date

    return max(found, key=rank, default=None)


def _tcb_info(said: Members, common: dict[str, Any]) -> TcbInfo:
    version = said.number("version")
    if version not in (2, 3) or said.number("tcbType") != 0:
        raise malformed("TCB info of another version than 2 and 3, or of another type than 0")
    tee = said.text("id") if version == 3 else "SGX"
    if tee not in ("SGX", "TDX"):
        raise malformed("TCB info for another TEE than SGX and TDX")
    levels = [_level(one, version, tee) for one in said.objects("tcbLevels")]
    levels.sort(key=lambda level: (level.sgx, level.pce_svn, level.tdx), reverse=True)
    if not levels or len({(level.sgx, level.pce_svn, level.tdx) for level in levels}) != len(levels):
        raise malformed("no TCB levels, or one that comes twice")
    return TcbInfo(
        version=version,
        id="TDX" if tee == "TDX" else "SGX",
        fmspc=said.hex("fmspc", 6),
        pce_id=said.hex("pceId", 2),
        levels=tuple(levels),
        tdx_module=_module(said.object("tdxModule")) if tee == "TDX" else None,
        tdx_module_identities=tuple(
            _module(one)
            for one in (said.objects("tdxModuleIdentities") if "tdxModuleIdentities" in said else ())
        ),
        **common,
    )


def _level(said: Members, version: int, tee: str) -> TcbLevel:
    tcb = said.object("tcb")
    if version == 2:
        sgx = bytes(tcb.number(f"sgxtcbcomp{number:02}svn", 0xFF) for number in range(1, 17))
    else:
        sgx = tcb.components("sgxtcbcomponents")
    return TcbLevel(
        sgx=sgx,
        pce_svn=tcb.number("pcesvn", 0xFFFF),
        tdx=tcb.components("tdxtcbcomponents") if tee == "TDX" else b"",
        tcb_status=said.text("tcbStatus"),
        tcb_date=said.date("tcbDate"),
        advisory_ids=said.texts("advisoryIDs"),
    )


def _module(said: Members) -> TdxModule:
    named = "id" in said
    return TdxModule(
        id=said.text("id").upper() if named else "",
        mrsigner=said.hex("mrsigner", 48),
        attributes=said.hex("attributes", 8),
        attributes_mask=said.hex("attributesMask", 8),
        levels=_svn_levels(said) if named else (),
    )


def _identity(said: Members, common: dict[str, Any]) -> EnclaveIdentity:
    version, name = said.number("version"), said.text("id")
    if version != 2 or name not in ("QE", "TD_QE", "QVE"):
        raise malformed("an identity of another version than 2, or of an enclave that is not known")
    return EnclaveIdentity(
        version=version,
        id="QE" if name == "QE" else "TD_QE" if name == "TD_QE" else "QVE",
        miscselect=said.hex("miscselect", 4),
        miscselect_mask=said.hex("miscselectMask", 4),
        attributes=said.hex("attributes", 16),
        attributes_mask=said.hex("attributesMask", 16),
        mrsigner=said.hex("mrsigner", 32),
        isvprodid=said.number("isvprodid", 0xFFFF),
        levels=_svn_levels(said),
        **common,
    )


def _svn_levels(said: Members) -> tuple[SvnLevel, ...]:
    return tuple(
        SvnLevel(
            isvsvn=one.object("tcb").number("isvsvn", 0xFFFF),
            tcb_status=one.text("tcbStatus"),
            tcb_date=one.date("tcbDate"),
            advisory_ids=one.texts("advisoryIDs"),
        )
        for one in said.objects("tcbLevels")
    )
