"""Waits for the broker's notices while an enclave serves. Spec: docs/spec/life-cycle.md, Push.

A notice makes the enclave ask for another lease now rather than at half-life; the answer to that decides. So a forged
notice costs an attestation, and a suppressed one lets the lease run to its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from sealwright.enclave.broker_client import BrokerClient, NoticeLine
from sealwright.errors import SealwrightError

SOON_S = 1.0  # an answer that comes sooner was not waited for
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # after so many waits in a row that came to nothing at once


class Listener:
    """A thread of its own, so that its wait holds up nothing that the loop does, nor the end."""

    def __init__(
        self,
        broker: Callable[[], BrokerClient],
        held: Callable[[], list[bytes]],
        tell: Callable[[Sequence[bytes]], None],
    ) -> None:
        """Listen.

        Args:
            broker: the one that is asked now.
            held: returns the ids of the leases in force.
            tell: takes those that are to be renewed.
        """
        self._broker, self._held, self._tell = broker, held, tell
        self._ended = threading.Event()
        self._line: NoticeLine | None = None
        self._thread = threading.Thread(target=self._listen, name="notices", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, at once."""
        self._ended.set()
        if self._line is not None:
            self._line.abort()

    def _listen(self) -> None:
        idle = 0
        while not self._ended.is_set():
            begun = time.monotonic()
            fruitful = self._once()
            idle = 0 if fruitful or time.monotonic() - begun >= SOON_S else idle + 1
            pause = PAUSES_S[min(idle, len(PAUSES_S)) - 1] if idle else SOON_S if fruitful else 0.0
            self._ended.wait(pause)

    def _once(self) -> bool:
        """Wait for one answer; say whether it had something to say."""
        held = self._held()
        if not held:
            return False
        self._line = line = self._broker().notices()
        try:
            if self._ended.is_set():
                return False
            changed = line.wait(held)
        except SealwrightError:
            return False
        finally:
            line.close()
        if changed:
            self._tell(changed)
        return bool(changed)
