"""`sealwright explain CODE`: cause, fix and who, from the tables in docs/reference/errors/."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from sealwright.cli._output import emit

_COLUMNS = ["code", "exit", "cause", "fix", "who"]
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One row of an error table."""

    code: str
    exit: str
    cause: str
    fix: str
    who: str


def command(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="An error code, as an error prints it in brackets.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain an error code: its cause, the fix, and who can do it."""
    known = {row.code: row for row in explanations()}
    if code not in known:
        near = get_close_matches(code, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise typer.BadParameter(f"no error has the code {code!r}{hint}", param_hint="CODE")
    row = known[code]
    lines = [f"{row.code}  (exit code {row.exit})", f"cause  {row.cause}", f"fix    {row.fix}"]
    emit(asdict(row), as_json=as_json, lines=[*lines, f"who    {row.who}"])


def explanations() -> list[Explanation]:
    """Return every row of every error table, in order of file and row."""
    pages = sorted((page for page in tables().iterdir() if page.name.endswith(".md")), key=lambda p: p.name)
    return [row for page in pages for row in parse(page.read_text(encoding="utf-8"))]


def tables() -> Traversable:
    """Return the folder of the error tables: in the wheel, or beside a source tree."""
    packed = files("sealwright") / "_errors"
    return packed if packed.is_dir() else Path(__file__).parents[3] / "docs" / "reference" / "errors"


def parse(page: str) -> list[Explanation]:
    """Return the rows of the tables in `page` (Markdown) whose columns are code, exit, cause, fix, who.

    Raises:
        ValueError: a row has other than five cells (our bug: the tables are ours).
    """
    rows = []
    inside = False
    for line in page.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.replace("\\|", "|").strip() for cell in _CELL.split(line.strip())[1:-1]]
        if cells == _COLUMNS:
            inside = True
        elif inside and set(line) - set("|-: "):
            rows.append(_row(cells))
    return rows


def _row(cells: list[str]) -> Explanation:
    if len(cells) != len(_COLUMNS):
        raise ValueError(f"an error table's row has {len(cells)} cells: {cells[:1]}")
    code, exit_code, cause, fix, who = cells
    return Explanation(code=code.strip("`"), exit=exit_code, cause=cause, fix=fix, who=who)
