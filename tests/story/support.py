"""The attacks that only the tests run, and how the documentation shows all of them."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2

from sealwright.cli._attack import Refusal
from sealwright.cli._attacks import ATTACKS
from sealwright.cli._stand import Server

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "reference" / "attacks.md"

# title -> refusal, and the test that shows it
TESTED = {
    "the broker unreachable until the lease ends": (
        Refusal("enclave", "lease-ended", 13),
        "test_story_lease.py::test_an_enclave_stops_when_its_lease_ends",
    ),
    "an ended lease, handed out on": (
        Refusal("client", "lease-ended", 13),
        "test_story_lease.py::test_a_client_refuses_an_ended_lease_on_its_own_clock",
    ),
    "the host's clock turned back under a lease": (
        Refusal("enclave", "lease-ended", 13),
        "test_story_clock.py::test_a_lease_ends_whatever_the_wall_clock_says",
    ),
    "serving on after the key was revoked": (
        Refusal("enclave", "key-revoked", 13),
        "test_story_lease.py::test_an_enclave_stops_when_its_key_is_revoked",
    ),
    "a new start after the key was revoked": (
        Refusal("broker", "key-revoked", 13),
        "test_story_lease.py::test_an_enclave_stops_when_its_key_is_revoked",
    ),
    "a crash made for its core dump": (
        Refusal("kernel", "no core", 0),
        "test_story_attacks.py::test_a_crash_leaves_no_core",
    ),
    "a search for what was secret": (
        Refusal("nobody", "nothing found", 0),
        "test_story_attacks.py::test_nothing_secret_was_written_or_sent",
    ),
}


def rows() -> list[str]:
    """Return the table of the documentation."""
    by_demo = [(attack.title, attack.documented, "`sealwright demo`") for attack in ATTACKS]
    by_tests = [(title, refusal, f"`tests/story/{test}`") for title, (refusal, test) in TESTED.items()]
    head = ["| attack | refused by | code | exit | shown by |", "|---|---|---|---|---|"]
    return head + [
        f"| {title} | {refusal.by} | `{refusal.code}` | {refusal.exit_code or '–'} | {shown} |"
        for title, refusal, shown in by_demo + by_tests
    ]


def wait_until_stopped(server: Server, *, seconds: float = 120) -> str:
    """Return the code with which an enclave says that it has stopped."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = httpx2.get(f"{server.url}/healthz", timeout=10)
        if answer.status_code == 503:
            return answer.text.removeprefix("stopped: ").strip()
        time.sleep(0.2)
    raise AssertionError(f"{server.log.name}: still serving")
