"""All drills, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sealwright.errors import UnavailableError
from sealwright.ops.drill import cases, tampers
from sealwright.ops.drill.cases import Result
from sealwright.ops.drill.postgres import find_binaries

LONG_LOAD_S = 10.0


def drills(*, short: bool) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Yield the name of each drill and what runs it. Args: short: less load around each fault."""
    for name, tamper, code in tampers.TAMPERS:
        yield name, partial(_in_folder, partial(tampers.run_tamper, name=name, tamper=tamper, code=code))
    for name, wall_s, boot_s, code in tampers.CLOCKS:
        work = partial(tampers.run_clock, name=name, wall_s=wall_s, boot_s=boot_s, code=code)
        yield name, partial(_in_folder, work)
    yield "the clock is behind the last decision", partial(_in_folder, tampers.run_clock_behind)
    load_s = cases.BEFORE_S if short else LONG_LOAD_S
    for name, fault in cases.CASES:
        yield name, partial(_with_database, name, partial(cases.run, name, fault, load_s=load_s))
    for name, case in cases.SINGLE:
        yield name, partial(_with_database, name, case)


def _in_folder(work: Callable[[Path], Result]) -> Result:
    with tempfile.TemporaryDirectory(prefix="sealwright-drill-") as folder:
        return work(Path(folder))


def _with_database(name: str, work: Callable[[], Result]) -> Result:
    """Run a drill; one that could not be run has not held, but for what is not installed here."""
    if find_binaries() is None:
        return Result(name=name, findings=(), skipped="apt-get install postgresql")
    try:
        return work()
    except UnavailableError as error:
        return Result(name=name, findings=(str(error),))
