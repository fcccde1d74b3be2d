"""The OpenAI API: which requests we take, and the exact shapes we answer with.

Only fields that are listed here reach the engine. An unknown one is refused by name: an ignored
parameter would make the answer another than the one asked for.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sealwright.crypto.canonical import parse_json
from sealwright.errors import FormatError, SealwrightError

MAX_MESSAGES = 4096
MAX_STOPS = 4


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TextPart(_Part):
    """One text part of a message."""

    type: Literal["text"]
    text: str


class Message(_Part):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(max_length=64)] | None = None

    def for_engine(self) -> dict[str, str]:
        """Return what the chat template is given."""
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(_Part):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # accepted; our transport pads every chunk anyway


class TextFormat(_Part):
    """The one response format there is so far."""

    type: Literal["text"]


_Penalty = Annotated[float, Field(ge=-2, le=2)] | None


class ChatRequest(_Part):
    """A request to `POST /v1/chat/completions`, as far as it is supported."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: _Penalty = None
    frequency_penalty: _Penalty = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    response_format: TextFormat | None = None
    # Accepted because SDKs send them; they change nothing here.
    user: Annotated[str, Field(max_length=256)] | None = None
    safety_identifier: Annotated[str, Field(max_length=256)] | None = None
    store: Literal[False] | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def for_engine(self, *, most_tokens: int) -> bytes:
        """Return the engine's request: listed fields only, no shared prompt cache, always a stream.

        Args:
            most_tokens: the config's limit on an answer, in tokens.
        """
        wanted = self.max_completion_tokens or self.max_tokens or most_tokens
        body: dict[str, Any] = {
            "messages": [message.for_engine() for message in self.messages],
            "max_tokens": min(wanted, most_tokens),
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        return json.dumps(body).encode()


class ApiError(SealwrightError):
    """A refusal in OpenAI's form. Its message is ours and never quotes the request."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message, code=code, stage="api")
        self.status = status
        self.param = param

    def body(self) -> bytes:
        """Return the body."""
        return error_body(self.status, str(self), code=self.code, param=self.param)


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> bytes:
    """Return `{"error": …}` as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}})


def parse_chat(body: bytes, *, limit: int) -> ChatRequest:
    """Return the request in `body`.

    Args:
        limit: bytes, of the config.

    Raises:
        ApiError: 400, 413; names the field and the rule, never the value.
    """
    if len(body) > limit:
        raise ApiError(413, f"the request has more than {limit} bytes", code="request-too-large")
    try:
        return ChatRequest.model_validate(parse_json(body, limit=limit))
    except FormatError as exc:
        raise ApiError(400, "the body is not JSON as this service reads it", code=exc.code) from None
    except ValidationError as exc:
        raise _refusal(exc) from None


def _refusal(exc: ValidationError) -> ApiError:
    errors = exc.errors(include_url=False, include_input=False, include_context=False)
    # A union gives one error for each of its forms; one that names an extra field says most.
    first = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        # The name is the caller's own text: only a plain one is repeated.
        name = ".".join(where) if all(part.isidentifier() or part.isdigit() for part in where) else "a field"
        return ApiError(
            400, f"{name[:128]} is not supported here", code="unsupported-parameter", param=name[:128]
        )
    param = where[0] if where else None
    return ApiError(400, f"{param or 'the body'} {_rule(first['type'])}", code="invalid-value", param=param)


def _rule(kind: str) -> str:
    return "is required" if kind == "missing" else f"is not valid here ({kind})"


class Completion:
    """One answer as it comes out of the engine: turns its events into OpenAI's shapes.

    Of an event only the text, the reason to end and the token counts are taken; timings, ids and
    whatever else the engine says stay behind.
    """

    def __init__(self, request: ChatRequest, *, completion_id: str, created: int) -> None:
        """Args: created: enclave time, seconds since the epoch."""
        self._request = request
        self._head = {"id": completion_id, "created": created, "model": request.model}
        self._text: list[str] = []
        self._finish: str | None = None
        self.tokens_in = 0
        self.tokens_out = 0

    @property
    def complete(self) -> bool:
        """Whether the engine said why it ended."""
        return self._finish is not None

    def opening(self) -> bytes:
        """Return the first event of a stream."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def event(self, raw: bytes) -> bytes:
        """Return the stream's bytes for one event of the engine, empty if it says nothing to the caller.

        Raises:
            ApiError: 502, the engine's event has another shape.
        """
        text, finish = self._take(raw)
        out = b""
        if text:
            self._text.append(text)
            out = self._chunk({"content": text}, None)
        if finish is not None and self._finish is None:
            self._finish = finish
            out += self._chunk({}, finish)
        return out

    def closing(self) -> bytes:
        """Return the last events of a stream."""
        out = b""
        if self._request.wants_usage:
            shape = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}
            out = b"data: " + _json(shape) + b"\n\n"
        return out + b"data: [DONE]\n\n"

    def whole(self) -> bytes:
        """Return the answer in one piece."""
        message = {"role": "assistant", "content": "".join(self._text), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return _json({**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()})

    def _take(self, raw: bytes) -> tuple[str, str | None]:
        try:
            event = json.loads(raw)
            if usage := event.get("usage"):
                self.tokens_in, self.tokens_out = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
            choice = event["choices"][0] if event["choices"] else {"delta": {}, "finish_reason": None}
            text, finish = choice["delta"].get("content") or "", choice["finish_reason"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise ApiError(502, "the engine's answer cannot be read", code="engine-event") from None
        if not isinstance(text, str) or finish not in (None, "stop", "length"):
            raise ApiError(502, "the engine's answer cannot be read", code="engine-event")
        return text, finish

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.tokens_in,
            "completion_tokens": self.tokens_out,
            "total_tokens": self.tokens_in + self.tokens_out,
        }

    def _chunk(self, delta: dict[str, str], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        shape: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if self._request.wants_usage:
            shape["usage"] = None
        return b"data: " + _json(shape) + b"\n\n"


def models_body(models: list[str], *, created: int) -> bytes:
    """Return the answer to `GET /v1/models`."""
    listed = [
        {"id": name, "object": "model", "created": created, "owned_by": "sealwright"} for name in models
    ]
    return _json({"object": "list", "data": listed})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
