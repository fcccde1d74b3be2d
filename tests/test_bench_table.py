"""The bench table: what counts as reached, and that the page shows the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench import _render, _stats
from bench import run as bench


def row(limit: str | None, **more: Any) -> dict[str, Any]:
    return {"work": "w", "ours": 7.0, "peer": 5.0, "ratio": 1.4, "unit": "s", "limit": limit, **more}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (row("<= 1.4"), "yes"),
        (row("<= 1.3"), "no"),
        (row(">= 1.5"), "no"),
        (row("ours >= 7 GB/s"), "yes"),
        (row("ours >= 50,000/s"), "no"),
        (row("<= 1.5", interval=[1.3, 1.6]), "unclear"),
        (row("<= 1.7", interval=[1.3, 1.6]), "yes"),
        (row(">= 1.7", interval=[1.3, 1.6]), "no"),
        (row("none"), "–"),
        (row(None), "–"),
        (row("<= 1.5", ratio=None), "–"),
    ],
)
def test_reached(found: dict[str, Any], said: str) -> None:
    assert _render.reached(found) == said
    assert _render.markdown([found])[2].endswith(f"| {said} |")


def test_the_interval_is_shown_beside_the_ratio() -> None:
    line = _render.markdown([row("<= 1.5", interval=[1.3, 1.6])])[2]
    assert line == "| w | 7 | 5 | 1.4 (1.3 to 1.6) | s | <= 1.5 | unclear |"


def test_noise_is_said() -> None:
    load = {"before": 3.0, "after": 4.0, "others_before": 0.5, "others_during": 0.0, "noisy": True}
    assert _render.load_line(load).startswith("**Noisy")
    assert not _render.load_line({**load, "noisy": False}).startswith("**Noisy")
    assert _render.markdown([row("<= 1.4")], noisy=True)[2].endswith("| noisy |")


def test_our_own_work_is_no_noise_and_that_of_others_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"elapsed": 0.0, "everyone": 0.0, "ours": 0.0}
    monkeypatch.setattr(bench.time, "sleep", lambda _seconds: clock.update(elapsed=clock["elapsed"] + 5))
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock["elapsed"])
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(bench, "_cpu_s", lambda: (clock["everyone"], clock["ours"]))
    noise = bench.Noise()
    clock.update(elapsed=15.0, everyone=21.0, ours=20.0)
    assert noise.ended()["others_during"] == 0.05
    assert not noise.ended()["noisy"]
    clock.update(everyone=24.0)
    assert noise.ended()["noisy"]


def test_the_page_shows_the_committed_results() -> None:
    assert bench.PAGE.read_text() == _render.page(bench.RESULTS)


def test_the_interval_holds_the_median_and_narrows_with_more_pairs() -> None:
    few, many = [1.0, 1.1, 1.2, 1.3, 0.9], [1.0, 1.1, 1.2, 1.3, 0.9] * 40
    wide, narrow = _stats.estimate(few), _stats.estimate(many)
    assert wide.low <= wide.median == 1.1 <= wide.high
    assert narrow.high - narrow.low < wide.high - wide.low
    assert _stats.quantile(range(1, 101), 0.99) == 100
    assert _stats.quantile([5.0], 0.99) == 5.0


def test_rows_of_another_shape_and_dead_benchmarks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    row = '{"work": "w", "ours": 1.23456, "peer": null, "ratio": 0.5, "unit": "ms", "limit": "<= 1"}'
    (tmp_path / "good.py").write_text(f"print('''{row}''')")
    (tmp_path / "bad.py").write_text("print('{\"work\": 1}')")
    (tmp_path / "dead.py").write_text("raise SystemExit(3)")
    rows = bench.run("good")
    assert rows is not None
    assert _render.markdown(rows)[2] == "| w | 1.235 | – | 0.5 | ms | <= 1 | yes |"
    assert bench.run("bad") is None
    assert bench.run("dead") is None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [
        "chat.py --help",
        "log.py --size 2000",
        "sealing.py --size 4 --turns 1",
        "transport.py --rounds 1 --streams 16 --frames 1000",
        "verify.py --turns 1 --memory 0",
    ],
)
def test_every_benchmark_still_runs(command: str) -> None:
    name, *options = command.split()
    said = bench.output([sys.executable, str(bench.FOLDER / name), *options])
    assert "--pairs" in said if name == "chat.py" else all(json.loads(line) for line in said.splitlines())


def test_a_benchmark_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TIMEOUT_S", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        bench.output([sys.executable, "-c", "import time; time.sleep(60)"])
