"""Parts of the start by themselves: swap, filters, users, the sealed place where no mount is allowed."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sealwright.attester.quoter import observe, seal, seccomp, state, swap, users
from sealwright.attester.quoter.image import ImageFile
from sealwright.attester.quoter.observe import Seen, claims_of
from sealwright.attester.quoter.peers import allowed_peers, connection
from sealwright.errors import UnavailableError

HEADER = "Filename\tType\tSize\tUsed\tPriority\n"


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """A machine with swap, whose process is in cgroup /user/me."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroups / "user/me").mkdir(parents=True)
    (proc / "swaps").write_text(HEADER + "/dev/sda2 partition 1 0 -2\n")
    (proc / "self/cgroup").write_text("1:memory:/old\n0::/user/me\n")
    return proc, cgroups


def test_a_machine_without_swap(machine: tuple[Path, Path]) -> None:
    (machine[0] / "swaps").write_text(HEADER)
    assert swap.guard(*machine) == "none"


def test_a_machine_that_does_not_say_whether_it_swaps_swaps(machine: tuple[Path, Path]) -> None:
    (machine[0] / "swaps").unlink()
    assert swap.machine_swaps(machine[0])


@pytest.mark.parametrize("group", ["user/me", "user"])
def test_a_cgroup_without_swap(machine: tuple[Path, Path], group: str) -> None:
    (machine[1] / group / "memory.swap.max").write_text("0\n")
    assert swap.guard(*machine) == "cgroup"


@pytest.mark.parametrize("limit", ["max", "1", ""])
def test_a_cgroup_with_some_swap_is_none(machine: tuple[Path, Path], limit: str) -> None:
    (machine[1] / "user/me/memory.swap.max").write_text(limit)
    assert not swap.in_group_without_swap(*machine)


def test_root_enters_a_cgroup_of_its_own(machine: tuple[Path, Path]) -> None:
    assert swap.guard(*machine) == "cgroup"  # the stand-in takes what is written, as cgroup v2 does
    group = machine[1] / f"sealwright-{os.getpid()}"
    assert (group / "memory.swap.max").read_text() == "0"
    assert (group / "cgroup.procs").read_text() == str(os.getpid())


def test_without_a_cgroup_memory_must_be_locked(machine: tuple[Path, Path]) -> None:
    assert swap.guard(machine[0], machine[1] / "nowhere") == "mlock"


DONE = {"namespaces": True, "landlock": True, "seccomp": True}
STATUS = {"NoNewPrivs": "1", "TracerPid": "0", "Seccomp": "2", "VmLck": "0 kB"}


def seen(status: Mapping[str, str] | None = None, **other: object) -> Seen:
    fields = {
        "uid": 7, "start_time": 1, "status": STATUS | dict(status or {}), "not_dumpable": True,
        "core_limit": "0", "own_network": True,
    }  # fmt: skip
    return Seen(**(fields | other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        seen({"NoNewPrivs": "0"}),
        seen({"TracerPid": "12"}),
        seen({"Seccomp": "0"}),
        seen(not_dumpable=False),
        seen(core_limit="unlimited"),
        seen(own_network=False),
    ],
)
def test_a_workload_that_looks_wrong_from_outside_is_not_vouched_for(wrong: Seen) -> None:
    claims_of(seen(), {}, DONE, guard="none", sealed_root="tmpfs")
    with pytest.raises(UnavailableError) as caught:
        claims_of(wrong, {}, DONE, guard="none", sealed_root="tmpfs")
    assert caught.value.code == "no-hardening"


def test_what_is_missing_is_a_claim() -> None:
    nothing = {"namespaces": False, "landlock": False, "seccomp": False}
    claims = claims_of(seen({"Seccomp": "0"}), {}, nothing, guard="mlock", sealed_root="directory")
    assert (claims.filesystem, claims.seccomp, claims.network) == ("open", "none", "open")
    assert (claims.swap, claims.sealed_root) == ("reachable", "directory")


def test_locked_memory_must_be_seen() -> None:
    stated = {"swap": "mlock"}
    with pytest.raises(UnavailableError):
        claims_of(seen(), stated, DONE, guard="mlock", sealed_root="tmpfs")
    locked = seen({"VmLck": "8192 kB"})
    assert claims_of(locked, stated, DONE, guard="mlock", sealed_root="tmpfs").swap == "mlock"


def test_the_namespace_of_an_ordinary_user_is_what_the_measured_code_states() -> None:
    done = DONE | {"namespaces": False}
    outside = seen(own_network=None)
    assert (
        claims_of(outside, {"network": "namespace"}, done, guard="none", sealed_root="tmpfs").network
        == "namespace"
    )
    assert (
        claims_of(outside, {"network": "seccomp"}, done, guard="none", sealed_root="tmpfs").network
        == "seccomp"
    )


