"""Is this log what was measured? Replays it to registers that are signed. Spec: docs/spec/measured-boot.md."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from sealwright.errors import VerificationError
from sealwright.evidence.eventlog import Bank, Event, EventLog
from sealwright.evidence.runtimelog import RuntimeEvent
from sealwright.verify.measured import (
    ALWAYS_WHOLE,
    NAMES,
    MeasuredEvent,
    content_of,
    extended,
    hashed,
    is_extended,
)
from sealwright.verify.verified import MADE_BY_VERIFY, Condition, Verified

Layout = Literal["pcr", "rtmr"]
RUNTIME = 0xFFFFFFFF  # the type of events that no firmware logged
# What the operating system extends by a log of its own: these need not replay from the firmware's.
OUTSIDE = frozenset({"pcr10", "rtmr3"})
# What the operating system extends after the firmware's log has ended: systemd's phases of boot, command lines and
# extensions (11 to 13), keys of machine owners (14), identity of the machine and its disks (15).
SYSTEM = frozenset({"pcr11", "pcr12", "pcr13", "pcr14", "pcr15"})
_BANKS: Mapping[int, Bank] = {20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}
_STARTUP_LOCALITY = b"StartupLocality\0"
_LOCALITIES = (0, 3, 4)
_STAGE = "event-log"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedLog:
    """A log that replays to signed registers. Made by `verify_event_log` alone."""

    layout: Layout
    bank: Bank
    events: tuple[MeasuredEvent, ...]  # of registers that replay, in the order of the log
    registers: Mapping[str, bytes]  # those that replay, as signed
    unlogged: tuple[str, ...]  # signed and extended, but not by what is logged
    unsigned: tuple[str, ...]  # logged, but not among what is signed
    conditions: tuple[Condition, ...]
    _made_by: object = field(repr=False)

    def __post_init__(self) -> None:
        if self._made_by is not MADE_BY_VERIFY:
            raise TypeError("a ReplayedLog is made by verify_event_log alone")

    def of(self, *registers: str) -> tuple[MeasuredEvent, ...]:
        """Return the events of some registers."""
        return tuple(event for event in self.events if event.register in registers)


def verify_event_log(
    log: EventLog,
    verified: Verified,
    *,
    runtime: Sequence[RuntimeEvent] = (),
    unlogged: Collection[str] = (),
    bound: Collection[str] = (),
) -> ReplayedLog:
    """Prove that `log`, and `runtime` after it, are what was extended into the registers that `verified` signs.

    Args:
        runtime: what is known to have been extended after the log ended, such as a config digest.
        unlogged: registers that may hold more than is logged; each gives condition `unlogged-extends`. RTMR3 and
            PCR 10 (IMA) need not be named.
        bound: registers whose whole value the caller checks by itself: they may hold more, without a condition.

    Raises:
        VerificationError: `bank-not-in-log`, `bad-register`, `event-log-mismatch`, `event-data-mismatch`,
            `bad-startup-locality`.
    """
    # 1. The registers' own bank: a log without it is refused, and other digests in it are not looked at.
    layout: Layout = "rtmr" if verified.platform == "tdx" else "pcr"
    signed = {name: value for name, value in verified.registers.items() if name.startswith(layout)}
    bank = _bank(signed, log)
    # 2. Every extend in the order of the log, from the value that the register begins with.
    replayed = replay(log, layout=layout, bank=bank, runtime=runtime)
    # 3. Each signed register holds exactly that, or was not extended at all.
    outside = tuple(_differing(signed, replayed, frozenset(unlogged) | frozenset(bound)))
    # 4. What each event of those registers proves.
    holds = signed.keys() - set(outside)
    events = tuple(_events(log, layout, bank, runtime, holds))
    return ReplayedLog(
        layout=layout,
        bank=bank,
        events=events,
        registers={name: signed[name] for name in sorted(holds, key=_order)},
        unlogged=outside,
        unsigned=tuple(sorted(replayed.keys() - signed.keys(), key=_order)),
        conditions=tuple(_conditions(name for name in outside if name not in OUTSIDE | frozenset(bound))),
        _made_by=MADE_BY_VERIFY,
    )


def replay(
    log: EventLog, *, layout: Layout, bank: Bank, runtime: Sequence[RuntimeEvent] = ()
) -> dict[str, bytes]:
    """Return the registers that `log` extends, as they end. This alone proves nothing.

    Raises:
        VerificationError: `bank-not-in-log`, `bad-register`, `bad-startup-locality`.
    """
    values: dict[str, bytes] = {}
    empty = bytes(len(hashed(bank, b"")))
    for event in log.events:
        if is_extended(event.type):
            name = _register(event.index, layout)
            values[name] = extended(bank, values.get(name, empty), _digest(event, bank))
        elif event.data.startswith(_STARTUP_LOCALITY) and layout == "pcr":
            values["pcr0"] = empty[:-1] + _locality(event, values)
    for later in runtime:
        digest = _runtime_digest(later, bank)
        values[later.register] = extended(bank, values.get(later.register, empty), digest)
    return values


def _bank(signed: Mapping[str, bytes], log: EventLog) -> Bank:
    sizes = {len(value) for value in signed.values()}
    bank = _BANKS.get(sizes.pop()) if len(sizes) == 1 else None
    if bank is None:
        _refuse("the evidence signs no registers that a log can be replayed to", "bad-register")
    if bank not in log.banks:
        _refuse(f"the log has no {bank} digests, which the signed registers are made of", "bank-not-in-log")
    return bank


def _register(index: int, layout: Layout) -> str:
    """Return a register's name: in a CCEL 1 to 4 are RTMR0 to 3, and 0 is MRTD, which nothing extends after launch."""
    if layout == "pcr":
        return f"pcr{index}"
    if not 1 <= index <= 4:
        _refuse(f"the log has an extend of measurement register {index}", "bad-register")
    return f"rtmr{index - 1}"


