"""MRCONFIGID out of the TDREPORT that the TDX module makes for this trust domain. uapi/linux/tdx-guest.h.

No signature is checked: nothing but the module itself stands between it and the guest's kernel.
"""

from __future__ import annotations

import fcntl
import os
import secrets

from sealwright.attester.base import check_ours, refused

DEVICE = "/dev/tdx_guest"
GET_REPORT0 = 0xC4405401  # _IOWR('T', 1, struct tdx_report_req)
REPORT_SIZE = 1024  # bytes
_REPORT_DATA = slice(128, 192)  # in REPORTMACSTRUCT, Intel TDX module ABI
_MRCONFIGID = slice(512 + 8 + 8 + 48, 512 + 8 + 8 + 48 + 48)  # in TDINFO, after ATTRIBUTES, XFAM and MRTD


def mrconfigid(device: str = DEVICE) -> bytes:
    """Return the 48 bytes that the host chose at launch. Raises OSError, and UnavailableError: `tee-refused`."""
    asked = secrets.token_bytes(64)
    buffer = bytearray(asked + bytes(REPORT_SIZE))
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, GET_REPORT0, buffer, True)
    finally:
        os.close(fd)
    return mrconfigid_of(bytes(buffer[64:]), asked)


def mrconfigid_of(report: bytes, report_data: bytes) -> bytes:
    """Return the MRCONFIGID of a TDREPORT (1024 bytes) that was made over `report_data`."""
    if len(report) != REPORT_SIZE:
        raise refused(f"a TDREPORT of {len(report)} bytes")
    check_ours(report[_REPORT_DATA], report_data)
    return report[_MRCONFIGID]
