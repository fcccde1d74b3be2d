"""Bodies of HTTP answers as they were sent: a bound counts for what is held only if nothing is unpacked before it.

Ask with the headers `PLAIN`. What comes compressed all the same is not what was asked for, and no parser reads it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

PLAIN = {"accept-encoding": "identity"}


def parts(answer: httpx2.Response) -> Iterator[bytes]:
    """Yield the parts of a body as they were sent."""
    if answer.is_stream_consumed:  # a transport that had it whole
        yield answer.content
    else:
        yield from answer.iter_raw()


async def parts_async(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield the parts of a body as they were sent."""
    if answer.is_stream_consumed:
        yield answer.content
    else:
        async for part in answer.aiter_raw():
            yield part
