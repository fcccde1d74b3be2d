"""A tenant's usage as a file: fetched from a broker, and checked without one. Spec: docs/spec/life-cycle.md, Usage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

from sealwright.client.admin import AdminClient
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.document import validated
from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.protocol.usage import UsageItem, UsageStatement, verify_usage
from sealwright.tlog.policy import LogPolicy

MAX_LINE = 1 << 20  # bytes


def fetch_usage(client: AdminClient, tenant: str, month: str, kid: str | None) -> Iterator[bytes]:
    """Yield the lines of a usage file: the statement with the broker's keys, then each counted decision, newest first.

    Raises:
        SealwrightError: as the broker says.
    """
    path, named = f"/usage/{tenant}/{month}", "" if kid is None else f"kid={kid}"
    head = client.ask("GET", f"{path}?{named}")
    yield canonical({name: head.get(name) for name in ("statement", "broker_keys")}) + b"\n"
    before = UsageStatement.unverified(canonical(head["statement"])).log_size
    while True:
        found = client.ask("GET", f"{path}/items?{named}&before={before}").get("items")
        if not isinstance(found, list):
            raise UnavailableError("the broker answered no items", code="malformed-answer", stage="answer")
        for one in found:
            yield canonical(one["item"]) + b"\n"
        if not found or not 0 <= found[-1]["index"] < before:
            return
        before = found[-1]["index"]


def check_usage(file: BinaryIO, *, root: bytes, log: LogPolicy) -> UsageStatement:
    """Return the statement of a usage file, proved as `verify_usage` says. Nothing is fetched.

    Args:
        root: the broker's, 32 bytes.
        log: whose log.

    Raises:
        MessageFormatError: not such a file. VerificationError: it does not hold.
    """
    head = parse_json(_line(file), limit=MAX_LINE)
    if not isinstance(head, dict) or set(head) != {"statement", "broker_keys"}:
        raise MessageFormatError("not a usage file", code="malformed-usage")
    return verify_usage(
        canonical(head["statement"]), canonical(head["broker_keys"]), _items(file), root=root, log=log
    )


def _items(file: BinaryIO) -> Iterable[UsageItem]:
    while line := _line(file):
        yield validated(UsageItem, parse_json(line, limit=MAX_LINE))


def _line(file: BinaryIO) -> bytes:
    line = file.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise MessageFormatError("a line is too long", code="malformed-usage")
    return line
