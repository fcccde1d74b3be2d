"""The results as Markdown: which target was reached, decided from the rows alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("work", "ours", "peer", "ratio", "unit", "limit")
_LIMIT = re.compile(r"(ours )?(<=|>=) ([0-9][0-9,]*(?:\.[0-9]+)?)")
_HEAD = """# Performance

Made by `make bench` from the files in `bench/results/`; `python bench/run.py --render` writes this page again.
Each row compares with its peer in the same run on the machine named. *Ratio* is in the direction that the limit
states; where a 95 % interval is given, a limit inside it is *unclear*: neither reached nor missed for certain.
`bench/NAME.py` says how it measures.
"""


def page(results: Path) -> str:
    """Return the page for the result files in a folder."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    parts = ["\n".join(_section(name, result)) + "\n" for name, result in found.items()]
    return "\n".join([_HEAD, *parts])


def _section(name: str, result: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{result['measured']}, {machine_line(result['machine'])}.\n"
    yield f"{load_line(result['load'])}\n"
    yield from markdown(result["rows"], noisy=result["load"]["noisy"])


def machine_line(machine: dict[str, str]) -> str:
    """Return the machine in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def load_line(load: dict[str, Any]) -> str:
    """Say how quiet the machine was."""
    said = f"Other processes used {load['others_before']:.0%} of the cores before it started and "
    said += f"{load['others_during']:.0%} while it ran; load average {load['before']} before, {load['after']} after."
    return f"**Noisy: do not rely on these figures.** {said}" if load["noisy"] else said


def markdown(rows: list[dict[str, Any]], *, noisy: bool = False) -> list[str]:
    """Return `rows` as the lines of a Markdown table; a noisy run reaches nothing."""
    head = ["| " + " | ".join((*COLUMNS, "reached")) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    return [
        *head,
        *("| " + " | ".join([*_cells(row), "noisy" if noisy else reached(row)]) + " |" for row in rows),
    ]


def reached(row: dict[str, Any]) -> str:
    """Return `yes`, `no`, `unclear` (the limit lies in the interval), or a dash where there is no limit."""
    limit = _LIMIT.match(str(row["limit"] or ""))
    value = row["ours" if limit and limit[1] else "ratio"]
    if limit is None or value is None:
        return "–"
    bound = float(limit[3].replace(",", ""))
    within = {end <= bound if limit[2] == "<=" else end >= bound for end in row.get("interval") or [value]}
    return "unclear" if len(within) > 1 else "yes" if within.pop() else "no"


def _cells(row: dict[str, Any]) -> Iterator[str]:
    for name in COLUMNS:
        text = _cell(row[name])
        if name == "ratio" and (interval := row.get("interval")):
            text += f" ({_cell(interval[0])} to {_cell(interval[1])})"
        yield text


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
