"""A refusal as an event of the Open Cybersecurity Schema Framework, 1.3.0. Spec: docs/spec/events.md."""

from __future__ import annotations

from collections.abc import Mapping

from sealwright import __version__
from sealwright.crypto.encoding import rfc3339_decode

OCSF_VERSION = "1.3.0"
AUTHENTICATION, API_ACTIVITY = 3002, 6003  # class_uid; the category is its thousands
_MAX_TEXT = 1024  # characters of a reason
# Gravest last: a measurement nobody knows, or a state that was set back, is worth waking somebody.
_MEDIUM, _HIGH, _CRITICAL = (3, "Medium"), (4, "High"), (5, "Critical")
_CRITICAL_CODES = frozenset({"log-forked", "log-rolled-back", "row-tampered", "state-rolled-back"})
_NAMED = (
    "session",
    "tenant",
    "kid",
    "resource",
    "evidence_digest",
    "keyset_digest",
    "policy_digest",
    "lease_id",
)


def refusal_event(fields: Mapping[str, object], *, origin: str) -> dict[str, object]:
    """Return the event of a refused decision.

    Args:
        fields: of the decision, as it was logged.
        origin: name of the broker's log.
    """
    action = str(fields.get("action", "other"))
    attests = action in ("auth", "attest")
    kind = AUTHENTICATION if attests else API_ACTIVITY
    activity = 1 if attests else 99
    severity = _severity(str(fields.get("code", "")), attests=attests)
    who = str(fields.get("session") or "unknown")
    event: dict[str, object] = {
        "activity_id": activity,
        "activity_name": "Logon" if attests else action,
        "category_uid": kind // 1000,
        "class_uid": kind,
        "type_uid": kind * 100 + activity,
        "time": int(rfc3339_decode(str(fields["at"])).timestamp() * 1000),
        "severity_id": severity[0],
        "severity": severity[1],
        "status_id": 2,
        "status": "Failure",
        "status_code": str(fields.get("code", "")),
        "status_detail": _reason(fields.get("reason")),
        "message": f"{action} refused: {fields.get('code', '')} at {fields.get('stage', '')}",
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "Sealwright broker", "vendor_name": "Sealwright", "version": __version__},
        },
        "unmapped": {"stage": fields.get("stage", ""), **_named(fields)},
    }
    user = {"uid": who, "type_id": 99, "type": "Enclave"}
    if attests:
        return event | {"user": user, "service": {"name": origin}, "is_remote": True}
    # The broker notes no addresses: it is reached through relays and proxies.
    return event | {
        "actor": {"user": user},
        "api": {"operation": action, "service": {"name": origin}},
        "src_endpoint": {"name": "unknown"},
    }


def _severity(code: str, *, attests: bool) -> tuple[int, str]:
    if code in _CRITICAL_CODES:
        return _CRITICAL
    return _HIGH if attests else _MEDIUM


def _reason(reason: object) -> str:
    parts = reason if isinstance(reason, list | tuple) else [reason]
    return "; ".join(str(part) for part in parts if part)[:_MAX_TEXT]


def _named(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: fields[name] for name in _NAMED if fields.get(name)}