def _digest(event: Event, bank: Bank) -> bytes:
    digest = event.digest(bank)
    if digest is None:
        _refuse(f"the log has no {bank} digests", "bank-not-in-log")
    return digest


def _locality(event: Event, values: Mapping[str, bytes]) -> bytes:
    """Return the last byte that PCR 0 begins with. It is not measured by itself, but the replay stands on it."""
    locality = event.data[len(_STARTUP_LOCALITY) :]
    if event.index or len(locality) != 1 or locality[0] not in _LOCALITIES or "pcr0" in values:
        _refuse("a startup locality that is late, repeated or none", "bad-startup-locality")
    return locality


def _runtime_digest(event: RuntimeEvent, bank: Bank) -> bytes:
    size = len(hashed(bank, b""))
    if len(event.digest) > size:
        raise ValueError(f"a digest of {len(event.digest)} bytes was never extended to {event.register}")
    return hashed(bank, event.content) if event.content else event.digest.ljust(size, b"\0")


def _differing(
    signed: Mapping[str, bytes], replayed: Mapping[str, bytes], unlogged: frozenset[str]
) -> Iterator[str]:
    """Yield tolerated registers that hold something else than was replayed; refuse the first other one."""
    for name in sorted(signed, key=_order):
        value = signed[name]
        logged = name in replayed
        wanted = replayed.get(name, bytes(len(value)))
        if hmac.compare_digest(value, wanted) or (not logged and _never_launched(name, value)):
            continue
        if name not in unlogged and (logged or name not in OUTSIDE):
            what = "does not replay" if logged else "was extended, but nothing is logged"
            _refuse(f"register {name} {what}: signed {value.hex()[:16]}…", "event-log-mismatch")
        yield name


def _never_launched(name: str, value: bytes) -> bool:
    """PCRs 17 to 22 hold ones until a dynamic launch."""
    return name in {f"pcr{number}" for number in range(17, 23)} and value == b"\xff" * len(value)


def _events(
    log: EventLog, layout: Layout, bank: Bank, runtime: Sequence[RuntimeEvent], holds: Collection[str]
) -> Iterator[MeasuredEvent]:
    for number, event in enumerate(log.events):
        if is_extended(event.type) and (register := _register(event.index, layout)) in holds:
            yield _measured(number, event, register, _digest(event, bank), bank)
    for number, later in enumerate(runtime, start=len(log.events)):
        if later.register in holds:
            yield _runtime_event(number, later, bank)


def _runtime_event(number: int, event: RuntimeEvent, bank: Bank) -> MeasuredEvent:
    known = event.content or event.digest
    return MeasuredEvent(
        register=event.register,
        number=number,
        type=RUNTIME,
        digest=_runtime_digest(event, bank),
        unverified_data=known,
        content=known,
        label=event.source,
    )


def _measured(number: int, event: Event, register: str, digest: bytes, bank: Bank) -> MeasuredEvent:
    found = content_of(event.type, event.data, digest, bank)
    if found is None and event.type in ALWAYS_WHOLE:
        _refuse(f"event {number} ({NAMES[event.type]}) has data that was not measured", "event-data-mismatch")
    content, label = (None, "") if found is None else found
    return MeasuredEvent(
        register=register,
        number=number,
        type=event.type,
        digest=digest,
        unverified_data=event.data,
        content=content,
        label=label,
    )


def _conditions(names: Iterator[str]) -> Iterator[Condition]:
    for name in names:
        yield Condition(
            code="unlogged-extends",
            text=f"register {name} was extended with something that no log tells",
            claim="executables",
        )


def _order(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def _refuse(message: str, code: str) -> NoReturn:
    raise VerificationError(message, code=code, stage=_STAGE)
