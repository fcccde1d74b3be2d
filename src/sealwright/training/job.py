"""A run as its engine gets it: where aggregator and countersigner are, how many rounds; and what it reports as it goes.

Spec: docs/spec/training.md, Jobs. Nothing in a job is secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sealwright.crypto.document import Digest, Document
from sealwright.errors import SealwrightError, UnavailableError
from sealwright.protocol.training_data import TRAINING_PATH
from sealwright.training.agent.wire import AgentClient, Call
from sealwright.training.countersign import FarCountersign
from sealwright.training.drive import Driver, Transport

Seconds = Annotated[int, Field(ge=1, le=7 * 86_400)]


class Job(Document):
    """What a driver needs to know."""

    format: Literal["sealwright-training-job/v1"] = "sealwright-training-job/v1"
    run: Digest  # of the run specification
    aggregator: Annotated[str, Field(min_length=1, max_length=107)]  # path of its agent's socket
    countersigner: Annotated[str, Field(min_length=1, max_length=256)]  # a broker's URL
    nodes: Annotated[int, Field(ge=1, le=4096)]  # workers to wait for
    wait_s: Seconds = 120
    rounds: Annotated[int, Field(ge=1, le=1 << 20)]
    timeout_s: Seconds = 600
    attest_s: Seconds = 1800  # workers attest anew after so long
    report: Annotated[str, Field(min_length=1, max_length=4096)]  # path: one JSON object a line


def load_job(path: Path) -> Job:
    """Return the job in a file. Raises FormatError."""
    return Job.parse(path.read_bytes())


def run_job(
    job: Job,
    transport: Transport,
    nodes: Callable[[int, float], object],
    *,
    clock: Callable[[], float],
) -> None:
    """Enrol, and run all rounds; whatever happens stands in the report, and the last line says how it ended.

    Args:
        nodes: waits until so many nodes are there, or so many seconds have passed.
        clock: monotonic seconds.
    """
    with Path(job.report).open("a", encoding="utf-8") as out:

        def told(event: str, said: Mapping[str, Any]) -> None:
            print(json.dumps({"event": event, **said}), file=out, flush=True)

        try:
            with AgentClient(Path(job.aggregator), timeout_s=job.timeout_s) as aggregator:
                nodes(job.nodes, job.wait_s)
                driver = Driver(
                    transport,
                    aggregator.call,
                    FarCountersign(job.run, http_call(job.countersigner)),
                    timeout_s=job.timeout_s,
                    told=told,
                )
                _rounds(job, driver, told, clock)
        except SealwrightError as error:
            told("failed", {"code": error.code, "stage": error.stage, "text": str(error)[:500]})
            raise
        told("ended", {"rounds": job.rounds})


def _rounds(
    job: Job, driver: Driver, told: Callable[[str, Mapping[str, Any]], None], clock: Callable[[], float]
) -> None:
    driver.enrol()
    attested = clock()
    for _ in range(job.rounds):
        if clock() - attested >= job.attest_s:
            driver.enrol()
            attested = clock()
        done = driver.round()
        told("seconds", {"round": done.number, **asdict(done.seconds), "dropped": dict(done.dropped)})


def http_call(url: str) -> Callable[[Call], Call]:
    """Return what calls the countersigner of a broker. It is believed by its signatures, not by where it is."""
    import httpx2

    def call(asked: Call) -> Call:
        try:
            answer = httpx2.post(
                f"{url}{TRAINING_PATH}/countersign", content=asked.encode(), timeout=60, trust_env=False
            )
        except httpx2.HTTPError as exc:
            raise _unreachable(type(exc).__name__) from exc
        if answer.status_code != 200:
            raise _unreachable(str(answer.status_code))
        return Call.parse(answer.content)

    return call


def _unreachable(why: str) -> UnavailableError:
    return UnavailableError(
        f"the broker does not countersign ({why}): does it serve, with the extra `training`?",
        code="broker-unreachable",
        stage="broker",
    )
