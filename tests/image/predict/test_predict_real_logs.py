"""What firmware of real machines measured in general, held against the same rules that predict a guest of ours."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.vector_files import vector

from sealwright.evidence.eventlog import Event, EventLog
from sealwright.evidence.uefi import VariableData
from sealwright.image.predict.events import Algorithm
from sealwright.image.predict.pcr import CALLING, SEPARATOR
from sealwright.image.predict.secureboot import SecureBoot, variable_events
from sealwright.verify.measured import (
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_GPT_EVENT,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    hashed,
)

TPM = "tpm/go-tpm-tools/test__eventlogs__{}.bin"
PCR = [
    TPM.format(name)
    for name in (
        "ubuntu-2404-amd-sevsnp",
        "cos-101-amd-sev",
        "rhel8-uefi",
        "ubuntu-2104-no-secure-boot",
        "glinux-alex",
    )
]
RTMR = [
    "tpm/go-eventlog-ccel/cos-113-intel-tdx.bin",
    "tdx/trustee-ccel/eventlog__test_data__CCEL_data_gcp",
    "tdx/trustee-ccel/eventlog__test_data__CCEL_data_grub_gke",
]


def load(name: str) -> tuple[EventLog, Algorithm]:
    log = EventLog.parse(vector(name))
    return log, "sha256" if "sha256" in log.banks else "sha384"


def state(events: Sequence[Event]) -> SecureBoot:
    """Return the state whose variables these are."""
    found = [VariableData.parse(event.data).variable_data for event in events]
    secure, pk, kek, db, dbx = found
    return SecureBoot(enabled=secure == b"\x01", built_in=bool(secure), pk=pk, kek=kek, db=db, dbx=dbx)


@pytest.mark.parametrize("name", [*PCR, *RTMR])
def test_variables_are_measured_in_this_order_and_form(name: str) -> None:
    log, algorithm = load(name)
    index = 7 if name in PCR else 1
    events = [event for event in log.events if event.index == index]
    first = next(at for at, event in enumerate(events) if event.type == EV_EFI_VARIABLE_DRIVER_CONFIG)
    logged = events[first : first + 6]
    wanted = variable_events("pcr7", state(logged[:5]), algorithm)
    assert [event.digest(algorithm) for event in logged] == [event.digest for event in wanted]


@pytest.mark.parametrize("name", [*PCR[:2], *RTMR])
def test_before_the_first_image_of_a_disk_comes_what_is_predicted(name: str) -> None:
    """Calling, separator; in RTMR1, which holds PCR 5 too, the partition table."""
    log, algorithm = load(name)
    index = 4 if name in PCR else 2
    events = [event for event in log.events if event.index == index]
    at = next(at for at, event in enumerate(events) if event.type == EV_EFI_BOOT_SERVICES_APPLICATION)
    before = [event.digest(algorithm) for event in events[:at] if event.type != EV_EFI_GPT_EVENT]
    assert before == [hashed(algorithm, text) for text in (CALLING, SEPARATOR)]
    tables = [place for place, event in enumerate(events) if event.type == EV_EFI_GPT_EVENT]
    assert tables == ([] if name in PCR else [2])
