"""Calls in bytes, and over real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwright.errors import MessageFormatError, UnavailableError, VerificationError
from sealwright.training.agent import wire
from sealwright.training.agent.wire import AgentClient, AgentRefusal, AgentServer, Call, listen, unwrapped

SAID = st.dictionaries(st.text(max_size=8), st.integers(0, 2**53 - 1) | st.text(max_size=8), max_size=4)


@given(name=st.text(max_size=12), said=SAID, parts=st.lists(st.binary(max_size=40), max_size=5))
def test_a_call_is_read_as_it_was_written(name: str, said: dict[str, object], parts: list[bytes]) -> None:
    call = Call.parse(Call(name, said, parts).encode())
    assert (call.name, dict(call.said), [bytes(part) for part in call.parts]) == (name, said, parts)


@given(raw=st.binary(max_size=200))
def test_anything_else_is_malformed(raw: bytes) -> None:
    with pytest.raises(MessageFormatError):
        Call.parse(raw)


@given(at=st.integers(0, 200), cut=st.booleans())
def test_a_call_cut_or_longer_is_malformed(at: int, cut: bool) -> None:
    raw = Call("train", {"a": 1}, [b"one", b"two"]).encode()
    with pytest.raises(MessageFormatError):
        Call.parse(raw[: at % len(raw)] if cut else raw + bytes(at + 1))


@pytest.mark.parametrize(
    "head",
    [
        b"[]",
        b"{}",
        b'{"call":"a","parts":[-1],"said":{}}',
        b'{"call":"a","parts":[true],"said":{}}',
        b'{"call":"a","parts":{},"said":{}}',
        b'{"call":1,"parts":[],"said":{}}',
        b'{"call":"a","parts":[],"said":[]}',
        b'{"call":"a","more":1,"parts":[],"said":{}}',
        b'{"call":"a","parts":[17179869185],"said":{}}',
    ],
)
def test_heads_that_are_none(head: bytes) -> None:
    with pytest.raises(MessageFormatError):
        Call.parse(struct.pack(">I", len(head)) + head)


def test_bounds() -> None:
    with pytest.raises(MessageFormatError):
        Call("a", {"x": "y" * wire.MAX_HEAD}).encode()
    with pytest.raises(MessageFormatError):
        Call.parse(Call("a", {}, [b""] * (wire.MAX_PARTS + 1)).encode())


class Echo:
    """An agent that gives back what it gets, or refuses."""

    def handle(self, call: Call) -> Call:
        if call.name == "refuse":
            raise VerificationError("no, and why", code="bad-signature", stage="masked")
        return Call("ok", call.said, call.parts)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "agent.sock"
    server = AgentServer(listen(path), Echo())
    thread = threading.Thread(target=server.run)
    thread.start()
    yield path
    server.close()
    thread.join(5)
    assert not thread.is_alive()


def test_calls_over_a_socket(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    big = os.urandom(3 << 20)
    with AgentClient(path) as client:
        for _ in range(2):
            answer = unwrapped(client.call(Call("echo", {"n": 1}, [big, b""])))
            assert [bytes(part) for part in answer.parts] == [big, b""]
        with pytest.raises(AgentRefusal) as caught:
            unwrapped(client.call(Call("refuse")))
    assert (caught.value.code, caught.value.stage, str(caught.value)) == (
        "bad-signature",
        "masked",
        "no, and why",
    )


def test_nonsense_ends_its_connection_and_no_other(path: Path) -> None:
    for raw in (b"\xff" * 8, struct.pack(">I", 2) + b"{}", b"\0\0"):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            peer.sendall(raw)
            with contextlib.suppress(OSError):  # it has hung up already
                peer.shutdown(socket.SHUT_WR)
                assert peer.recv(1) == b""
    with AgentClient(path) as client:
        assert client.call(Call("echo")).name == "ok"


def test_another_user_is_not_answered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_is_ours", lambda _: False)
    with AgentClient(path) as client, pytest.raises(UnavailableError) as caught:
        client.call(Call("echo"))
    assert caught.value.code == "agent-unreachable"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_the_kernel_says_who_calls(path: Path) -> None:
    for parent in (path.parent, path.parent.parent, path.parent.parent.parent):
        parent.chmod(0o755)
    path.chmod(0o666)  # even where the mode is lost
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            with AgentClient(path) as client:
                client.call(Call("echo"))
            os._exit(1)
        except UnavailableError:
            os._exit(0)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    # Root's own agent answers root alone: the caller is neither this user nor root.
    assert os.waitstatus_to_exitcode(status) == 0


def test_no_agent_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        AgentClient(tmp_path / "nobody.sock")
    assert caught.value.code == "agent-unreachable"
    with pytest.raises(UnavailableError) as caught:
        listen(tmp_path / "no" / "folder.sock")
    assert caught.value.code == "cannot-listen"


@pytest.mark.parametrize(
    "call", [Call("ok", {"x": 1}), Call("ok", {"x": True}), Call("ok", {"x": -1}), Call("ok", {"x": ["a"]})]
)
def test_members_are_of_their_kind(call: Call) -> None:
    with pytest.raises(MessageFormatError):
        call.text("x")
    with pytest.raises(MessageFormatError):
        call.texts("x")
    with pytest.raises(MessageFormatError):
        call.part()
    if call.said["x"] != 1 or call.said["x"] is True:
        with pytest.raises(MessageFormatError):
            call.number("x")
    with pytest.raises(MessageFormatError):
        unwrapped(Call("else"))
