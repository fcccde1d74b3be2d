"""Attacks by whoever carries the bytes: a relay that replays, alters, cuts, reorders and repeats."""

from __future__ import annotations

import re

from sealwright.cli._attack import Refusal, Target, undefended
from sealwright.cli._relay import Change, Relay
from sealwright.cli._stand import MODEL
from sealwright.errors import SealwrightError, VerificationError


def replayed_request(target: Target) -> Refusal:
    """Send the last captured sealed request once more. Its refusal is sealed too: the enclave's log names it."""
    before = target.enclave.log.stat().st_size
    target.relay.replay(target.enclave.url)
    said = target.enclave.log.read_bytes()[before:].decode(errors="replace")
    found = re.findall(r"request-refused code=([a-z0-9-]+)", said)
    if not found:
        raise undefended("the enclave answered a captured request")
    return Refusal("enclave", found[-1], VerificationError.exit_code)


def altered_answer(target: Target) -> Refusal:
    """Flip one bit of a sealed answer under way."""

    def flip(pieces: list[bytes]) -> list[bytes]:
        middle = bytearray(pieces[len(pieces) // 2])
        middle[len(middle) // 2] ^= 1
        return [*pieces[: len(pieces) // 2], bytes(middle), *pieces[len(pieces) // 2 + 1 :]]

    return _tampered(target, flip)


def cut_answer(target: Target) -> Refusal:
    """End a sealed answer early, as if it were whole."""
    return _tampered(target, lambda pieces: pieces[: len(pieces) // 2])


def reordered_answer(target: Target) -> Refusal:
    """Swap two pieces of a sealed answer."""

    def swap(pieces: list[bytes]) -> list[bytes]:
        at = len(pieces) // 2
        return [*pieces[: at - 1], pieces[at], pieces[at - 1], *pieces[at + 1 :]]

    return _tampered(target, swap)


def repeated_piece(target: Target) -> Refusal:
    """Send one piece of a sealed answer twice."""

    def repeat(pieces: list[bytes]) -> list[bytes]:
        at = len(pieces) // 2
        return [*pieces[:at], pieces[at], *pieces[at:]]

    return _tampered(target, repeat)


def _tampered(target: Target, change: Change) -> Refusal:
    """Chat through a relay that tampers with the answer; return what the client made of it."""
    import sealwright

    relay = Relay(target.enclave.url, change)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count to five."}],
        "max_tokens": 12,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {target.credential}"}
    try:
        with (
            sealwright.http_client(trust=target.trust) as client,
            client.stream("POST", f"{relay.url}/v1/chat/completions", json=body, headers=headers) as answer,
        ):
            text = "".join(answer.iter_text())
    except SealwrightError as exc:
        return Refusal("client", exc.code, exc.exit_code)
    finally:
        relay.close()
    raise undefended(f"the client took the answer: {answer.status_code}, {len(text)} characters")
