"""A fake enclave under a clock that tests move."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

from sealwright.testing.enclave import FakeEnclave
from sealwright.testing.software import FakePlatformWarning


class Clock:
    """A time that stands until it is moved."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.at

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


def fake_enclave(clock: Clock | None = None, **settings: Any) -> FakeEnclave:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        return FakeEnclave(now=clock or Clock(), **settings)
