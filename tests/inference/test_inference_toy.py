"""The toy model of the boot tests is one that llama.cpp loads, runs and repeats."""

from __future__ import annotations

import fcntl
import os
import warnings

import pytest
from tests.inference.support import close_others
from tests.inference.test_inference_llamacpp import _answer, _body

from sealwright.inference import llamacpp
from sealwright.inference.engine import Engine
from sealwright.inference.parameters import EngineParameters
from sealwright.inference.zygote import Zygote
from sealwright.testing.gguf import toy_gguf
from sealwright.testing.software import FakePlatformWarning


def toy_fd() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        model = toy_gguf()
        assert model == toy_gguf()
        assert model != toy_gguf(1)
    fd = os.memfd_create("", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    assert os.write(fd, model) == len(model)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
    return fd


@pytest.mark.slow
async def test_a_toy_model_answers() -> None:
    pytest.importorskip("xllamacpp")
    zygote = Zygote.start(llamacpp.run, confine=close_others, prepare=llamacpp.prepare)
    try:
        engine = Engine(
            zygote, toy_fd(), EngineParameters(context_tokens=256, slots=1, threads=1), note=print
        )
        await engine.start()
        first, usage = await _answer(engine, _body("hello", max_tokens=4))
        assert usage["completion_tokens"] > 0
        assert (await _answer(engine, _body("hello", max_tokens=4)))[0] == first
        await engine.close()
    finally:
        zygote.close()
