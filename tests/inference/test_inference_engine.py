"""The engine's process, channel and supervision, with a fake engine in a real zygote."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.inference.support import PARAMETERS, ask, close_others, fake_engine, model_fd

from sealwright.errors import MessageFormatError, UnavailableError
from sealwright.inference import engine as engine_module
from sealwright.inference import frames
from sealwright.inference.engine import Engine, EngineError
from sealwright.inference.frames import Kind
from sealwright.inference.zygote import Zygote


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start(fake_engine, confine=close_others)
    yield zygote
    zygote.close()


async def _started(zygote: Zygote, notes: list[str] | None = None) -> Engine:
    engine = Engine(zygote, model_fd(), PARAMETERS, note=(notes if notes is not None else []).append)
    await engine.start()
    return engine


async def _text(engine: Engine, prompt: str) -> str:
    out = ""
    async for event in engine.chat(ask(prompt)):
        choices = json.loads(event)["choices"]
        out += choices[0]["delta"].get("content", "") if choices else ""
    return out


async def test_streams_of_several_requests_do_not_mix(zygote: Zygote) -> None:
    engine = await _started(zygote)
    answers = await asyncio.gather(*(_text(engine, f"a{n} b{n} c{n}") for n in range(8)))
    assert answers == [f"a{n} b{n} c{n} " for n in range(8)]
    await engine.close()


async def test_cancel_frees_the_slot(zygote: Zygote) -> None:
    engine = await _started(zygote)
    for _ in range(3 * PARAMETERS.slots):
        stream = engine.chat(ask("FOREVER"))
        await anext(stream)
        await stream.aclose()
    assert await _text(engine, "still here") == "still here "
    await engine.close()


async def test_a_crash_fails_its_requests_and_a_new_engine_serves(zygote: Zygote) -> None:
    notes: list[str] = []
    engine = await _started(zygote, notes)
    other = asyncio.create_task(_text(engine, "FOREVER"))
    await asyncio.sleep(0.05)
    with pytest.raises(EngineError) as caught:
        await _text(engine, "one CRASH")
    assert caught.value.code == "engine-failed"
    with pytest.raises(EngineError):
        await other
    for _ in range(200):
        if "engine-started" in notes:
            break
        await asyncio.sleep(0.02)
    assert await _text(engine, "back again") == "back again "
    assert notes == ["engine-ended", "engine-started"]
    await engine.close()


async def test_refusals_carry_known_codes_only(zygote: Zygote) -> None:
    engine = await _started(zygote)
    for prompt, code in (("REFUSE", "engine-refused"), ("SECRETCODE", "engine-failed")):
        with pytest.raises(EngineError) as caught:
            await _text(engine, prompt)
        assert caught.value.code == code
        assert "tulip" not in str(caught.value)
    await engine.close()


async def test_a_model_that_does_not_load_is_said(zygote: Zygote) -> None:
    engine = Engine(zygote, model_fd(b"not a model"), PARAMETERS, note=print)
    with pytest.raises(UnavailableError) as caught:
        await engine.start()
    assert caught.value.code == "engine-load-failed"


async def test_an_engine_inherits_no_descriptor_of_the_enclave(zygote: Zygote) -> None:
    engine = await _started(zygote)
    listed = json.loads(await _text(engine, "FDS"))
    # Standard streams without a reader, the model, the channel, and the listing itself.
    assert len(listed) == 6
    await engine.close()


async def test_a_closed_engine_is_gone(zygote: Zygote) -> None:
    engine = await _started(zygote)
    pid = engine._process.pid  # type: ignore[union-attr]
    await engine.close()
    assert not os.path.exists(f"/proc/{pid}")
    with pytest.raises(EngineError, match="did not answer"):
        await _text(engine, "hello")


async def test_a_dead_zygote_is_said(zygote: Zygote) -> None:
    zygote.close()
    engine = Engine(zygote, model_fd(), PARAMETERS, note=print)
    with pytest.raises(UnavailableError) as caught:
        await engine.start()
    assert caught.value.code == "engine-unavailable"


def test_frames_are_bounded_and_known() -> None:
    raw = frames.encode(Kind.EVENT, 7, b"{}")
    head, body = raw[: frames.HEADER.size], raw[frames.HEADER.size :]
    assert frames.decode_header(head, limit=2) == (2, 7, Kind.EVENT)
    assert body == b"{}"
    for bad, limit in ((head, 1), (head[:-1] + b"\xff", 100)):
        with pytest.raises(MessageFormatError):
            frames.decode_header(bad, limit=limit)


async def test_an_engine_that_floods_is_ended(zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    engine = await _started(zygote, notes)
    monkeypatch.setattr(engine_module.frames, "MAX_EVENT", 8)
    with pytest.raises(EngineError):
        await _text(engine, "a long enough answer")
    await engine.close()


async def test_an_engine_that_floods_the_enclave_is_ended(zygote: Zygote) -> None:
    notes: list[str] = []
    engine = await _started(zygote, notes)
    stream = engine.chat(ask("FLOOD"))
    await anext(stream)
    for _ in range(1000):  # nobody reads: what waits must not fill the memory
        if "engine-started" in notes:
            break
        await asyncio.sleep(0.02)
    assert notes == ["engine-ended", "engine-started"]
    taken = [len(event) async for event in _until_failed(stream)]
    assert 0 < sum(taken) <= frames.MAX_EVENT + engine_module.TOKEN_BYTES * PARAMETERS.context_tokens
    assert await _text(engine, "back") == "back "
    await engine.close()


async def _until_failed(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    with contextlib.suppress(EngineError):
        async for event in stream:
            yield event
        raise AssertionError("it ended as if it were whole")