def test_debuggable_leftovers_are_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "_suid_dumpable", lambda: "1")
    assert claims_of(seen(), {}, DONE, guard="none", sealed_root="tmpfs").dumpable == "late"


def test_a_traced_quoter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    observe.require_untraced()
    monkeypatch.setattr(Path, "read_text", lambda *_: "TracerPid:\t4\n")
    with pytest.raises(UnavailableError) as caught:
        observe.require_untraced()
    assert caught.value.code == "quoter-traced"


def _filter(which: str) -> bytes:
    return seccomp.engine(7) if which == "engine" else bytes(getattr(seccomp, which)())


@pytest.mark.parametrize("machine_name", ["x86_64", "aarch64"])
@pytest.mark.parametrize("which", ["start", "workload", "enclave", "zygote", "engine"])
def test_every_filter_is_a_program_the_kernel_takes(
    which: str, machine_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "machine", lambda: machine_name)
    program = _filter(which)
    lines = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    assert 4 < len(lines) <= 4096
    assert lines[-1] == (0x06, 0, 0, 0x7FFF0000)
    for at, (code, if_true, if_false, _) in enumerate(lines):
        if code & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(lines)


def run_filter(program: bytes, number: int, *args: int, arch: int = 0xC000003E) -> int:
    """Interpret a filter on one system call, as the kernel would; returns its verdict."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *(args + (0,) * 6)[:6])
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += if_true if holds else if_false


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize(
    ("which", "call", "verdict"),
    [
        ("start", (101,), EPERM),  # ptrace
        ("start", (41, 1), ALLOW),  # socket(AF_UNIX)
        ("start", (41, 2), EPERM),  # socket(AF_INET)
        ("start", (41, 16), EPERM),  # socket(AF_NETLINK)
        ("start", (59,), ALLOW),  # execve, once more
        ("workload", (59,), EPERM),
        ("workload", (322,), EPERM),  # execveat
        ("workload", (435,), ENOSYS),  # clone3
        ("workload", (56, 0x11), ALLOW),  # clone, as fork does
        ("workload", (56, 0x10000011), EPERM),  # clone(CLONE_NEWUSER)
        ("workload", (157, 4, 1), EPERM),  # prctl(PR_SET_DUMPABLE, 1)
        ("workload", (157, 4, 0), ALLOW),
        ("workload", (157, 1, 9), ALLOW),  # prctl(PR_SET_PDEATHSIG)
        ("enclave", (41, 1), EPERM),
        ("enclave", (42,), EPERM),  # connect
        ("enclave", (53, 1), ALLOW),  # socketpair
        ("enclave", (288,), ALLOW),  # accept4
        ("zygote", (41, 1, 0x80001), ALLOW),  # socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        ("zygote", (41, 1, 0x80002), EPERM),  # SOCK_DGRAM can send to anyone
        ("zygote", (42,), EPERM),
        ("zygote", (157, 1, 0), EPERM),  # prctl(PR_SET_PDEATHSIG, none)
        ("zygote", (157, 1, 9), ALLOW),
        ("zygote", (56, 0x11), ALLOW),  # it forks engines
        ("engine", (56, 0x11), EPERM),
        ("engine", (56, 0x3D0F00), ALLOW),  # clone, as pthread_create does
        ("engine", (57,), EPERM),  # fork
        ("engine", (62, 7), EPERM),  # kill
        ("engine", (234, 7), ALLOW),  # tgkill of itself: abort
        ("engine", (234, 8), EPERM),
        ("engine", (424,), EPERM),  # pidfd_send_signal
        ("start", (53, 1, 0x80001), ALLOW),  # socketpair(SOCK_STREAM | SOCK_CLOEXEC)
        ("start", (53, 1, 5), ALLOW),
        ("start", (53, 1, 2), EPERM),
        ("start", (53, 1, 3), EPERM),  # SOCK_RAW of AF_UNIX is a datagram socket
        ("start", (16, 0, 0x5412), EPERM),  # TIOCSTI
        ("start", (16, 0, 0x5401), ALLOW),
        ("start", (72, 0, 8), EPERM),  # F_SETOWN
        ("start", (72, 0, 1033), ALLOW),  # F_ADD_SEALS
        ("start", (302, 0), ALLOW),  # prlimit64 of itself
        ("start", (302, 7), EPERM),
        ("start", (0x40000000 | 101,), KILL),  # x32
    ],
)
def test_verdicts_on_x86_64(
    which: str, call: tuple[int, ...], verdict: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "machine", lambda: "x86_64")
    assert run_filter(_filter(which), *call) == verdict


def test_calls_of_another_architecture_end_the_process() -> None:
    assert run_filter(seccomp.start(), 1, arch=0x40000003) == KILL


def test_where_nothing_can_be_mounted_the_sealed_place_is_a_private_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "_may_mount", lambda: False)
    monkeypatch.setattr(seal, "_user_namespace", lambda: None)
    monkeypatch.setattr(seal, "_mount", lambda _: (_ for _ in ()).throw(OSError(1, "no")))
    files = [ImageFile(path="/lib64/ld.so", mode=0o111, content=b"x")]
    made = seal.seal(files, uid=os.geteuid(), gid=os.getegid(), state=tmp_path)
    assert made.kind == "directory"
    assert made.directory is not None
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.directory / "root/lib64/ld.so").stat().st_mode) == 0o111
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_a_sealed_tmpfs_takes_no_more_writes(tmp_path: Path) -> None:
    files = [ImageFile(path="/a/b/c.py", mode=0o444, content=b"x")]
    made = seal.seal(files, uid=os.geteuid(), gid=os.getegid(), state=tmp_path)
    if made.kind != "tmpfs":
        pytest.skip("no mount is allowed here")
    with pytest.raises(OSError, match="Read-only"):
        os.open("a/b/new", os.O_WRONLY | os.O_CREAT, dir_fd=made.root_fd)
    with pytest.raises(OSError, match="Read-only"):
        os.unlink("a/b/c.py", dir_fd=made.root_fd)
    made.close()


def test_a_strict_umask_of_the_caller_closes_nothing_to_the_workload(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files = [ImageFile(path="/a/b/c.py", mode=0o444, content=b"x")]
        made = seal.seal(files, uid=os.geteuid(), gid=os.getegid(), state=tmp_path)
    finally:
        os.umask(before)
    for path, mode in (("a", 0o755), ("a/b", 0o755), ("a/b/c.py", 0o444)):
        assert stat.S_IMODE(os.stat(path, dir_fd=made.root_fd).st_mode) == mode
    made.close()


def _ids_of(pid: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: pid)
        patched.setattr(users, "_in_use", lambda: iter(()))
        patched.setattr(users, "_has_account", lambda _: False)
        return users.own_ids()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives ids away")
def test_ids_have_no_account_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, quoter = users.own_ids()
    assert len({0, workload, quoter}) == 3
    monkeypatch.setattr(users, "_mapped", lambda _: False)
    pairs = [_ids_of(pid, monkeypatch) for pid in range(1, 4001)]
    assert not {workload for workload, _ in pairs} & {quoter for _, quoter in pairs}
    near = pairs[0]
    assert len({0, *near}) == 3
    assert max(near) < 65_000
    assert not any(users._has_account(uid) for uid in (*near, workload, quoter))


def test_peers_come_from_the_enclave_config() -> None:
    config = (
        b'{"brokers":[{"root":"x","url":"https://B.example/kbs"},{"url":"http://c:8080"}],"egress":["d:1"]}'
    )
    assert allowed_peers(config) == {("b.example", 443), ("c", 8080), ("d", 1)}


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", b"{}", b'{"brokers":[1]}', b'{"brokers":1}', b'{"egress":["x"]}', b'{"egress":["x:99999"]}'],
)
def test_a_config_without_peers_allows_none(config: bytes) -> None:
    assert allowed_peers(config) == frozenset()


REBOUND = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("address", REBOUND)
def test_a_name_does_not_lead_to_this_machine_or_its_metadata(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        found = [(family, socket.SOCK_STREAM, 6, "", (address, port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(UnavailableError) as caught:
            connection("broker.example", port, frozenset({("broker.example", port)}))
        assert caught.value.code == "peer-unreachable"
        assert "no address that it may have" in str(caught.value.__cause__)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_config_may_name_this_machine(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connection(host, port, frozenset({(host, port)})).close()


def test_the_quoting_root_is_made_once_and_private(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    first = state.quoting_root(tmp_path / "state", now)
    again = state.quoting_root(tmp_path / "state", now)
    assert first.root == again.root
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in (tmp_path / "state").rglob("*"))


@pytest.mark.parametrize("name", ["root.key", "root.crt", "revoked"])
def test_a_damaged_quoting_root_is_refused(tmp_path: Path, name: str) -> None:
    state.quoting_root(tmp_path / "state", datetime.now(UTC))
    (tmp_path / "state/quoter" / name).write_bytes(b"damaged")
    with pytest.raises(UnavailableError) as caught:
        state.quoting_root(tmp_path / "state", datetime.now(UTC))
    assert caught.value.code == "quoter-state"


def test_the_state_directory_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEALWRIGHT_STATE", str(tmp_path))
    assert state.default_state() == tmp_path
