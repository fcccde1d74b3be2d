"""Predicted events and the registers that they end in. Spec: docs/spec/predicted-measurements.md, "Events"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sealwright.verify.measured import hashed

Algorithm = Literal["sha256", "sha384"]  # a SHA-1 bank proves nothing
SIZES: Mapping[Algorithm, int] = MappingProxyType({"sha256": 32, "sha384": 48})  # bytes of a digest


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedEvent:
    """One extend. `digest` is None where the event is known to come, and what it measures is not."""

    register: str  # "pcr4", "rtmr1"
    what: str  # for people
    digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPredicted:
    """A register that files alone do not give, and why."""

    register: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Registers as they will end, the extends that make them, and what could not be said."""

    registers: dict[str, bytes]
    events: tuple[PredictedEvent, ...] = ()
    missing: tuple[NotPredicted, ...] = ()

    def __or__(self, other: Prediction) -> Prediction:
        """Return both; a register stands in one of them only."""
        if self.registers.keys() & other.registers.keys():
            raise ValueError("a register is predicted twice")
        return Prediction(
            registers=self.registers | other.registers,
            events=self.events + other.events,
            missing=self.missing + other.missing,
        )


def measured(register: str, what: str, data: bytes, algorithm: Algorithm) -> PredictedEvent:
    """Return the event whose digest is the hash of `data`."""
    return PredictedEvent(register=register, what=what, digest=hashed(algorithm, data))


def replayed(register: str, events: Iterable[PredictedEvent], algorithm: Algorithm) -> bytes | None:
    """Return what `register` holds after its events; None: one of them is not known."""
    value = bytes(SIZES[algorithm])
    for event in events:
        if event.register == register:
            if event.digest is None:
                return None
            value = hashed(algorithm, value + event.digest)
    return value


def predicted(
    names: Sequence[str],
    events: Sequence[PredictedEvent],
    algorithm: Algorithm,
    *,
    reasons: dict[str, str] | None = None,
) -> Prediction:
    """Return the registers that `events` end in.

    Args:
        names: the registers; one without an event stays zero.
        reasons: why a register is not predicted, whatever its events are.
    """
    registers: dict[str, bytes] = {}
    missing = []
    for name in names:
        reason = (reasons or {}).get(name, "")
        value = None if reason else replayed(name, events, algorithm)
        if value is None:
            missing.append(NotPredicted(register=name, reason=reason or _unknown(name, events)))
        else:
            registers[name] = value
    return Prediction(registers=registers, events=tuple(events), missing=tuple(missing))


def _unknown(register: str, events: Sequence[PredictedEvent]) -> str:
    return "not in the files: " + ", ".join(
        event.what for event in events if event.register == register and event.digest is None
    )
