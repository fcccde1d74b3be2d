"""Reading one HTTP answer: its status, where it leads, when to come again, and a body that is bounded."""

from __future__ import annotations

import email.utils
from datetime import datetime
from typing import NoReturn
from urllib.parse import urljoin, urlsplit

import httpx2

from sealwright.errors import UnavailableError
from sealwright.protocol.body import parts_async

REDIRECTS = frozenset({301, 302, 307, 308})
_RETRIED = frozenset({429, 500, 502, 503, 504})


class Again(Exception):
    """This attempt failed, another may not."""

    def __init__(self, text: str, *, after_s: float | None = None, limited: bool = False) -> None:
        super().__init__(text)
        self.after_s = after_s
        self.limited = limited


def check_status(response: httpx2.Response, now: datetime) -> None:
    """Pass status 200. Raises UnavailableError, or Again."""
    status = response.status_code
    if status == 200:
        return
    if status in _RETRIED:
        after = _retry_after(response.headers.get("retry-after"), now)
        raise Again(f"answered {status}", after_s=after, limited=status == 429 or after is not None)
    if status in (404, 410):
        raise UnavailableError(
            f"{response.url.host} has nothing under this name ({status}): compare product, chip, FMSPC, "
            "version or number with the evidence; a very new one may not be published yet",
            code="collateral-not-found",
            stage="fetch",
        )
    raise refused(f"{response.url.host} answered {status}")


async def read_body(response: httpx2.Response, limit: int) -> bytes:
    """Return the body as it was sent, read no further than `limit` bytes.

    Raises:
        UnavailableError: `collateral-bad-answer`.
    """
    body = bytearray()
    async for part in parts_async(response):
        body += part
        if len(body) > limit:
            raise bad_answer(f"an answer of more than {limit} bytes")
    return bytes(body)


def redirected(url: str, location: str) -> str:
    """Return where a redirect leads: to the same origin. Raises UnavailableError `collateral-refused`."""
    try:
        target = urljoin(url, location)
        origins = {(one.scheme, one.hostname, one.port) for one in (urlsplit(url), urlsplit(target))}
    except ValueError:
        raise refused(f"{urlsplit(url).hostname} redirects to what is no URL") from None
    if not location or len(origins) != 1:
        raise refused(f"{urlsplit(url).hostname} redirects to another host")
    return target


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, in either of its two forms."""
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) <= 9:
        return float(value)
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def give_up(why: Again, text: str, asked: float) -> NoReturn:
    """Raise what the last attempt came to. Args: asked: seconds that the vendor asked to wait."""
    if why.limited:
        later = f"in {asked:.0f} s" if asked else "later"
        raise UnavailableError(
            f"{text}: it limits requests; try again {later}, or use a cache or collateral pack",
            code="collateral-rate-limited",
            stage="fetch",
        ) from why
    raise UnavailableError(
        f"{text}: check network, proxy (HTTPS_PROXY) and CA file, or use a collateral pack",
        code="collateral-unreachable",
        stage="fetch",
    ) from why


def refused(text: str) -> UnavailableError:
    """Return the error for a host that refuses, or leads elsewhere."""
    return UnavailableError(
        f"{text}: check the host in the settings, and what stands in between",
        code="collateral-refused",
        stage="fetch",
    )


def bad_answer(text: str) -> UnavailableError:
    """Return the error for an answer that is not read."""
    return UnavailableError(f"refused {text}", code="collateral-bad-answer", stage="fetch")
