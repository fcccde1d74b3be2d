"""What process 1 says on the console, and its end: a failure is one line with stage and code, then power-off."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sealwright.errors import SealwrightError, UnavailableError

CONSOLE = 2  # descriptor
_MAX_LINE = 600  # characters


def say(text: str) -> None:
    """Write one line to the console; what the host's files name is shown with escapes."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:_MAX_LINE])
    line = f"sealwright: {shown}\n".encode(errors="backslashreplace")
    with suppress(OSError):  # a machine without a console starts all the same
        os.write(CONSOLE, line)


@contextmanager
def step(stage: str) -> Iterator[None]:
    """Do one step of the start: whatever goes wrong in it is a SealwrightError of this stage."""
    try:
        yield
    except SealwrightError as exc:
        exc.stage = stage
        raise
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, type(exc).__name__)
        at = f" ({exc.filename})" if exc.filename else ""
        raise UnavailableError(
            f"the kernel answers {name}{at}", code="guest-step-failed", stage=stage
        ) from exc


def last_words(exc: BaseException) -> str:
    """Return the line that tells why this machine ends."""
    if isinstance(exc, SealwrightError):
        return f"{exc.stage or 'start'}: {exc.code}: {exc}"
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = (
        ""
        if trace is None
        else f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
    )
    return f"start: internal-error: {type(exc).__name__}{where}"
