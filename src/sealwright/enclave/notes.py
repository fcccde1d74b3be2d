"""What an enclave says on stderr: event names, codes and ids. Never text that came from a request."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Protocol


class Note(Protocol):
    """Writes one line."""

    def __call__(self, event: str, /, **ids: str | int) -> None: ...


def to_stderr(event: str, /, **ids: str | int) -> None:
    """Write `sealwright-enclave: event name=value …`."""
    said = "".join(f" {name}={value}" for name, value in ids.items())
    print(f"sealwright-enclave: {event}{said}", file=sys.stderr, flush=True)


def silence_libraries() -> None:
    """Keep exceptions of libraries off stderr: their texts may quote a prompt. Kinds are still told."""
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda args: to_stderr("internal-error", kind=args.exc_type.__name__)
    sys.unraisablehook = lambda args: to_stderr("internal-error", kind=args.exc_type.__name__)
