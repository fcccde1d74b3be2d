"""Which requests are taken, and the shapes of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.inference.support import chunk, usage

from sealwright.inference.openai import ApiError, Completion, models_body, parse_chat

MINIMAL: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def _parse(**more: Any) -> Any:
    return parse_chat(json.dumps({**MINIMAL, **more}).encode(), limit=65536)


def test_only_listed_fields_reach_the_engine() -> None:
    request = _parse(temperature=0, seed=7, stop=["x"], user="u", stream=True, max_completion_tokens=9)
    assert json.loads(request.for_engine(most_tokens=100)) == {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "seed": 7,
        "stop": ["x"],
    }


def test_the_config_bounds_the_answer() -> None:
    assert json.loads(_parse(max_tokens=500).for_engine(most_tokens=100))["max_tokens"] == 100
    assert json.loads(_parse().for_engine(most_tokens=100))["max_tokens"] == 100


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = _parse(messages=[{"role": "developer", "content": parts}])
    assert json.loads(request.for_engine(most_tokens=1))["messages"] == [{"role": "system", "content": "ab"}]


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"cache_prompt": True}, "unsupported-parameter", "cache_prompt"),
        ({"tools": []}, "unsupported-parameter", "tools"),
        ({"grammar": "x"}, "unsupported-parameter", "grammar"),
        ({"logit_bias": {}}, "unsupported-parameter", "logit_bias"),
        ({"tulip\n": 1}, "unsupported-parameter", "a field"),
        ({"messages": [{"role": "user", "content": "x", "tulip_y": 1}]}, "unsupported-parameter", None),
        ({"n": 2}, "invalid-value", "n"),
        ({"max_tokens": 0}, "invalid-value", "max_tokens"),
        ({"temperature": "tulip"}, "invalid-value", "temperature"),
        ({"messages": []}, "invalid-value", "messages"),
        ({"messages": [{"role": "tulip", "content": "x"}]}, "invalid-value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid-value", "messages"),
        ({"store": True}, "invalid-value", "store"),
        ({"seed": -1}, "invalid-value", "seed"),
    ],
)
def test_refusals_name_the_field_and_never_the_value(
    more: dict[str, Any], code: str, param: str | None
) -> None:
    with pytest.raises(ApiError) as caught:
        _parse(**more)
    error = json.loads(caught.value.body())["error"]
    assert (caught.value.status, error["code"], error["type"]) == (400, code, "invalid_request_error")
    assert param is None or error["param"] == param
    if "tulip_y" not in str(more):
        assert "tulip" not in json.dumps(error)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"a":1,"a":2}', b'{"model":NaN}'])
def test_what_is_not_a_request_is_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(body, limit=100)
    assert caught.value.status == 400


def test_a_large_request_is_413() -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(b" " * 101, limit=100)
    assert (caught.value.status, caught.value.code) == (413, "request-too-large")


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_parsing_raises_only_its_own_error(body: bytes) -> None:
    with pytest.raises(ApiError):
        parse_chat(body, limit=1000)


def _completion(**more: Any) -> Completion:
    return Completion(_parse(**more), completion_id="chatcmpl-1", created=5)


def _events(raw: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_stream_has_openai_shapes_and_no_timings() -> None:
    completion = _completion(stream=True, stream_options={"include_usage": True})
    raw = completion.opening() + completion.event(chunk(None))
    raw += completion.event(chunk("Hel")) + completion.event(chunk("lo"))
    raw += completion.event(chunk(None, "stop")) + completion.event(usage(3, 2)) + completion.closing()
    events = _events(raw)
    assert [e["choices"][0]["delta"] for e in events[:4]] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [e["choices"][0]["finish_reason"] for e in events[:4]] == [None, None, None, "stop"]
    assert events[4]["choices"] == []
    assert events[4]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert events[5] == "[DONE]"
    assert all(e["object"] == "chat.completion.chunk" and e["id"] == "chatcmpl-1" for e in events[:5])
    assert b"timings" not in raw


def test_a_whole_answer() -> None:
    completion = _completion()
    for event in (chunk("Hel"), chunk("lo"), chunk(None, "length"), usage(3, 2)):
        completion.event(event)
    whole = json.loads(completion.whole())
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["content"] == "Hello"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["total_tokens"] == 5


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b'{"choices":5}', b'{"choices":[{"delta":{"content":5},"finish_reason":null}]}',
     b'{"choices":[{"delta":{},"finish_reason":"tulip"}]}', b'{"choices":[],"usage":{"prompt_tokens":"x"}}'],
)  # fmt: skip
def test_an_odd_engine_is_a_502_without_its_text(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        _completion().event(raw)
    assert (caught.value.status, caught.value.code) == (502, "engine-event")
    assert "tulip" not in str(caught.value)


def test_models() -> None:
    assert json.loads(models_body(["a"], created=1))["data"][0]["id"] == "a"


def test_openai_sdk_reads_what_we_write() -> None:
    chat = pytest.importorskip("openai.types.chat")
    completion = _completion()
    completion.event(chunk("Hi", "stop"))
    chat.ChatCompletion.model_validate_json(completion.whole(), strict=True)
    streamed = _completion(stream=True)
    for event in _events(streamed.opening() + streamed.event(chunk("Hi", "stop")) + streamed.closing()):
        if event != "[DONE]":
            chat.ChatCompletionChunk.model_validate(event)
