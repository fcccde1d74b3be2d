"""The dialects of tokens: where each issuer says nonce, measurements, debug state, TCB status and its verdict.

What a token does not say counts as the worse answer. Names: docs/spec/token.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sealwright.evidence.token import TokenKind
from sealwright.verify.verified import Condition

Path = tuple[str, ...]

CONDITION = Condition(
    code="somebody-elses-verdict",
    text="a service says so; its evidence was not seen here",
    value=32,
)
# Only what stands in the evidence. Azure's own `nonce` is what came with the request, over whatever evidence.
NONCE_CLAIMS: Mapping[TokenKind, tuple[Path, ...]] = {
    "maa": (("x-ms-runtime", "client-payload", "nonce"), ("x-ms-runtime", "nonce")),
    "google": (("eat_nonce",),),
    "nras": (("eat_nonce",),),
    "ita": (
        ("attester_held_data",),
        ("tdx", "attester_held_data"),
        ("sgx", "attester_held_data"),
    ),
}
# Of a device, in NVIDIA's tokens: its report was made for the nonce of the request.
NONCE_MATCHES = (
    "x-nvidia-gpu-attestation-report-nonce-match",
    "x-nvidia-switch-attestation-report-nonce-match",
)

# Where a service puts what it says of one TEE: beside everything else, or in an object of its own.
_NESTED: tuple[Path, ...] = ((), ("x-ms-isolation-tee",), ("tdx",), ("sgx",))
_MEASUREMENTS = {
    "x-ms-sevsnpvm-launchmeasurement": "measurement",
    "x-ms-sevsnpvm-hostdata": "host_data",
    "x-ms-sevsnpvm-idkeydigest": "id_key_digest",
    "x-ms-sevsnpvm-authorkeydigest": "author_key_digest",
    "x-ms-sgx-mrenclave": "mrenclave",
    "x-ms-sgx-mrsigner": "mrsigner",
    "sgx_mrenclave": "mrenclave",
    "sgx_mrsigner": "mrsigner",
    "tdx_mrtd": "mrtd",
    "tdx_mrconfigid": "mrconfigid",
    "tdx_mrowner": "mrowner",
    "tdx_mrownerconfig": "mrownerconfig",
    "tdx_mrseam": "mrseam",
    "tdx_mrsignerseam": "mrsignerseam",
    **{f"tdx_rtmr{index}": f"rtmr{index}" for index in range(4)},
}
_IMAGE: Path = ("submods", "container", "image_digest")  # of Google: "sha256:…"
_DEBUG = (
    "x-ms-sevsnpvm-is-debuggable",
    "x-ms-sgx-is-debuggable",
    "tdx_td_attributes_debug",
    "tdx_is_debuggable",
    "sgx_is_debuggable",
)
_NOT_DEBUG = frozenset(
    {"disabled", "disabled-since-boot", "disabled-permanently", "disabled-fully-and-permanently"}
)
_TCB = {
    "OutOfDate": "tcb-out-of-date",
    "OutOfDateConfigurationNeeded": "tcb-out-of-date",
    "ConfigurationNeeded": "tcb-configuration-needed",
    "ConfigurationAndSWHardeningNeeded": "tcb-configuration-needed",
    "SWHardeningNeeded": "tcb-sw-hardening-needed",
    "Revoked": "tcb-revoked",
}


def lookup(claims: Mapping[str, Any], path: Path) -> Any:
    """Return the claim at `path`, or None."""
    value: Any = claims
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def registers(claims: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the measurements that a token names, by the names that the platform itself has for them."""
    found: dict[str, bytes] = {}
    for name, register in _MEASUREMENTS.items():
        for value in _said(claims, name):
            raw = _hex(value)
            if raw and found.setdefault(register, raw) != raw:
                found[register] = b""  # two TEEs with one name: neither counts
    image = lookup(claims, _IMAGE)
    if isinstance(image, str) and image.startswith("sha256:") and (raw := _hex(image[7:])):
        found["image_digest"] = raw
    return {name: raw for name, raw in found.items() if raw}


def conditions(
    kind: TokenKind, claims: Mapping[str, Any], devices: Mapping[str, Mapping[str, Any]]
) -> Iterator[Condition]:
    """Yield the states that a token admits to, or is silent about."""
    if kind == "nras":
        yield from _of_devices(claims, devices)
        return
    yield from _debug(claims)
    if kind == "ita" or any(_said(claims, "attester_tcb_status")):
        yield from _tcb(claims)
    # Google always says; Azure says it of some machines, and what it says counts.
    if claims.get("secboot", kind != "google") is not True or claims.get("secureboot", True) is not True:
        yield _secure_boot("the token does not say that Secure Boot was on")
    yield from _verdict(claims)


def _verdict(claims: Mapping[str, Any]) -> Iterator[Condition]:
    tee = claims.get("x-ms-isolation-tee")
    if isinstance(tee, Mapping) and tee.get("x-ms-compliance-status") != "azure-compliant-cvm":
        yield _negative("Azure does not call this machine a compliant confidential VM")
    if "nvgpu" in claims and lookup(claims, ("nvgpu", "x-nvidia-overall-att-result")) is not True:
        yield _negative("NVIDIA's overall result is not true")
    if claims.get("policy_ids_unmatched"):
        yield _negative("the token names policies that were not met")


def _of_devices(claims: Mapping[str, Any], devices: Mapping[str, Mapping[str, Any]]) -> Iterator[Condition]:
    if claims.get("x-nvidia-overall-att-result") is not True:
        yield _negative("NVIDIA's overall result is not true")
    for name, device in devices.items():
        if str(device.get("measres")).lower() not in {"success", "comparison-successful"}:
            yield _negative(f"the measurements of {name} are not the reference ones")
        if device.get("secboot") is not True:
            yield _secure_boot(f"the token does not say that {name} booted securely")
        if str(device.get("dbgstat")) not in _NOT_DEBUG:
            yield _debugging(f"the token does not say that debugging of {name} is off")


def _debug(claims: Mapping[str, Any]) -> Iterator[Condition]:
    flags = [value is False for name in _DEBUG for value in _said(claims, name)]
    states = [str(value) in _NOT_DEBUG for value in _said(claims, "dbgstat")]
    if not all(flags + states) or not flags + states:
        yield _debugging("the token does not say that debugging is off")


def _tcb(claims: Mapping[str, Any]) -> Iterator[Condition]:
    said = list(_said(claims, "attester_tcb_status")) or [None]
    for status in said:
        if status != "UpToDate":
            code = _TCB.get(str(status), "tcb-not-recognised")
            yield Condition(code=code, text=f"the token says of the TCB: {str(status)[:64]}")


def _said(claims: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Yield every value that the token has under `name`, wherever issuers put it."""
    for path in _NESTED:
        value = lookup(claims, (*path, name))
        if value is not None:
            yield value


def _hex(value: object) -> bytes:
    """Return the bytes of a measurement, 32 to 64 of them, or none."""
    try:
        raw = bytes.fromhex(value) if isinstance(value, str) and value.isalnum() else b""
    except ValueError:
        return b""
    return raw if 32 <= len(raw) <= 64 else b""


def _debugging(text: str) -> Condition:
    return Condition(code="debug", text=text)


def _secure_boot(text: str) -> Condition:
    return Condition(code="secure-boot-off", text=text, claim="configuration")


def _negative(text: str) -> Condition:
    return Condition(code="verdict-negative", text=text)
