"""A distribution of workloads to measure, and the quoter started over it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.software.support import PROBE, install

from sealwright.attester.quoter.launch import Running, launch


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of distribution `probe`, on the module search path."""
    folder = install(tmp_path / "site", {"probe.py": PROBE})
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def start(tmp_path: Path, probes: Path) -> Iterator[Callable[..., tuple[Running, socket.socket]]]:
    """Start a probe; returns what runs and a socket to it. All are ended after the test."""
    begun: list[tuple[Running, socket.socket]] = []

    def begin(function: str, **options: Any) -> tuple[Running, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        defaults: dict[str, Any] = {
            "config": b"{}",
            "state_dir": tmp_path / "state",
            "distributions": ["probe"],
        }
        extra = {"test": theirs.fileno(), **options.pop("extra_fds", {})}
        with theirs:
            running = launch(entry=f"probe:{function}", extra_fds=extra, **(defaults | options))
        begun.append((running, ours))
        return running, ours

    yield begin
    for running, channel in begun:
        channel.close()
        running.terminate()
