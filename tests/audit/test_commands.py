"""`verify`, `receipt`, `trust` and `attest` on files: what is printed, and how they end."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.audit.support import Audited
from tests.client.support import Served, fake_enclave
from tests.nvidia.support import NONCE, nvidia

from sealwright.cli import main
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.testing.gateway import FakeServer


class Files:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = Audited()
        world = self.world
        self.trust = self.write("t.trust", world.enclave.trust_yaml())
        self.bundle = self.write("bundle.json", world.bundle.encode())
        self.evidence = self.write("evidence.json", world.enclave.quote(b"n" * 32).encode())
        self.receipt = self.write("receipt.json", world.file().encode())
        self.policy = self.write("p.yaml", _policy(world))
        self.nonce = (b"n" * 32).hex()

    def write(self, name: str, data: bytes) -> str:
        path = self.root / name
        path.write_bytes(data)
        return str(path)


def _policy(world: Audited) -> bytes:
    kept = ("version", "profile", "require_hardware", "created", "expires", "platforms", "config")
    trust = world.enclave.trust()
    document = {"format": "sealwright-policy/v1", **{name: trust[name] for name in kept}}
    return yaml.safe_dump(document).encode()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    code = main([*args, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_verify_says_first_of_all_that_it_is_not_confidential(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (
        [files.evidence],
        [files.bundle, "--nonce", files.nonce],
        [files.bundle, "--trust", files.trust, "--nonce", files.nonce],
        [files.receipt],
        [files.receipt, "--trust", files.trust],
    ):
        code, said = run(capsys, "verify", *args)
        assert code == 0, said
        assert list(said)[:2] == ["confidential", "kind"]
        assert said["confidential"] is False
        assert main(["verify", *args]) == 0
        assert capsys.readouterr().out.startswith("confidential  NO")


def test_verify_without_trust_says_what_was_not_checked(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = run(capsys, "verify", files.evidence)
    assert said["allowed"] is None
    text = " ".join(said["not_checked"])
    assert "freshness" in text
    assert "no trust file" in text
    _, said = run(capsys, "verify", files.receipt)
    assert any("log" in item for item in said["not_checked"])
    _, said = run(capsys, "verify", files.bundle, "--trust", files.trust, "--nonce", files.nonce)
    assert said["allowed"] is True
    assert said["not_checked"] == []
    _, said = run(capsys, "verify", files.bundle, "--policy", files.policy)
    assert said["allowed"] is True
    assert any("lease" in item for item in said["not_checked"])


def test_what_stands_beside_the_evidence_of_a_bundle_is_not_passed_over(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    device = nvidia().evidence(nvidia().device(), NONCE).to_json()
    vtpm = {"type": "tpm", "evidence": b64url(b"any"), "endorsements": []}
    for part, word in (({"devices": [device]}, "devices"), ({"vtpm": vtpm}, "vTPM")):
        evidence = files.world.bundle.evidence | part
        bundle = files.world.bundle.model_copy(update={"evidence": evidence})
        file = files.write("with.json", bundle.encode())
        code, said = run(capsys, "verify", file)
        assert code == 0, said
        assert any(word in item for item in said["not_checked"])
    bundle = files.world.bundle.model_copy(
        update={"evidence": files.world.bundle.evidence | {"devices": [device]}}
    )
    file = files.write("with.json", bundle.encode())
    code, said = run(capsys, "verify", file, "--policy", files.policy)
    assert (code, said["error"]["code"]) == (10, "unknown-root")  # the fake NVIDIA is nobody's root here


def test_verify_refuses_with_the_documented_exit_codes(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    world = files.world
    late = rfc3339(world.clock.at + timedelta(minutes=11))
    other = files.write("other.trust", world.enclave.trust_yaml(config={"digests": ["00" * 32]}))
    junk = files.write("junk", b"no json")
    strange = files.write("strange", b'{"format":"x"}')
    for code, name, args in (
        (65, "unknown-format", [junk]),
        (65, "unknown-format", [strange]),
        (10, "report-data-mismatch", [files.evidence, "--report-data", "00" * 64]),
        (10, "report-data-mismatch", [files.bundle, "--trust", files.trust, "--nonce", "00" * 32]),
        (13, "lease-ended", [files.bundle, "--trust", files.trust, "--nonce", files.nonce, "--at", late]),
        (12, "policy-expired", [files.evidence, "--policy", files.policy, "--at", _days(world, 0.99)]),
        (11, "config-not-allowed", [files.bundle, "--trust", other, "--nonce", files.nonce]),
        (11, "hardware-required", [files.evidence, "--require-hardware"]),
        (2, "usage", [files.bundle, "--trust", files.trust]),
        (2, "usage", [files.evidence, "--trust", files.trust, "--policy", files.policy]),
        (2, "usage", [files.bundle, "--nonce", "zz"]),
    ):
        ended, said = run(capsys, "verify", *args)
        assert (ended, said["error"]["code"]) == (code, name)


def _days(world: Audited, days: float) -> str:
    return rfc3339(world.clock.at + timedelta(days=days))


def test_receipt_show_verify_and_open(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "receipt", "show", files.receipt)
    assert (code, said["verified"]) == (0, False)
    code, said = run(capsys, "receipt", "verify", files.receipt, "--trust", files.trust, "--open", "model")
    assert code == 0
    assert next(iter(said)) == "confidential"
    assert said["verified"] is True
    assert said["opened"] == {"model": "echo"}
    assert said["log"]["index"] == 0
    code, said = run(capsys, "receipt", "verify", files.receipt, "--trust", files.trust, "--open", "prompt")
    assert code == 2
    main(["receipt", "verify", files.receipt, "--trust", files.trust, "--no-log"])
    assert "log           NOT CHECKED" in capsys.readouterr().out


def test_a_missing_proof_is_fetched_and_then_verified(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    world = files.world
    bare = files.write("bare.json", world.file(proof=False).encode())
    code, said = run(capsys, "receipt", "verify", bare, "--trust", files.trust)
    assert (code, said["error"]["code"]) == (12, "proof-missing")

    async def proof(request: Request) -> Response:
        found = world.enclave.proof(request.path_params["entry"])
        return PlainTextResponse(found or b"", 200 if found else 404)

    with Served(Starlette(routes=[Route("/sealwright/v1/proofs/{entry}", proof)])) as served:
        code, said = run(capsys, "receipt", "proof", bare, "--url", served.url)
        assert (code, said["verified"]) == (0, False)
        world.enclave._entries.clear()
        code, said = run(capsys, "receipt", "proof", bare, "--url", served.url)
        assert (code, said["error"]["code"]) == (12, "proof-missing")
    code, said = run(capsys, "receipt", "verify", bare, "--trust", files.trust)
    assert code == 0
    code, said = run(capsys, "receipt", "proof", bare, "--url", served.url)
    assert (code, said["error"]["code"]) == (69, "log-unreachable")


@pytest.fixture
def live() -> Iterator[tuple[FakeServer, str]]:
    server = FakeServer(fake_enclave(lambda: datetime.now(UTC)))
    with Served(server.app) as served:
        yield server, served.url


def test_attest_then_trust_what_was_looked_at(
    live: tuple[FakeServer, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server, url = live
    bundle, trust = str(tmp_path / "b.json"), str(tmp_path / "t.trust")
    code, said = run(capsys, "attest", "--url", url, "--tenant", "test", "--out", bundle)
    assert code == 0
    assert said["allowed"] is None
    code, _ = run(capsys, "trust", "new", "--out", trust, "--tenant", "test", "--from-bundle", bundle)
    assert code == 0
    assert stat.S_IMODE(Path(trust).stat().st_mode) == 0o600
    code, _ = run(capsys, "trust", "show", trust)
    assert code == 0
    code, said = run(capsys, "attest", "--url", url, "--trust", trust, "--out", bundle)
    assert (code, said["allowed"]) == (0, True)
    code, _ = run(capsys, "verify", bundle, "--trust", trust, "--nonce", said["nonce"])
    assert code == 0
    server.enclave.code = b"\0" * 32
    code, said = run(capsys, "attest", "--url", url, "--trust", trust)
    assert (code, said["error"]["code"]) == (11, "code-not-allowed")
    code, said = run(capsys, "attest", "--url", "http://127.0.0.1:9", "--trust", trust)
    assert (code, said["error"]["code"]) == (69, "enclave-unreachable")


def test_trust_new_from_flags(files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    enclave = files.world.enclave
    out = tmp_path / "new.trust"
    measured = files.write("measure.json", json.dumps({"register0": enclave.code.hex()}).encode())
    args = [
        *("trust", "new", "--out", str(out), "--tenant", enclave.tenant),
        *("--root", enclave.platform.root_fingerprint.hex(), "--from-measurement", measured),
        *("--broker", b64url(enclave.broker.root_key), "--log-key", enclave.config.log.keys[0]),
        *("--manifest", "11" * 32, "--claim", "user=shared"),
    ]
    code, said = run(capsys, *args)
    assert code == 0
    assert said["trust"]["platforms"]["software"]["claims"] == {"user": ["shared"]}
    code, _ = run(capsys, "verify", files.bundle, "--trust", str(out), "--nonce", files.nonce)
    assert code == 0
    code, said = run(capsys, *args)  # never over an existing one
    assert (code, said["error"]["code"]) == (65, "unwritable-file")
    code, _ = run(capsys, "trust", "new", "--out", str(tmp_path / "x"), "--tenant", "t")
    assert code == 2
    code, said = run(capsys, *args[:3], str(tmp_path / "y"), *args[4:8], "--code", "zz")
    assert code == 65


def test_an_expired_trust_file_is_shown_as_such(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    past = datetime.now(UTC) - timedelta(hours=3)
    raw = files.world.enclave.trust_yaml(created=past, expires=past + timedelta(hours=1))
    code, said = run(capsys, "trust", "show", files.write("old", raw))
    assert (code, said["error"]["code"]) == (12, "policy-expired")
