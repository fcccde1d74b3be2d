"""What ends an enclave that runs: a lease that cannot be renewed, and a key that was revoked."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx2
import pytest
from tests.story.support import TESTED, wait_until_stopped

import sealwright
from sealwright.cli._attack import Refusal, Target, of_command, of_start
from sealwright.cli._stand import KID, run
from sealwright.protocol.attestation import GATEWAY_PATH

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WEIGHTS = 80e6  # bytes of the model that an answer touches, at least


def test_an_enclave_stops_when_its_lease_ends(short_lived: Target) -> None:
    target, stand = short_lived, short_lived.stand
    pid = int(target.enclave.said()["pid"])
    held = _resident(pid)
    headers = {"authorization": f"Bearer {target.credential}"}
    with sealwright.http_client(trust=target.trust) as client:
        assert client.get(f"{target.enclave.url}/v1/models", headers=headers).status_code == 200
        os.kill(stand.broker.process.pid, signal.SIGSTOP)  # it neither renews nor refuses
        try:
            code = wait_until_stopped(target.enclave)
            assert Refusal("enclave", code, 13) == TESTED["the broker unreachable until the lease ends"][0]
            said = target.enclave.log.read_text()
            assert "tenant-stopped tenant=hospital code=lease-ended" in said
            assert "stopped code=lease-ended" in said
            assert _resident(pid) < held - WEIGHTS  # engine and model are gone; the process says why
            time.sleep(2)  # two clocks, both to the second
            refused = client.get(f"{target.enclave.url}/v1/models", headers=headers)
            assert (refused.status_code, refused.headers["x-should-retry"]) == (403, "false")
            assert refused.json()["error"]["code"] == "attestation-unavailable"
            assert "lease-ended" in refused.json()["error"]["message"]
            asked = httpx2.post(f"{target.enclave.url}{GATEWAY_PATH}", content=b"x")
            assert (asked.status_code, asked.json()["code"]) == (503, "lease-ended")
        finally:
            os.kill(stand.broker.process.pid, signal.SIGCONT)
    assert target.enclave.stop() == 0


def _resident(pid: int) -> int:
    """Bytes of memory that a process and its descendants hold, shared pages counted for each."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmRSS:")), "VmRSS: 0 kB")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(line.split()[1]) * 1024 + sum(_resident(int(child)) for child in children)


def test_a_client_refuses_an_ended_lease_on_its_own_clock(short_lived: Target) -> None:
    target = short_lived
    args = ("verify", target.bundle, "--trust", target.trust, "--nonce", target.nonce)
    refusal = of_command(run(*args, "--at", "2100-01-01T00:00:00Z"), "client")
    assert refusal.exit_code != 0
    assert of_command(run(*args), "client") == TESTED["an ended lease, handed out on"][0]


def test_an_enclave_stops_when_its_key_is_revoked(short_lived: Target) -> None:
    stand = short_lived.stand
    server = stand.start_enclave(stand.enclave_config, name="revoked-later")
    server.wait_for()
    stand.do("broker", "key", "revoke", KID, *stand.admin)
    code = wait_until_stopped(server)
    assert Refusal("enclave", code, 13) == TESTED["serving on after the key was revoked"][0]
    assert "lease-not-renewed tenant=hospital code=key-revoked" in server.log.read_text()
    server.stop()
    again = stand.start_enclave(stand.enclave_config, name="revoked-before")
    assert of_start(again, "broker") == TESTED["a new start after the key was revoked"][0]
    assert _people_read(again.log.read_text()) == [
        "error: the broker refused (401); its owner sees why: sealwright broker decisions list  [key-revoked]",
        "stage: broker",
        "more:  sealwright explain key-revoked",
    ]


def _people_read(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith(("error:", "stage:", "more:"))]
