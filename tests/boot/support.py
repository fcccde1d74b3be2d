"""What the tests of measured boot share."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.vector_files import vector

from sealwright.evidence.eventlog import Bank, EventLog
from sealwright.testing.eventlog import BootLogBuilder
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.eventlog import Layout
from sealwright.verify.verified import MADE_BY_VERIFY, Verified

TPM = "tpm/go-tpm-tools/test__eventlogs__{}.bin"
TDX = "tdx/trustee-ccel/eventlog__test_data__CCEL_{}"
KNOWN: dict[str, Any] = json.loads((Path(__file__).parent / "registers.json").read_text())


def signed(platform: str, registers: Mapping[str, bytes]) -> Verified:
    """Return what a verification would, for registers that a test says were signed."""
    return Verified(
        platform=platform,
        report_data=bytes(64),
        registers=registers,
        facts={},
        conditions=(),
        proofs=(),
        root=bytes(32),
        vendor_root=True,
        _made_by=MADE_BY_VERIFY,
    )


def hex_registers(values: Mapping[str, str]) -> dict[str, bytes]:
    return {name: bytes.fromhex(value) for name, value in values.items()}


def tdx_registers(quote: bytes) -> dict[str, bytes]:
    """Return RTMR0 to 3 of a TDX quote of version 4, whose body begins at byte 48."""
    return {f"rtmr{i}": quote[48 + 328 + 48 * i :][:48] for i in range(4)}


def load(name: str) -> EventLog:
    return EventLog.parse(vector(name))


def best(log: EventLog) -> Bank:
    return next(bank for bank in ("sha384", "sha256", "sm3", "sha1") if bank in log.banks)


def builder(layout: Layout = "pcr", **options: Any) -> BootLogBuilder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return BootLogBuilder(layout, **options)
