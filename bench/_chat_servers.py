"""What `chat.py` compares: a whole installation of ours, and llama.cpp's own HTTP server.

    python bench/_chat_servers.py MODEL CONTEXT SLOTS THREADS    the peer; prints its URL, ends with its stdin

Both run the same build of llama.cpp with the same parameters, each in processes of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealwright.cli._stand import KID, MODEL, TENANT, Stand, model_path
from sealwright.inference.llamacpp import common_params
from sealwright.inference.parameters import EngineParameters

PEER_KEY = "bench"
LEASE_S = 600  # the default of policies: at half of it the enclave attests again, under load too


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a client chats."""

    url: str
    key: str
    trust: Path | None = None  # of ours


@contextmanager
def ours(folder: Path, parameters: EngineParameters) -> Iterator[Endpoint]:
    """Run broker and enclave, measured and started by the quoter."""
    stand = Stand(folder, lease_s=LEASE_S)
    try:
        stand.make_broker()
        stand.seal_model(model_path())
        config = make_config(stand, parameters)
        credential = stand.add_caller()  # before the first lease, which is what tells the enclave
        enclave = stand.start_enclave(config)
        enclave.wait_for()
        yield Endpoint(url=enclave.url, key=credential, trust=stand.make_trust())
    finally:
        stand.stop()


def make_config(stand: Stand, parameters: EngineParameters) -> Path:
    """Write an enclave config with these parameters, and let the key's policy admit it alone."""
    path = stand.folder / "enclave-config.json"
    options = {
        "--broker": f"{stand.broker_url}={stand.root}",
        "--log-key": stand.log_key,
        "--tenant": TENANT,
        "--artefact": f"{KID}={MODEL}={stand.sealed}",
        "--context-tokens": str(parameters.context_tokens),
        "--slots": str(parameters.slots),
        "--threads": str(parameters.threads),
    }
    made = stand.do("enclave", "config", "new", path, *(part for pair in options.items() for part in pair))
    stand.config_digest = str(made["config_digest"])
    stand.set_policy({"digests": [stand.config_digest]})
    return path


@contextmanager
def plain(parameters: EngineParameters) -> Iterator[Endpoint]:
    """Run llama.cpp's own HTTP server."""
    numbers = (parameters.context_tokens, parameters.slots, parameters.threads)
    command = [sys.executable, __file__, str(model_path()), *map(str, numbers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the peer has no pipes")
        try:
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError("the peer did not start")
            yield Endpoint(url=url, key=PEER_KEY)
        finally:
            process.stdin.close()


def serve_plain(path: str, parameters: EngineParameters) -> None:
    """Serve until stdin ends."""
    import xllamacpp

    params = common_params(path, parameters)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [PEER_KEY]
    params.model_alias = {MODEL}
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # generating threads would hold up the interpreter's end


if __name__ == "__main__":
    context, slots, threads = map(int, sys.argv[2:])
    serve_plain(sys.argv[1], EngineParameters(context_tokens=context, slots=slots, threads=threads))
