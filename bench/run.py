"""Run every benchmark of this folder, one after another; print one table, keep the JSON.

    python bench/run.py [NAME …]      NAME: a module of this folder, default all

A benchmark is a module whose process prints one JSON object a line:
`{"work", "ours", "peer", "ratio", "unit", "limit"}`: what was measured, our figure and the peer's from the same
run (or null), `ratio` in the direction the limit states, and the limit as text, such as `<= 1.2`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
COLUMNS = ("work", "ours", "peer", "ratio", "unit", "limit")
TIMEOUT_S = 1800


def main() -> int:
    """Run as the module's docstring says."""
    names = sys.argv[1:] or sorted(
        path.stem for path in FOLDER.glob("*.py") if path.stem[0] != "_" and path.stem != "run"
    )
    here, failed, table = machine(), [], []
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        rows = run(name)
        if rows is None:
            failed.append(name)
            continue
        table += rows
        result = {"machine": here, "measured": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        "\n".join(
            [f"Machine: {', '.join(f'{key} {value}' for key, value in here.items())}", "", *markdown(table)]
        )
    )
    for name in failed:
        print(f"failed: bench/{name}.py", file=sys.stderr)
    return 1 if failed else 0


def run(name: str) -> list[dict[str, object]] | None:
    """Return the rows that the benchmark prints, or None if it failed or printed something else."""
    print(f"bench: {name}", file=sys.stderr, flush=True)
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)
        rows = [json.loads(line) for line in result.stdout.splitlines() if line.strip()]
    except (subprocess.SubprocessError, json.JSONDecodeError) as exc:
        print(f"bench: {name}: {exc}", file=sys.stderr)
        return None
    return rows if rows and all(set(row) == set(COLUMNS) for row in rows) else None


def machine() -> dict[str, str]:
    """Return what the figures depend on: processor, cores, memory, kernel, Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def markdown(rows: list[dict[str, object]]) -> list[str]:
    """Return `rows` as the lines of a Markdown table."""
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return [*head, *("| " + " | ".join(_cell(row[name]) for name in COLUMNS) + " |" for row in rows)]


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
