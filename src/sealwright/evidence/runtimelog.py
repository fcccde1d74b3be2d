"""Logs of what the operating system extended after boot: AAEL of Trustee, and systemd's. Nothing here is believed.

AAEL (text): a first line `INIT/<algorithm> <hex>`, then `<domain> <operation> <content>` a line; the hash of each line
without its end is extended. In a CCEL the same text stands in an EV_EVENT_TAG, which is hashed whole.
systemd (`/run/log/systemd/tpm2-measure.log`): records of the TCG Canonical Event Log as JSON, each after a record
separator (RFC 7464); the hash of `content.string` is extended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sealwright.crypto.canonical import parse_json
from sealwright.errors import EvidenceFormatError

AAEL_TAG = 0x4141454C  # "AAEL": taggedEventID in a CCEL
MAX_LOG = 1024 * 1024  # bytes
MAX_RECORDS = 4096
_INIT = re.compile(r"INIT/sha(?:256|384|512) [0-9a-f]{64,128}")
_AAEL = re.compile(r"([^\s]{1,256}) ([^\s]{1,256}) ([^\n]{0,65536})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeEvent:
    """Something extended after the firmware's log ended: either the hash of `content`, or `digest` as it is."""

    register: str  # "pcr8", "rtmr3"
    content: bytes = b""
    digest: bytes = b""  # raw, such as a config digest; zero-padded to the register's length
    source: str = "runtime"  # for people

    def __post_init__(self) -> None:
        if bool(self.content) == bool(self.digest):
            raise ValueError("a runtime event has either content or a digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class AaelEntry:
    """One entry of Trustee's attestation agent event log."""

    domain: str
    operation: str
    content: str

    @classmethod
    def parse(cls, text: str) -> AaelEntry:
        """Return the entry in `text`, without line end. Raises EvidenceFormatError `malformed-runtime-log`."""
        match = _AAEL.fullmatch(text)
        if match is None:
            raise _malformed("an AAEL entry is `<domain> <operation> <content>`")
        return cls(domain=match[1], operation=match[2], content=match[3])


def parse_aael(raw: bytes, register: str) -> tuple[RuntimeEvent, ...]:
    """Return the events of an AAEL text that was extended to `register`.

    Raises:
        EvidenceFormatError: `too-large`, `malformed-runtime-log`.
    """
    lines = _text(raw).removesuffix("\n").split("\n")
    if not _INIT.fullmatch(lines[0]):
        raise _malformed("an AAEL begins with INIT/<algorithm> <hex>")
    if lines[0].split(" ")[1].strip("0"):
        raise _malformed("an AAEL that does not begin with an empty register")
    for line in lines[1:]:
        AaelEntry.parse(line)
    return tuple(RuntimeEvent(register=register, content=line.encode(), source="aael") for line in lines[1:])


def parse_systemd_log(raw: bytes) -> tuple[RuntimeEvent, ...]:
    """Return the events of systemd's log of measurements.

    Raises:
        EvidenceFormatError: `too-large`, `malformed-runtime-log`, malformed JSON.
    """
    return tuple(_systemd_records(_text(raw)))


def _systemd_records(text: str) -> Iterator[RuntimeEvent]:
    for number, record in enumerate(text.split("\x1e")):
        if not record.strip():
            continue
        if number > MAX_RECORDS:
            raise _malformed(f"over {MAX_RECORDS} records")
        match parse_json(record.encode(), limit=MAX_LOG, error=EvidenceFormatError):
            case {"pcr": int(pcr), "content": {"string": str(string)}} if (
                type(pcr) is int and 0 <= pcr <= 23 and string
            ):
                yield RuntimeEvent(register=f"pcr{pcr}", content=string.encode(), source="systemd")
            case _:
                raise _malformed("a record without PCR and measured text")


def _text(raw: bytes) -> str:
    if len(raw) > MAX_LOG:
        raise EvidenceFormatError(f"a runtime log of {len(raw)} bytes", code="too-large")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _malformed("a runtime log that is not UTF-8") from None


def _malformed(message: str) -> EvidenceFormatError:
    return EvidenceFormatError(message, code="malformed-runtime-log")
