"""Fetching log proofs. What comes back proves nothing until it is verified under a log policy."""

from __future__ import annotations

import httpx2

from sealwright.errors import CollateralError, UnavailableError
from sealwright.protocol.body import PLAIN, parts_async
from sealwright.tlog.proof import MAX_LOG_PROOF, LogProof

BROKER_PROOFS = "/sealwright/v1/proofs/"
ENCLAVE_PROOFS = "/v1/sealwright/proofs/"


async def fetch_proof(
    url: str, entry_digest: str, *, transport: httpx2.AsyncBaseTransport | None = None
) -> str:
    """Return the `.tlog-proof` text of an entry from the broker at `url`; see `proof_text`.

    Args:
        entry_digest: SHA-256 of the log entry, hex.
    """
    async with httpx2.AsyncClient(transport=transport, timeout=30, follow_redirects=False) as client:
        try:
            target = url.rstrip("/") + BROKER_PROOFS + entry_digest
            async with client.stream("GET", target, headers=PLAIN) as answer:
                body = await _bounded(answer)
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise UnavailableError(
                f"{url} does not answer ({type(exc).__name__})", code="log-unreachable", stage="log"
            ) from exc
    return proof_text(answer.status_code, body)


async def _bounded(answer: httpx2.Response) -> bytes:
    """Return the body as it was sent, not unpacked, read no further than just over the limit."""
    body = bytearray()
    async for part in parts_async(answer):
        body += part
        if len(body) > MAX_LOG_PROOF:
            break
    return bytes(body)


def proof_text(status: int, body: bytes) -> str:
    """Return the proof in an answer, parsed but not verified.

    Raises:
        CollateralError: `proof-missing`: not logged, or not yet. UnavailableError: another answer.
        LogFormatError: not a proof.
    """
    if status == 404:
        raise CollateralError("the log has no such entry (yet)", code="proof-missing", stage="log")
    if status != 200 or len(body) > MAX_LOG_PROOF:
        raise UnavailableError(f"no proof: status {status}", code="log-unreachable", stage="log")
    return LogProof.parse(body).encode().decode()
