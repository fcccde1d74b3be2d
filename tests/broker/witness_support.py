"""Witnesses over HTTP, in this process, for brokers in a temporary directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient
from tests.broker.support import World

from sealwright.broker import service
from sealwright.broker.holders import WitnessHolder, parse_witness
from sealwright.ops.witness import open_witness, witness_app


@dataclass
class Site:
    """A witness over HTTP, in this process, that can be cut off or made to lie."""

    directory: Path
    log_key: str
    name: str = "witness.test/1"
    clock: Callable[[], float] | None = None
    cut: bool = False
    answer: tuple[int, dict[str, str], bytes] | None = None
    asked: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.witness = open_witness(self.directory, [self.log_key], name=self.name)
        if self.clock is not None:
            object.__setattr__(self.witness, "time_s", lambda: int(self.clock()))  # type: ignore[misc]
        self._client = TestClient(witness_app(self.witness))

    @property
    def text(self) -> str:
        return f"{self.witness.cosigner.vkey.encode()}@http://{self.name}"

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if self.cut:
            raise httpx2.ConnectError("cut")
        body = request.read()
        self.asked.append(body)
        if self.answer is not None:
            status, headers, raw = self.answer
            return httpx2.Response(status, headers=headers, content=raw)
        found = self._client.post("/add-checkpoint", content=body)
        kind = {"content-type": found.headers["content-type"]}
        return httpx2.Response(found.status_code, headers=kind, content=found.content)


@pytest.fixture
def sites(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], list[Site]]]:
    made: dict[str, Site] = {}

    def parse(text: str) -> WitnessHolder:
        holder = parse_witness(text)
        site = made[text.rpartition("//")[2]]
        holder._http = httpx2.Client(transport=httpx2.MockTransport(site))
        return holder

    def make(number: int, **options: Any) -> list[Site]:
        for index in range(number):
            name = f"witness.test/{index}"
            time = lambda: world.clock.now.timestamp()  # noqa: E731
            made[name] = Site(tmp_path / f"w{index}", world.log_key, name, clock=time, **options)
        return list(made.values())

    monkeypatch.setattr(service, "parse_witness", parse)
    return make


def keyed(world: World, sites: list[Site], **options: Any) -> list[str]:
    """Begin the witnesses, and make a key under them."""
    texts = [site.text for site in sites]
    with world.open(witnesses=texts, new_holder=True, **options) as running:
        world.add_key(running)
    return texts
