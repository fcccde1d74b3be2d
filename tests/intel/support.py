"""Real quotes and Intel's real collateral, out of files of many projects; see the manifest beside them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.vector_files import vector

from sealwright.endorsement.bag import Endorsements
from sealwright.evidence.sgx import SgxQuote
from sealwright.evidence.tdx import TdxQuote
from sealwright.verify.context import CollateralKind, Context, Tolerance, WorkCache
from sealwright.verify.sgx import VerifiedSgx, verify_sgx
from sealwright.verify.tdx import VerifiedTdx, verify_tdx

NOW = datetime(2026, 11, 1, tzinfo=UTC)  # for platforms made in a test
OE_HEADER = 16  # bytes before a quote in an Open Enclave report
_ARMOUR = re.compile(rb"-----BEGIN (QUOTE|REPORT)-----(.*?)-----END \1-----", re.DOTALL)
_PEM = re.compile(rb"-----BEGIN (CERTIFICATE|X509 CRL)-----[^-]*-----END \1-----")
_OE_PARTS = re.compile(
    rb'\{"(?:tcbInfo|enclaveIdentity)":.*?,"signature":"[0-9a-f]{128}"\}|3082[0-9A-F]{200,}'
)

# Collateral as Intel signed it, whatever project keeps it. Samples with a root of their own are apart.
COLLATERAL = (
    "sgx/dcap-qvl/sgx_quote_collateral.json",
    "sgx/fortanix-pcs/data__eval-num-select-best__00606a000000-17.tcb",
    "sgx/fortanix-pcs/data__eval-num-select-best__00606a000000-18.tcb",
    "sgx/fortanix-pcs/data__eval-num-select-best__00606a000000-19.tcb",
    "sgx/fortanix-pcs/data__eval-num-select-best__qe3_identity-17.id",
    "sgx/fortanix-pcs/data__eval-num-select-best__qe3_identity-18.id",
    "sgx/fortanix-pcs/data__eval-num-select-best__qe3_identity-19.id",
    "sgx/fortanix-pcs/data__qe-identity__qeid-sgx.json",
    "sgx/fortanix-pcs/data__qe-identity__qeid-tdx.json",
    "sgx/fortanix-pcs/data__tcb-json__tcb-sgx.json",
    "sgx/fortanix-pcs/data__tcb-json__tcb-tdx-2.json",
    "sgx/fortanix-pcs/data__tcb-json__tcb-tdx.json",
    "sgx/fortanix-pcs/tests__data__00906ea10000.tcb",
    "sgx/fortanix-pcs/tests__data__00906ed50000-19.tcb",
    "sgx/fortanix-pcs/tests__data__90806f000000-19.tcb",
    "sgx/fortanix-pcs/tests__data__IntelSGXRootCA.der",
    "sgx/fortanix-pcs/tests__data__platform.crl",
    "sgx/fortanix-pcs/tests__data__processor.crl",
    "sgx/fortanix-pcs/tests__data__qe3_identity.id",
    "sgx/trustee/enclaveIdentity.json",
    "sgx/trustee/tcbInfo.json",
    "tdx/attestation-rs/test_data__collateral__pck_crl_platform.der",
    "tdx/attestation-rs/test_data__collateral__tcb_info_50806f000000.json",
    "tdx/attestation-rs/test_data__collateral__tcb_info_90c06f000000.json",
    "tdx/attestation-rs/test_data__collateral__td_qe_identity.json",
    "tdx/automata-dcap-rs/identityv2_0.json",
    "tdx/automata-dcap-rs/identityv2_1.json",
    "tdx/automata-dcap-rs/intel_root_ca_crl.der",
    "tdx/automata-dcap-rs/pck_platform_crl.der",
    "tdx/automata-dcap-rs/qeidentityv2.json",
    "tdx/automata-dcap-rs/qeidentityv2_apiv4.json",
    "tdx/automata-dcap-rs/tcb_info_v3_tdx_0.json",
    "tdx/automata-dcap-rs/tcb_info_v3_tdx_1.json",
    "tdx/automata-dcap-rs/tcb_signing_cert.pem",
    "tdx/automata-dcap-rs/tcbinfov2.json",
    "tdx/automata-dcap-rs/tcbinfov3_00806f050000.json",
    "tdx/dcap-qvl/tdx_quote_collateral.json",
    "tdx/dcap-qvl/tdx_quote_outdated_collateral.json",
    "tdx/go-tdx-guest/testing__testdata__pckcrl",
    "tdx/go-tdx-guest/testing__testdata__rootcrl.der",
    "tdx/go-tdx-guest/testing__testdata__sample_qeIdentity_response",
    "tdx/go-tdx-guest/testing__testdata__sample_tcbInfo_response",
    "tdx/go-tdx-guest/testing__testdata__sample_tcbinfo_response_v5",
    "tdx/openenclave/host_verify__data__tdx_endorsement.bin",
)


def quote_bytes(name: str) -> bytes:
    """Return the quote in a file: raw, hex, base64 in an armour, or behind the header of an Open Enclave report."""
    raw = vector(name)
    if name.endswith(".hex"):
        return bytes.fromhex(raw.decode().strip().removeprefix("0x"))
    if armour := {match[1]: match[2] for match in _ARMOUR.finditer(raw)}:
        return base64.b64decode(armour.get(b"QUOTE", armour.get(b"REPORT", b"")))
    return raw[OE_HEADER:] if raw.startswith(b"\1\0\0\0\2\0\0\0") else raw


def parse_quote(raw: bytes) -> SgxQuote | TdxQuote:
    """Return the quote, by its version."""
    return SgxQuote.parse(raw) if raw[0] == 3 else TdxQuote.parse(raw)


def collateral(name: str) -> list[bytes]:
    """Return a file of collateral as Intel served what is in it."""
    raw = vector(name)
    if name.endswith("tdx_endorsement.bin"):
        found = [match[0] for match in (*_PEM.finditer(raw), *_OE_PARTS.finditer(raw))]
        return [bytes.fromhex(one.decode()) if one.startswith(b"3082") else one for one in found]
    if raw.lstrip()[:1] != b"{":
        return [raw]
    said: dict[str, Any] = json.loads(raw)
    found = (
        [match[0] for match in _PEM.finditer(raw.replace(b"\\n", b"\n"))] if "tcb_info" not in said else [raw]
    )
    for member, served in (("raw_tcb_info", "tcbInfo"), ("raw_enclave_identity", "enclaveIdentity")):
        if member in said:
            r, s = decode_dss_signature(bytes(said["signature"]))  # that project keeps it as DER
            found.append(f'{{"{served}":{said[member]},"signature":"{r:064x}{s:064x}"}}'.encode())
    return [*found, *([raw] if {"tcbInfo", "enclaveIdentity"} & said.keys() else [])]


def everything(at: datetime) -> Endorsements:
    """Return all collateral in COLLATERAL, without CRLs that were issued after `at`."""
    found = Endorsements.detect(dict.fromkeys(blob for name in COLLATERAL for blob in collateral(name)))
    return Endorsements(
        certificates=found.certificates,
        crls=tuple(crl for crl in found.crls if crl.last_update_utc <= at),
        intel_json=found.intel_json,
    )


def day(text: str) -> datetime:
    """Return noon UTC of a date."""
    return datetime.fromisoformat(f"{text}T12:00:00+00:00")


def missing(*kinds: CollateralKind) -> dict[CollateralKind, Tolerance]:
    """Return an outage policy that decides without these kinds."""
    return {kind: Tolerance(missing=True) for kind in kinds}


def stale(days: int, *kinds: CollateralKind) -> dict[CollateralKind, Tolerance]:
    """Return an outage policy that takes these kinds for so many days longer."""
    return {kind: Tolerance(stale=timedelta(days=days)) for kind in kinds}


def verify(
    raw: bytes,
    endorsements: Endorsements,
    at: datetime,
    outage: Mapping[CollateralKind, Tolerance] | None = None,
    **context: Any,
) -> VerifiedSgx | VerifiedTdx:
    """Verify a quote over whatever report data it has."""
    quote = parse_quote(raw)
    where = Context(at=at, outage=outage or {}, **context)
    if isinstance(quote, SgxQuote):
        return verify_sgx(quote, endorsements, expected_report_data=quote.report.report_data, context=where)
    return verify_tdx(quote, endorsements, expected_report_data=quote.report.report_data, context=where)


def caches() -> dict[str, Any]:
    """Return fresh caches for a Context."""
    return {"work": WorkCache()}


def quotes(rows: Iterator[dict[str, str]]) -> Iterator[str]:
    """Yield the manifest's files that are quotes of SGX or TDX."""
    for row in rows:
        if "quote v" in row["note"] or row["expected"] == "SYNTHETIC/NONSTANDARD":
            yield row["file"].removeprefix("open/")
