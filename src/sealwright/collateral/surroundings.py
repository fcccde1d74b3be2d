"""What a fetcher takes from its surroundings: time, chance, how long to try, and whom to tell."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import anyio

from sealwright.collateral.need import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to try."""

    connect_s: float = 10.0
    request_s: float = 30.0  # for one whole answer
    attempts: int = 4
    backoff_s: float = 1.0  # doubled with each attempt, and spread at random
    longest_backoff_s: float = 60.0
    longest_retry_after_s: float = 300.0  # a vendor that asks for more is not waited for
    longest_queue_s: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One event for people or metrics."""

    need: Need
    event: Literal["waiting", "asking", "retrying", "got"]
    seconds: float = 0.0  # until it goes on
    text: str = ""


def quiet(event: Progress) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a fetcher takes from its surroundings; tests bring their own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    random: Callable[[], float] = random.random  # 0 to 1
