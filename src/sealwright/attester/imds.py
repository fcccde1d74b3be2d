"""What the instance metadata service of Azure adds to evidence: AMD's certificates, and quotes of a TD. It is the host."""

from __future__ import annotations

import json
from collections.abc import Callable

from sealwright.attester.base import STAGE
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.errors import EvidenceFormatError, FormatError, UnavailableError
from sealwright.protocol.body import PLAIN, parts

IMDS = "http://169.254.169.254"
TD_QUOTE = "/acc/tdquote"
CERTIFICATES = "/metadata/THIM/amd/certification"
MAX_ANSWER = 256 * 1024  # bytes
TIMEOUT_S = 30

Http = Callable[[str, bytes | None], bytes]  # path, body of a POST; raises UnavailableError


def td_quote(http: Http, td_report: bytes) -> bytes:
    """Return a quote over a TDREPORT (1024 bytes). Nothing of it is looked at.

    Raises:
        UnavailableError: as `http`. EvidenceFormatError: `malformed-imds-answer`.
    """
    body = json.dumps({"report": b64url(td_report)}).encode()
    text = _json(http(TD_QUOTE, body)).get("quote")
    if not isinstance(text, str):
        raise _malformed("no quote in it")
    try:
        return b64url_decode(text.rstrip("="), error=EvidenceFormatError)
    except FormatError:
        raise _malformed("the quote is not base64url") from None


def snp_certificates(http: Http) -> tuple[bytes, ...]:
    """Return the VCEK and AMD's chain, PEM.

    Raises:
        UnavailableError: as `http`. EvidenceFormatError: `malformed-imds-answer`.
    """
    found = _json(http(CERTIFICATES, None))
    texts = (found.get("vcekCert"), found.get("certificateChain"))
    if not all(isinstance(text, str) and text for text in texts):
        raise _malformed("it lacks vcekCert or certificateChain")
    return tuple(str(text).encode() for text in texts)


def imds(path: str, body: bytes | None) -> bytes:
    """Ask the instance metadata service, never through a proxy, and without following it elsewhere.

    Raises:
        UnavailableError: `imds-unreachable`.
    """
    import httpx2  # an enclave that brings its own `http` has no need of it in its image

    headers = {"Metadata": "true", **PLAIN} if body is None else {"Content-Type": "application/json", **PLAIN}
    found = bytearray()
    try:
        with (
            httpx2.Client(trust_env=False, timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream(
                "GET" if body is None else "POST", IMDS + path, content=body, headers=headers
            ) as answer,
        ):
            if answer.status_code != 200:
                raise _unreachable(f"it answers {answer.status_code} to {path}")
            for part in parts(answer):
                found += part
                if len(found) > MAX_ANSWER:
                    raise _unreachable(f"its answer to {path} is over {MAX_ANSWER} bytes")
    except httpx2.HTTPError as exc:
        raise _unreachable(type(exc).__name__) from exc
    return bytes(found)


def _json(raw: bytes) -> dict[str, object]:
    try:
        value = parse_json(raw, limit=MAX_ANSWER, error=EvidenceFormatError)
    except FormatError:
        value = None
    if isinstance(value, dict):
        return value
    raise _malformed("no JSON object")


def _malformed(what: str) -> EvidenceFormatError:
    return EvidenceFormatError(
        f"the metadata service's answer: {what}", code="malformed-imds-answer", stage=STAGE
    )


def _unreachable(why: str) -> UnavailableError:
    return UnavailableError(f"the instance metadata service: {why}", code="imds-unreachable", stage=STAGE)
