"""Threads that share the segments of one file, each with two buffers of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sealwright.crypto.streaming import Layout, Segment, wipe

MAX_THREADS = 64


class Stopped(Exception):
    """Another thread has failed; this one has nothing to report."""


class Turns:
    """Lets threads do one thing in the order of the segments, whoever finishes first."""

    def __init__(self) -> None:
        self._next = 0
        self._stopped = False
        self._changed = threading.Condition()

    def run(self, index: int, action: Callable[[], None]) -> None:
        """Call `action` once every lower index has been through.

        Raises:
            Stopped: a thread has failed, so the turn would never come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._next == index)
            if self._stopped:
                raise Stopped
        action()  # outside the lock: nobody else has this turn
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def running(self) -> bool:
        """Return whether nobody has called `stop`."""
        with self._changed:
            return not self._stopped

    def stop(self) -> None:
        """End the work, and wake all who wait."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


Work = Callable[[Segment, memoryview, memoryview, Turns], None]


def each_segment(layout: Layout, work: Work, *, threads: int) -> None:
    """Call `work(segment, plain, sealed, turns)` for each segment, on at most `threads` threads.

    `plain` and `sealed` have the segment's lengths, belong to the thread, and are wiped at the end:
    two segments a thread is all the memory used. The first error stops all and is raised.
    """
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"1 to {MAX_THREADS} threads")
    todo = iter(range(layout.segments))
    lock = threading.Lock()
    turns = Turns()

    def take() -> int | None:
        with lock:
            return next(todo, None) if turns.running() else None

    def worker() -> None:
        size = min(layout.segment_bytes, layout.sealed_length)
        buffer, sealed_buffer = bytearray(size), bytearray(size)
        plain, sealed = memoryview(buffer), memoryview(sealed_buffer)
        try:
            while (index := take()) is not None:
                segment = layout.segment(index)
                work(segment, plain[: segment.length], sealed[: segment.sealed_length], turns)
        except Stopped:
            pass
        except BaseException:
            turns.stop()
            raise
        finally:
            wipe(plain)

    count = min(threads, layout.segments)
    if count == 1:
        worker()
        return
    with ThreadPoolExecutor(count, thread_name_prefix="sealwright-segments") as pool:
        futures = [pool.submit(worker) for _ in range(count)]
        try:
            for future in futures:
                future.result()
        finally:
            turns.stop()  # an interrupt of the main thread ends the others too
