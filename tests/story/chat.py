"""Run by an interpreter that has a stock `openai`: hold one streamed chat, print what came as JSON.

    python chat.py sync|async|plain BASE_URL API_KEY [TRUST RECEIPT]

`plain` is the client as it is, against a local `sealwright connect`.
"""

import asyncio
import json
import sys
from pathlib import Path

import openai

MODEL = "smollm2-135m-instruct"
ASK = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name three colours of tulips."}],
    "max_tokens": 24,
    "temperature": 0,
    "stream": True,
}


def direct(url: str, key: str, trust: str, receipt: str) -> list[str]:
    """Chat with our transport in the client."""
    import sealwright

    transport = sealwright.http_client(trust=trust, library=library())
    with openai.OpenAI(base_url=url, api_key=key, http_client=transport) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        stream = client.chat.completions.create(**ASK)
        pieces = [text(chunk) for chunk in stream]
        Path(receipt).write_bytes(sealwright.receipt(stream).file.encode())
    return pieces


async def direct_async(url: str, key: str, trust: str, receipt: str) -> list[str]:
    """Chat with our transport in the asynchronous client."""
    import sealwright

    transport = sealwright.async_http_client(trust=trust, library=library())
    async with openai.AsyncOpenAI(base_url=url, api_key=key, http_client=transport) as client:
        stream = await client.chat.completions.create(**ASK)
        pieces = [text(chunk) async for chunk in stream]
        Path(receipt).write_bytes(sealwright.receipt(stream).file.encode())
    return pieces


def plain(url: str, key: str) -> tuple[list[str], str]:
    """Chat without anything of ours; return the receipt's id too."""
    with openai.OpenAI(base_url=url, api_key=key) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        stream = client.chat.completions.create(**ASK)
        return [text(chunk) for chunk in stream], stream.response.headers["sealwright-receipt-id"]


def library() -> str:
    """Return the HTTP library that this major version of the client takes."""
    return "httpx2" if openai.__version__ >= "3." else "httpx"


def text(chunk: object) -> str:
    """Return what a piece of the answer says."""
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


how, *arguments = sys.argv[1:]
said = {"openai": openai.__version__, "receipt_id": ""}
if how == "plain":
    said["pieces"], said["receipt_id"] = plain(*arguments)
elif how == "async":
    said["pieces"] = asyncio.run(direct_async(*arguments))
else:
    said["pieces"] = direct(*arguments)
print(json.dumps(said))
