"""The body of a TDX quote, of TDX 1.0 and of TDX 1.5 without and with its extension: bytes in, frozen record out.

Layout: Intel TDX DCAP Quoting Library API, appendix A.3; of body type 4, `sgx_report2_body_v1_5_ex_t` in Intel's
`sgx_quote_5.h`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sealwright.evidence.dcap import Reader

TD_REPORT_1_0, TD_REPORT_1_5, TD_REPORT_1_5_EX = 2, 3, 4  # body types of version 5
SIZES = {TD_REPORT_1_0: 584, TD_REPORT_1_5: 648, TD_REPORT_1_5_EX: 885}  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdExtension:
    """What body type 4 adds: who asked within the TD, devices, and the service TDs that may move it.

    The fields of the start hold for TDs with attribute SERVTD_EXT; else they are zero.
    """

    vmid: int  # 0: the TD itself, or the first-level guest of a partitioned one
    td_id: bytes  # 32 bytes, random at each launch, kept when the TD is moved; zero: the host does not have it told
    dev_info: bytes  # 48 bytes: digest of what is known of devices that were given to the TD
    init_servtd_hash: bytes  # 48 bytes: of the service TD bound first
    init_servtd_attr: bytes  # 8 bytes
    init_cpu_svn: bytes  # 16 bytes: of the platform where the TD was made
    init_tee_tcb_svn: bytes  # 16 bytes
    init_tee_fmspc: (
        bytes  # 12 bytes; the platform's model in the TDX module's own form, not an FMSPC of PCK certificates
    )
    curr_servtd_hash: bytes  # 48 bytes: of the service TD bound now
    curr_servtd_attr: bytes  # 8 bytes

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read 237 bytes. Raises EvidenceFormatError `truncated-quote`."""
        return cls(
            vmid=reader.number(1),
            td_id=reader.take(32),
            dev_info=reader.take(48),
            init_servtd_hash=reader.take(48),
            init_servtd_attr=reader.take(8),
            init_cpu_svn=reader.take(16),
            init_tee_tcb_svn=reader.take(16),
            init_tee_fmspc=reader.take(12),
            curr_servtd_hash=reader.take(48),
            curr_servtd_attr=reader.take(8),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The body of a TDX quote; byte fields as sent."""

    tee_tcb_svn: bytes  # 16 bytes: of the TDX module and SEAM loader when the TD was made
    mr_seam: bytes  # 48 bytes
    mr_signer_seam: bytes  # 48 bytes
    seam_attributes: bytes  # 8 bytes
    td_attributes: bytes  # 8 bytes
    xfam: bytes  # 8 bytes
    mr_td: bytes  # 48 bytes
    mr_config_id: bytes  # 48 bytes
    mr_owner: bytes  # 48 bytes
    mr_owner_config: bytes  # 48 bytes
    rt_mr: tuple[bytes, bytes, bytes, bytes]  # 48 bytes each
    report_data: bytes  # 64 bytes
    tee_tcb_svn_2: bytes | None  # TDX 1.5, 16 bytes: of the module that runs now
    mr_servicetd: bytes | None  # TDX 1.5, 48 bytes: digest over all service TDs bound, such as a migration TD
    extension: TdExtension | None  # body type 4

    @classmethod
    def parse(cls, raw: bytes, *, kind: int) -> Self:
        """Parse a body of one of the types in SIZES. Raises EvidenceFormatError."""
        reader = Reader(raw)
        tee_tcb_svn = reader.take(16)
        mr_seam, mr_signer_seam = reader.take(48), reader.take(48)
        seam_attributes, td_attributes, xfam = reader.take(8), reader.take(8), reader.take(8)
        mr_td, mr_config_id, mr_owner, mr_owner_config = (reader.take(48) for _ in range(4))
        rt_mr = (reader.take(48), reader.take(48), reader.take(48), reader.take(48))
        report_data = reader.take(64)
        later = kind != TD_REPORT_1_0
        tee_tcb_svn_2, mr_servicetd = (reader.take(16), reader.take(48)) if later else (None, None)
        extension = TdExtension.read(reader) if kind == TD_REPORT_1_5_EX else None
        reader.end("the TD report")
        return cls(
            tee_tcb_svn=tee_tcb_svn,
            mr_seam=mr_seam,
            mr_signer_seam=mr_signer_seam,
            seam_attributes=seam_attributes,
            td_attributes=td_attributes,
            xfam=xfam,
            mr_td=mr_td,
            mr_config_id=mr_config_id,
            mr_owner=mr_owner,
            mr_owner_config=mr_owner_config,
            rt_mr=rt_mr,
            report_data=report_data,
            tee_tcb_svn_2=tee_tcb_svn_2,
            mr_servicetd=mr_servicetd,
            extension=extension,
        )

    @property
    def service_tds(self) -> tuple[bytes, ...]:
        """Digests (48 bytes) that name service TDs bound now or at the start; none: nobody can move the TD yet."""
        said = self.extension
        found = (
            [self.mr_servicetd]
            if said is None
            else [self.mr_servicetd, said.init_servtd_hash, said.curr_servtd_hash]
        )
        return tuple(dict.fromkeys(one for one in found if one is not None and any(one)))
