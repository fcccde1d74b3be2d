"""Errors as HTTP: a stable code for the peer, the reason for the log only (RFC 9457; KBS form on KBS routes)."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from sealwright.errors import (
    AppraisalError,
    CollateralError,
    FormatError,
    SealwrightError,
    UnavailableError,
)

KBS_ERRORS = "https://github.com/confidential-containers/kbs/errors/"
PROBLEMS = "urn:sealwright:error:"
# Stages that say something about us, not about who asks.
_OURS = frozenset(
    {"state", "consistency", "inclusion", "openings", "log-signature", "holder", "store", "unwrap", "clock"}
    | {"backend", "writer"}
)
_TITLES = {
    400: "malformed",
    401: "refused",
    403: "refused",
    404: "not found",
    408: "too slow",
    409: "refused",
    413: "too large",
    429: "too many requests",
    500: "internal error",
    503: "unavailable",
}
# Seconds after which it is worth asking again.
_RETRY_S = {
    "not-the-writer": 1,
    "writer-fenced": 1,
    "collateral-pending": 10,
    "collateral-rate-limited": 60,
    "collateral-over-budget": 300,
}
_FORMAT_STATUS = {"too-large": 413, "body-timeout": 408}
_ADMIN_STATUS = {
    "resource-unknown": 404,
    "key-unknown": 404,
    "caller-unknown": 404,
    "budget-unknown": 404,
    "revocation-unknown": 404,
    "key-exists": 409,
    "next-generation-exists": 409,
    "revoked-already": 409,
    "would-lock-out": 409,
    "caller-exists": 409,
}


def status_of(error: SealwrightError, *, admin: bool) -> int:
    """Return the HTTP status of an error."""
    if error.code == "collateral-over-budget":
        return 429
    if isinstance(error, UnavailableError) or error.stage in _OURS:
        return 503
    if isinstance(error, FormatError):
        return _FORMAT_STATUS.get(error.code, 400)
    if error.code == "resource-unknown" and error.stage == "key":
        return 404  # what guests are told, who would attest again on a 401
    if not admin:
        return 401  # not genuine and not allowed alike, as KBS is deployed
    if isinstance(error, AppraisalError | CollateralError):
        return _ADMIN_STATUS.get(error.code, 403)
    return 403


def problem(status: int, code: str, *, kbs: bool, **more: object) -> Response:
    """Return an error body."""
    title = _TITLES[status]
    kind = f"{KBS_ERRORS}{title.title().replace(' ', '')}" if kbs else f"{PROBLEMS}{code}"
    body = {"type": kind, "title": title, "detail": title, "status": status, "code": code} | more
    # Where the body was not read to its end, the connection is of no more use.
    headers = {"connection": "close"} if status in _FORMAT_STATUS.values() else {}
    if code in _RETRY_S:
        headers["retry-after"] = str(_RETRY_S[code])
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


def of_error(error: SealwrightError, *, path: str) -> Response:
    """Return the answer to a request that failed. The administrator alone is told why."""
    admin = path.startswith("/sealwright/v1/admin/")
    status = status_of(error, admin=admin)
    more: dict[str, object] = {"exit_code": error.exit_code}
    if admin:
        more |= {"detail": str(error), "stage": error.stage}
    return problem(status, error.code, kbs=path.startswith("/kbs/"), **more)
