"""Run every benchmark of this folder, one after another; print one table, keep the JSON, write the docs page.

    python bench/run.py [NAME …]      NAME: a module of this folder, default all
    python bench/run.py --render      only write docs/reference/performance.md from bench/results/
    python bench/run.py --check       exit 1 unless that page is what the results say

A benchmark is a module whose process prints one JSON object a line:
`{"work", "ours", "peer", "ratio", "unit", "limit"[, "interval"]}`: what was measured, our figure and the peer's
from the same run (or null), `ratio` in the direction the limit states with its 95 % interval `[low, high]`, and the
limit as text, such as `<= 1.2` (of the ratio) or `ours >= 50`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))  # so that tests can import this module too

from _render import COLUMNS, load_line, machine_line, markdown, page  # noqa: E402

RESULTS = FOLDER / "results"
PAGE = FOLDER.parent / "docs" / "reference" / "performance.md"
TIMEOUT_S = 1800
SAMPLE_S = 5.0  # how long others' use of the cores is looked at before a benchmark starts
NOISY = 0.10  # share of the cores


def main() -> int:
    """Run as the module's docstring says."""
    names = sys.argv[1:]
    if names == ["--check"]:
        return 0 if PAGE.read_text() == page(RESULTS) else 1
    if names == ["--render"]:
        PAGE.write_text(page(RESULTS))
        return 0
    failed = run_all(names)
    for name in failed:
        print(f"failed: bench/{name}.py", file=sys.stderr)
    return 1 if failed else 0


def run_all(names: list[str]) -> list[str]:
    """Run the benchmarks named, print and keep their results; return the names of those that failed."""
    everything = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem[0] != "_")
    here, failed = machine(), []
    RESULTS.mkdir(exist_ok=True)
    print(f"Machine: {machine_line(here)}", flush=True)
    for name in names or [name for name in everything if name != "run"]:
        measured = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        noise = Noise()
        rows = run(name)
        load = noise.ended()
        if rows is None:
            failed.append(name)
            continue
        result = {"machine": here, "measured": measured, "load": load, "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        PAGE.write_text(page(RESULTS))
        print(
            "\n".join(["", f"{name}. {load_line(load)}", "", *markdown(rows, noisy=bool(load["noisy"]))]),
            flush=True,
        )
    return failed


def run(name: str) -> list[dict[str, Any]] | None:
    """Return the rows that the benchmark prints, or None if it failed or printed something else."""
    print(f"bench: {name}", file=sys.stderr, flush=True)
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    try:
        rows = [json.loads(line) for line in output(command).splitlines() if line.strip()]
    except (subprocess.SubprocessError, json.JSONDecodeError) as exc:
        print(f"bench: {name}: {exc}", file=sys.stderr)
        return None
    return rows if rows and all(set(row) - {"interval"} == set(COLUMNS) for row in rows) else None


def output(command: list[str]) -> str:
    """Return what a command prints; one that takes too long is told to end, so that it can end its servers.

    Raises:
        subprocess.SubprocessError: it failed, or took more than `TIMEOUT_S`.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            text, _ = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return text


class Noise:
    """Looks at what others do to the machine: for some seconds before a benchmark, and while it runs."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        start = time.monotonic(), *_cpu_s()
        time.sleep(SAMPLE_S)
        self._before = _others(start)
        self._start = time.monotonic(), *_cpu_s()

    def ended(self) -> dict[str, float | bool]:
        """Return the figures, and whether they are too high to trust the benchmark."""
        during = _others(self._start)
        return {
            "before": round(self._load, 2),
            "after": round(os.getloadavg()[0], 2),
            "others_before": round(self._before, 3),
            "others_during": round(during, 3),
            "noisy": max(self._before, during) > NOISY,
        }


def _others(start: tuple[float, float, float]) -> float:
    """Return the share of all cores that went to other processes, or to the hypervisor, since `start`."""
    elapsed, everyone, ours = (
        now - then for now, then in zip((time.monotonic(), *_cpu_s()), start, strict=True)
    )
    return max(0.0, (everyone - ours) / (elapsed * (os.cpu_count() or 1)))


def _cpu_s() -> tuple[float, float]:
    """Return the CPU seconds of all processes (with what the hypervisor took), and of those that we started."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, *rest = map(int, file.readline().split()[1:9])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return busy, spent.ru_utime + spent.ru_stime


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


if __name__ == "__main__":
    sys.exit(main())
