"""`sealwright drill`: make faults on purpose, and show that nothing was lost, unlogged or beyond what was granted."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sealwright.cli._group import Json
from sealwright.cli._output import emit
from sealwright.errors import UnavailableError

if TYPE_CHECKING:
    from sealwright.ops.drill.cases import Result


def drill(
    short: Annotated[bool, typer.Option("--short", help="Less load around each fault.")] = False,
    only: Annotated[str, typer.Option(help="Only drills whose name has this in it.")] = "",
    as_json: Json = False,
) -> None:
    """Run the fault tests of a broker's state and of several replicas, on processes of their own."""
    from sealwright.ops.drill.run import drills

    chosen = [(name, work) for name, work in drills(short=short) if only in name]
    if not chosen:
        raise typer.BadParameter("no drill has that in its name")
    results = []
    for name, work in chosen:
        typer.echo(f"  {name} ...", err=True)
        results.append(work())
    held = all(result.held for result in results)
    found = {"held": held, "drills": [{**asdict(result), "held": result.held} for result in results]}
    emit(found, as_json=as_json, lines=[_HEAD, *map(_line, results), *_findings(results)])
    if not held:
        raise UnavailableError("not all drills held", code="drill-failed", stage="drill")


_HEAD = f"{'fault':52} {'held':8} {'recovery':>9} {'lost':>5} {'granted':>8} {'refused':>8} {'budget':>12}"


def _line(result: Result) -> str:
    verdict = "skipped" if result.skipped else "yes" if result.held else "NO"
    if result.skipped or result.code:
        return f"{result.name:52} {verdict:8} {result.skipped or result.code}"
    recovery = "–" if result.recovery_s is None else f"{result.recovery_s:.1f} s"
    counts = f"{result.lost:>5} {result.granted:>8} {result.refused:>8} {result.budget:>12}"
    return f"{result.name:52} {verdict:8} {recovery:>9} {counts}"


def _findings(results: list[Result]) -> list[str]:
    return [f"{result.name}: {finding}" for result in results for finding in result.findings[:20]]
