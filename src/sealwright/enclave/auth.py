"""Who is calling? Credentials against the callers that came with the leases."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from sealwright.errors import VerificationError
from sealwright.protocol.lease import Callers, credential_digest
from sealwright.transport.server import Caller

MAX_CREDENTIAL = 128  # characters
_PREFIX = b"Bearer "


def authenticate(headers: Sequence[tuple[bytes, bytes]], known: Iterable[Callers]) -> Caller:
    """Return the caller whose credential is in the sealed `authorization` header.

    Every known digest is compared, each in constant time, so that timing tells nothing of them.

    Raises:
        VerificationError: `credential-missing`, `credential-unknown`.
    """
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1 or not values[0].startswith(_PREFIX) or len(values[0]) > MAX_CREDENTIAL:
        raise _refused("credential-missing", "there is no bearer credential")
    try:
        wanted = credential_digest(values[0].removeprefix(_PREFIX).decode("ascii"))
    except UnicodeDecodeError:
        raise _refused("credential-unknown", "no caller has this credential") from None
    found: Caller | None = None
    for callers in known:
        for entry in callers.callers:
            if hmac.compare_digest(entry.credential_digest, wanted):
                found = Caller(tenant=callers.tenant, name=entry.caller)
    if found is None:
        raise _refused("credential-unknown", "no caller has this credential")
    return found


def _refused(code: str, text: str) -> VerificationError:
    return VerificationError(text, code=code, stage="authenticate")
