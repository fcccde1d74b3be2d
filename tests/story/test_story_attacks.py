"""Every attack against the running system ends in the refusal that the documentation names."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.story.support import TESTED

from sealwright.cli._attack import Attack, Refusal, Target
from sealwright.cli._attacks import ATTACKS
from sealwright.cli._attacks_enclave import _break_in
from sealwright.cli._search import forms, search
from sealwright.cli.demo import everything, planted_secrets
from sealwright.errors import VerificationError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def planted(target: Target) -> dict[str, bytes]:
    """What must be found nowhere. Fetched first: later the broker has been stopped and started."""
    answer = _answer(target)
    return planted_secrets(target.stand, answer)


def _answer(target: Target) -> str:
    """A planted answer: what the model says to a planted question."""
    from openai import OpenAI

    import sealwright

    transport = sealwright.http_client(trust=target.trust)
    with OpenAI(
        base_url=f"{target.relay.url}/v1", api_key=target.credential, http_client=transport
    ) as client:
        made = client.chat.completions.create(
            model="smollm2-135m-instruct",
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=32,
            temperature=0,
        )
    return made.choices[0].message.content or ""


PROMPT = "The planted patient of ward three: what does a tulip look like?"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.attempt.__name__)
def test_attack(attack: Attack, target: Target, planted: dict[str, bytes]) -> None:
    assert attack.run(target) == attack.documented


def test_an_attack_that_succeeds_is_told(target: Target) -> None:
    documented = Refusal("client", "bad-signature", 10)
    attack = Attack("none at all", lambda _: Refusal("client", "another-code", 10), documented)
    with pytest.raises(VerificationError, match="none at all") as caught:
        attack.run(target)
    assert (caught.value.code, caught.value.exit_code) == ("attack-not-refused", 10)


def test_the_debugger_gets_into_what_nothing_guards() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert f"/proc/{process.pid}/mem" in _break_in(process.pid)
        process.kill()


def test_a_crash_leaves_no_core(target: Target, tmp_path: Path) -> None:
    assert _core_of_an_ordinary_crash(tmp_path), "this machine writes no cores: the test could not fail"
    pid = int(target.enclave.said()["pid"])
    engines = _children(pid)
    assert engines
    before = _cores(pid)
    for victim, number in ((engines[-1], signal.SIGSEGV), (pid, signal.SIGABRT)):
        os.kill(victim, number)
        time.sleep(0.5)
    assert target.enclave.process.wait(60) == 128 + signal.SIGABRT
    assert TESTED["a crash made for its core dump"][0].code == "no core"
    assert _cores(None) == before == set()


def _core_of_an_ordinary_crash(folder: Path) -> bool:
    """Whether a process that nothing protects leaves a core in its folder here; skips where cores go elsewhere."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")) or resource.getrlimit(resource.RLIMIT_CORE)[0] == 0:
        pytest.skip(f"cores of this machine go to {pattern!r}, or are forbidden from outside")
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"
    subprocess.run([sys.executable, "-c", crash], cwd=folder, check=False)
    return any(folder.glob("core*"))


_PLACES: set[Path] = set()


def _cores(pid: int | None) -> set[Path]:
    """Core files where the workload's could lie: its folder, ours, and the root of the machine."""
    if pid is not None:
        _PLACES.update({Path.cwd(), Path("/"), Path("/tmp")})
        # Of a process that is not dumpable only root may know the folder; it is the one it was started in.
        with contextlib.suppress(PermissionError):
            _PLACES.add(Path(f"/proc/{pid}/cwd").resolve())
    return {path for place in _PLACES for path in place.glob("core*") if path.is_file()}


def _children(pid: int) -> list[int]:
    """All descendants of a process, the youngest last."""
    found = []
    for name in Path(f"/proc/{pid}/task").iterdir():
        for child in (name / "children").read_text().split():
            found += [int(child), *_children(int(child))]
    return sorted(found)


def test_nothing_secret_was_written_or_sent(target: Target, planted: dict[str, bytes]) -> None:
    assert len(planted["the answer"]) >= 32
    secrets = {**planted, "the planted prompt": PROMPT.encode()}
    places = dict(everything(target))
    assert len(places["the wire before the enclave"]) > 20_000
    assert len(places["the wire before the broker"]) > 20_000
    assert places["enclave.log"]
    assert places["broker.log"]
    assert search(secrets, iter(places.items())) == []


@pytest.mark.parametrize("shift", range(3))
def test_the_search_finds_a_planted_secret(
    target: Target, planted: dict[str, bytes], tmp_path: Path, shift: int
) -> None:
    lead = b"x" * shift

    def places(secret: bytes) -> Iterator[tuple[str, bytes]]:
        around = lead + secret + b" and more"
        yield "raw", around
        yield "hex", around.hex().encode()
        yield "HEX", around.hex().upper().encode()
        yield "base64", base64.b64encode(around)
        yield "base64url", base64.urlsafe_b64encode(around)
        yield "json", json.dumps({"text": around.decode("utf-8", "replace")}).encode()

    secrets = {**planted, "text": 'Grüße von Station 3 — "streng" geheim'.encode()}
    for name, secret in secrets.items():
        found = search({name: secret}, places(secret))
        assert {hit.rsplit(" in ")[1] for hit in found} >= {name for name, _ in places(secret)}
        assert search({name: secret}, iter([("elsewhere", b"nothing of the kind " * 99)])) == []
    with pytest.raises(ValueError):
        forms(b"short")
    (target.stand.folder / "leak.log").write_bytes(b"oops " + secrets["the model's key"].hex().encode())
    try:
        assert search(planted, everything(target)) == ["the model's key (hex) in leak.log"]
    finally:
        (target.stand.folder / "leak.log").unlink()
