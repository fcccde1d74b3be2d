"""Attestations of Google's vTPM carry their log: it replays to the PCRs of each quote in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.boot.support import signed
from tests.vector_files import vector

from sealwright.errors import VerificationError
from sealwright.evidence.eventlog import EventLog
from sealwright.verify.boot import read_boot
from sealwright.verify.eventlog import verify_event_log

QUOTES, EVENT_LOG = 2, 3  # attest.Attestation
PCRS = 3  # tpm.Quote
VALUES = 2  # tpm.PCRs: a map
BANKS = {20: "sha1", 32: "sha256", 48: "sha384"}


def varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 0x80:
            return value, at


def fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message that has numbers and bytes alone."""
    at = 0
    while at < len(raw):
        tag, at = varint(raw, at)
        value, at = varint(raw, at)
        if tag & 7 == 2:
            yield tag >> 3, raw[at : at + value]
            at += value
        else:
            yield tag >> 3, value


def attestation(name: str) -> tuple[EventLog, list[dict[str, bytes]]]:
    message = list(fields(vector(f"tpm/go-tpm-tools/test__attestations__{name}.pb")))
    (log,) = (value for number, value in message if number == EVENT_LOG)
    quotes = []
    for number, quote in message:
        if number == QUOTES:
            (pcrs,) = (value for number, value in fields(quote) if number == PCRS)
            entries = (dict(fields(value)) for number, value in fields(pcrs) if number == VALUES)
            quotes.append({f"pcr{entry.get(1, 0)}": entry[2] for entry in entries})
    return EventLog.parse(log), quotes


@pytest.mark.parametrize("name", ["gce-cos-85-nonce9009", "gce-cos-85-no-nonce"])
def test_log_replays_to_the_quoted_pcrs(name: str) -> None:
    log, quotes = attestation(name)
    assert {len(pcrs["pcr0"]) for pcrs in quotes} == {20, 32, 48}
    for pcrs in quotes:
        verified = signed("tpm", pcrs)
        replayed = verify_event_log(log, verified)
        assert replayed.bank == BANKS[len(pcrs["pcr0"])]
        account = read_boot(replayed)
        assert account.firmware_versions == ("GCE Virtual Firmware v1",)
        assert account.handed_over
        with pytest.raises(VerificationError, match="pcr8") as caught:
            verify_event_log(log, signed("tpm", pcrs | {"pcr8": bytes(len(pcrs["pcr8"]))}))
        assert caught.value.code == "event-log-mismatch"
