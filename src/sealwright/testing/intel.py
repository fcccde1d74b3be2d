"""SGX and TDX without a machine: platforms of a fake Intel that quote whatever a test asks for.

Every member may be changed before `evidence` is called: the TCB info and identity (as the JSON values that get
signed), the platform's SVNs, the quoting enclave, the PKI's list of revoked certificates.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sealwright.crypto.encoding import rfc3339
from sealwright.testing.intel_pki import CaName, IntelTestPki, pem, sgx_extension, sign_raw
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.dcap import INTEL_QE_VENDOR

QE_MRSIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
Evidence = tuple[bytes, list[bytes]]  # a quote, and endorsements as Intel serves them


def enclave_report(
    *,
    report_data: bytes,
    mr_enclave: bytes = bytes(32),
    mr_signer: bytes = QE_MRSIGNER,
    attributes: bytes = bytes([0x05]) + bytes(7) + bytes([0x03]) + bytes(7),
    misc_select: int = 0,
    cpu_svn: bytes = bytes(16),
    isv_prod_id: int = 0,
    isv_svn: int = 0,
    config_id: bytes = bytes(64),
    config_svn: int = 0,
) -> bytes:
    """Return an SGX report body (384 bytes)."""
    return b"".join(
        (
            cpu_svn,
            struct.pack("<I", misc_select),
            bytes(28),
            attributes,
            mr_enclave,
            bytes(32),
            mr_signer,
            bytes(32),
            config_id,
            struct.pack("<HHH", isv_prod_id, isv_svn, config_svn),
            bytes(58),
            report_data,
        )
    )


class _TestPlatform:
    """What fake SGX and TDX platforms share."""

    tee: Literal["SGX", "TDX"]
    qe_id: Literal["QE", "TD_QE"]
    qe_prod_id: int

    def __init__(self, now: datetime, ca: CaName) -> None:
        warnings.warn(f"{type(self).__name__} signs anything", FakePlatformWarning, stacklevel=3)
        self.now = now
        self.pki = IntelTestPki(now, ca=ca)
        self.pck_key = ec.generate_private_key(ec.SECP256R1())
        self.attestation_key = ec.generate_private_key(ec.SECP256R1())
        self.ppid, self.fmspc, self.pce_id = bytes(range(16)), bytes.fromhex("b0c06f000000"), bytes(2)
        self.platform_instance_id = bytes(range(16, 32)) if ca == "Platform" else None
        self.tcb, self.pce_svn = bytes([5] * 8 + [0] * 8), 13
        self.qe: dict[str, Any] = {
            "isv_prod_id": self.qe_prod_id,
            "isv_svn": 8,
            "attributes": bytes([0x15]) + bytes(15),
        }
        self.qe_auth_data = bytes(range(32))
        self.certification: tuple[int, bytes] | None = None  # None: type 5 with the chain
        self.qe_vendor_id = INTEL_QE_VENDOR
        self.tcb_info = self._tcb_info()
        self.identity = self._identity()

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate (32 bytes), what a policy names under `roots`."""
        return self.pki.root_fingerprint

    def certificate(self) -> x509.Certificate:
        """Return a PCK certificate for the platform's key and SVNs."""
        extension = sgx_extension(
            ppid=self.ppid,
            tcb=self.tcb,
            pce_svn=self.pce_svn,
            pce_id=self.pce_id,
            fmspc=self.fmspc,
            platform_instance_id=self.platform_instance_id,
        )
        return self.pki.pck(self.pck_key, extension)

    def endorsements(self) -> list[bytes]:
        """Return TCB info, identity, chains and CRLs, as Intel serves them."""
        return [
            self.pki.sign_json("tcbInfo", self.tcb_info),
            self.pki.sign_json("enclaveIdentity", self.identity),
            pem(self.pki.signing, self.pki.root),
            *self.pki.crls(),
        ]

    def certified(self) -> bytes:
        """Return QE report, its signature, auth data and certification data, for the attestation key."""
        vouched = sha256(self._attestation_point() + self.qe_auth_data).digest() + bytes(32)
        report = enclave_report(**({"report_data": vouched} | self.qe))
        kind, data = self.certification or (5, pem(self.certificate(), self.pki.ca, self.pki.root) + b"\0")
        return b"".join(
            (
                report,
                sign_raw(self.pck_key, report),
                struct.pack("<H", len(self.qe_auth_data)) + self.qe_auth_data,
                struct.pack("<HI", kind, len(data)) + data,
            )
        )

    def _signed(self, signed: bytes, certification: bytes) -> bytes:
        data = sign_raw(self.attestation_key, signed) + self._attestation_point() + certification
        return signed + struct.pack("<I", len(data)) + data

    def _attestation_point(self) -> bytes:
        numbers = self.attestation_key.public_key().public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    def _dates(self) -> dict[str, Any]:
        return {
            "issueDate": rfc3339(self.now - timedelta(days=1)),
            "nextUpdate": rfc3339(self.now + timedelta(days=29)),
            "tcbEvaluationDataNumber": 20,
        }

    def level(
        self, svn: int, status: str, *, pce_svn: int = 13, advisories: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return a TCB level whose first 8 SGX components, and TDX components 0 and 2, are `svn`."""
        tcb: dict[str, Any] = {
            "sgxtcbcomponents": [{"svn": svn if number < 8 else 0} for number in range(16)],
            "pcesvn": pce_svn,
        }
        if self.tee == "TDX":
            tcb["tdxtcbcomponents"] = [{"svn": svn if number in (0, 2) else 0} for number in range(16)]
        return {
            "tcb": tcb,
            "tcbDate": rfc3339(self.now - timedelta(days=200)),
            "tcbStatus": status,
            "advisoryIDs": list(advisories),
        }

    def svn_level(self, isvsvn: int, status: str, advisories: Sequence[str] = ()) -> dict[str, Any]:
        """Return a level of a quoting enclave or TDX module."""
        date = rfc3339(self.now - timedelta(days=200))
        return {
            "tcb": {"isvsvn": isvsvn},
            "tcbDate": date,
            "tcbStatus": status,
            "advisoryIDs": list(advisories),
        }

    def _tcb_info(self) -> dict[str, Any]:
        return {
            "id": self.tee,
            "version": 3,
            **self._dates(),
            "fmspc": self.fmspc.hex(),
            "pceId": self.pce_id.hex(),
            "tcbType": 0,
            "tcbLevels": [
                self.level(5, "UpToDate"),
                self.level(3, "OutOfDate", advisories=["INTEL-SA-00001"]),
            ],
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "id": self.qe_id,
            "version": 2,
            **self._dates(),
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_MRSIGNER.hex().upper(),
            "isvprodid": self.qe_prod_id,
            "tcbLevels": [
                self.svn_level(8, "UpToDate"),
                self.svn_level(4, "OutOfDate", ["INTEL-SA-00002"]),
            ],
        }


class SgxTestPlatform(_TestPlatform):
    """A fake SGX platform of a fake Intel, at `now`."""

    tee, qe_id, qe_prod_id = "SGX", "QE", 1

    def __init__(self, now: datetime, *, ca: CaName = "Processor") -> None:
        super().__init__(now, ca)

    def evidence(
        self,
        report_data: bytes,
        *,
        mrenclave: bytes = bytes(32),
        mrsigner: bytes = bytes(32),
        **fields: Any,
    ) -> Evidence:
        """Return a quote, version 3, over `report_data` (64 bytes), and endorsements.

        Args:
            fields: those of `enclave_report` that differ.
        """
        header = struct.pack("<HHIHH", 3, 2, 0, 8, self.pce_svn) + self.qe_vendor_id + bytes(20)
        report = enclave_report(report_data=report_data, mr_enclave=mrenclave, mr_signer=mrsigner, **fields)
        return self._signed(header + report, self.certified()), self.endorsements()


class TdxTestPlatform(_TestPlatform):
    """A fake TDX platform of a fake Intel, at `now`."""

    tee, qe_id, qe_prod_id = "TDX", "TD_QE", 2

    def __init__(self, now: datetime, *, ca: CaName = "Platform") -> None:
        super().__init__(now, ca)
        module = {
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "FF" * 8,
        }
        levels = [self.svn_level(5, "UpToDate"), self.svn_level(3, "OutOfDate", ["INTEL-SA-00003"])]
        self.tcb_info["tdxModule"] = module
        self.tcb_info["tdxModuleIdentities"] = [{"id": "TDX_01", **module, "tcbLevels": levels}]

    def evidence(
        self,
        report_data: bytes,
        *,
        mrtd: bytes = bytes(48),
        mrconfigid: bytes = bytes(48),
        rtmrs: Sequence[bytes] = (bytes(48),) * 4,
        version: Literal[4, 5] = 4,
        body: Literal[2, 3, 4] | None = None,
        **fields: bytes,
    ) -> Evidence:
        """Return a quote over `report_data` (64 bytes), and endorsements.

        Args:
            body: of version 5: 2 for TDX 1.0, 3 for TDX 1.5 (default), 4 for TDX 1.5 with its extension.
            fields: other fields of `td_report` that differ.
        """
        kind = 2 if version == 4 else body or 3
        report = td_report(
            report_data=report_data, mr_td=mrtd, mr_config_id=mrconfigid, rt_mr=rtmrs, kind=kind, **fields
        )
        return self.quote(report, version=version, kind=kind), self.endorsements()

    def quote(self, report: bytes, *, version: Literal[4, 5], kind: int) -> bytes:
        """Return a quote over a body of type `kind`, whatever it says."""
        header = struct.pack("<HHII", version, 2, 0x81, 0) + self.qe_vendor_id + bytes(20)
        start = struct.pack("<HI", kind, len(report)) if version == 5 else b""
        inner = self.certified()
        return self._signed(header + start + report, struct.pack("<HI", 6, len(inner)) + inner)


def td_report(
    *,
    report_data: bytes,
    kind: int = 2,
    tee_tcb_svn: bytes = bytes([5, 1, 5]) + bytes(13),
    mr_seam: bytes = bytes(48),
    mr_signer_seam: bytes = bytes(48),
    seam_attributes: bytes = bytes(8),
    td_attributes: bytes = bytes([0, 0, 0, 0x10, 0, 0, 0, 0]),
    xfam: bytes = bytes.fromhex("e702060000000000"),
    mr_td: bytes = bytes(48),
    mr_config_id: bytes = bytes(48),
    mr_owner: bytes = bytes(48),
    mr_owner_config: bytes = bytes(48),
    rt_mr: Sequence[bytes] = (bytes(48),) * 4,
    tee_tcb_svn_2: bytes = bytes([5, 1, 5]) + bytes(13),
    mr_servicetd: bytes = bytes(48),
    extension: bytes = bytes(237),
) -> bytes:
    """Return a TD report body: 584 bytes of TDX 1.0 (`kind` 2), 648 of TDX 1.5 (3), or 885 with `extension` (4)."""
    first = (tee_tcb_svn, mr_seam, mr_signer_seam, seam_attributes, td_attributes, xfam, mr_td, mr_config_id)
    later = (tee_tcb_svn_2, mr_servicetd, extension)
    last = later[: {2: 0, 3: 2, 4: 3}[kind]]
    return b"".join((*first, mr_owner, mr_owner_config, *rt_mr, report_data, *last))


def td_extension(
    *,
    vmid: int = 0,
    td_id: bytes = bytes(32),
    dev_info: bytes = bytes(48),
    init_servtd_hash: bytes = bytes(48),
    init_servtd_attr: bytes = bytes(8),
    init_cpu_svn: bytes = bytes(16),
    init_tee_tcb_svn: bytes = bytes(16),
    init_tee_fmspc: bytes = bytes(12),
    curr_servtd_hash: bytes = bytes(48),
    curr_servtd_attr: bytes = bytes(8),
) -> bytes:
    """Return what body type 4 adds to a TD report: 237 bytes."""
    start = (init_servtd_hash, init_servtd_attr, init_cpu_svn, init_tee_tcb_svn, init_tee_fmspc)
    return b"".join((bytes([vmid]), td_id, dev_info, *start, curr_servtd_hash, curr_servtd_attr))
