"""The compose file: of the compose specification's form, hardened, and open to this machine alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sealwright.cli._commands import load

FILE = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]


def substituted(text: str) -> str:
    """Return `text` with each `${NAME:-default}` replaced by its default, as compose does first."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def check(text: str) -> None:
    """Raise unless `text` is of the compose specification's form, as wheel compose-spec reads it."""
    compose = pytest.importorskip("compose_spec", reason="wheel compose-spec is not installed")
    options = compose.PyOptions()
    options.apply_merge = True
    made = options.from_yaml(substituted(text))
    made.validate()
    made.to_spec()


def test_it_is_of_the_specification() -> None:
    check(FILE.read_text())


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("cap_drop: [ALL]", "cap_drop: 5"),
        ("networks: [inside, front]", "networks: [elsewhere]"),
        ("interval: 5s", "interval: soon"),
        ("stop_grace_period: 60s", "stop_grace_periods: 60s"),
    ],
)
def test_the_check_can_fail(good: str, bad: str) -> None:
    text = FILE.read_text()
    assert good in text
    check(text)
    with pytest.raises(Exception, match=r".+"):  # a type of its own for each fault
        check(text.replace(good, bad))


def test_docker_reads_it() -> None:
    command = ["docker", "compose", "--file", str(FILE), "config", "--quiet"]
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker has no compose")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_as_little_as_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith(("0", "root"))
    assert service["mem_limit"] == service["memswap_limit"]
    assert not {"privileged", "devices", "cap_add", "environment", "env_file", "pid", "ipc"} & service.keys()
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    for volume in service.get("volumes", []):
        if isinstance(volume, dict) and volume["target"] != "/run/sealwright":
            assert volume["read_only"] is True


@pytest.mark.parametrize("name", SERVICES)
def test_its_command_exists(name: str) -> None:
    words = [substituted(word) for word in SERVICES[name]["command"]]
    command: Any = load(words.pop(0))
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_what_keeps_running_is_watched_and_attested_before_it_is_used() -> None:
    for name in ("broker", "enclave"):
        assert "/readyz" in SERVICES[name]["healthcheck"]["test"][-1]
    assert SERVICES["enclave"]["depends_on"] == {"broker": {"condition": "service_healthy"}}
    assert SERVICES["connect"]["depends_on"] == {"enclave": {"condition": "service_healthy"}}
