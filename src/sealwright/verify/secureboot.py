"""What a replayed log proves of UEFI Secure Boot. Spec: docs/spec/measured-boot.md, "Secure Boot"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile

from cryptography import x509

from sealwright.endorsement.x509 import load_certificate
from sealwright.errors import EvidenceFormatError
from sealwright.evidence.eventlog import Bank
from sealwright.evidence.uefi import (
    EFI_GLOBAL_VARIABLE,
    EFI_IMAGE_SECURITY_DATABASE,
    Signature,
    VariableData,
    parse_signature_data,
    parse_signature_lists,
)
from sealwright.verify.eventlog import ReplayedLog
from sealwright.verify.measured import (
    EV_ACTION,
    EV_EFI_ACTION,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    MeasuredEvent,
    hashed,
    is_separator,
)
from sealwright.verify.verified import Condition, Fact

# In this order, before the first separator, each once (PC Client Platform Firmware Profile, section 3.3.4.8).
_ORDER = (
    (EFI_GLOBAL_VARIABLE, "SecureBoot"),
    (EFI_GLOBAL_VARIABLE, "PK"),
    (EFI_GLOBAL_VARIABLE, "KEK"),
    (EFI_IMAGE_SECURITY_DATABASE, "db"),
    (EFI_IMAGE_SECURITY_DATABASE, "dbx"),
)
_SHIM_TRAILING = 8  # bytes that shim before version 15 measures after a variable
_ACTIONS: Mapping[bytes, tuple[str, str, int]] = {
    b"UEFI Debug Mode": ("debug", "the firmware allows a debugger", 96),
    b"DMA Protection Disabled": ("dma-protection-off", "the firmware did not keep devices from memory", 32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A key or digest that verified an image, or a setting of shim's: one EV_EFI_VARIABLE_AUTHORITY."""

    variable: str  # the variable that held it: "db", "Shim", "MokList", "SbatLevel"
    digest: bytes  # SHA-256 of the certificate or value, 32 bytes
    subject: str  # of the certificate; empty where the value is none


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureBoot:
    """Secure Boot as it was measured. What is not proved is off."""

    enabled: bool
    variables: Mapping[str, tuple[Signature, ...]]  # PK, KEK, db, dbx, as far as they are proved
    authorities: tuple[Authority, ...]
    authorities_complete: bool  # no event of the register could be an authority under another label
    conditions: tuple[Condition, ...]

    def facts(self) -> dict[str, Fact]:
        """Return it as JSON values."""
        variables: dict[str, Fact] = {
            name: [{"type": one.kind, "sha256": one.digest.hex()} for one in signatures]
            for name, signatures in self.variables.items()
        }
        return {
            "enabled": self.enabled,
            "variables": variables,
            "authorities": [
                {"variable": one.variable, "sha256": one.digest.hex(), "subject": one.subject}
                for one in self.authorities
            ],
            "authorities_complete": self.authorities_complete,
        }


def read_secure_boot(log: ReplayedLog) -> SecureBoot:
    """Return what the events of PCR 7, or RTMR0, prove of Secure Boot.

    The type of an event is not measured. Variables therefore count only before the first separator, which is known by
    its digest: there firmware alone extends. They are hashed whole, in the order of the specification, each once.
    """
    events = log.of("pcr7" if log.layout == "pcr" else "rtmr0")
    before = list(takewhile(lambda event: not is_separator(event, log.bank), events))
    found = dict(_variables(before)) if len(before) < len(events) else {}
    keys = [variable.key for variable in found.values()]
    ordered = keys[: len(_ORDER)] == list(_ORDER) and len(set(keys)) == len(keys)
    first = next(iter(found.values())) if ordered else None
    enabled = first is not None and first.variable_data == b"\x01"
    authorities, opaque = _authorities(event for event in events if event.number not in found)
    opaque = [event for event in opaque if not _is_known(event, log.bank)]
    return SecureBoot(
        enabled=enabled,
        variables=_signatures([*found.values()]) if ordered else {},
        authorities=authorities,
        authorities_complete=bool(events) and not opaque and log.layout == "pcr",
        conditions=tuple(_conditions(log, events, enabled=enabled, ordered=ordered, opaque=bool(opaque))),
    )


def _variables(events: list[MeasuredEvent]) -> Iterator[tuple[int, VariableData]]:
    for event in events:
        if event.type == EV_EFI_VARIABLE_DRIVER_CONFIG and event.content is not None:
            try:
                variable = VariableData.parse(event.content)
            except EvidenceFormatError:
                continue
            if not variable.trailing:
                yield event.number, variable


def _is_known(event: MeasuredEvent, bank: Bank) -> bool:
    """Say whether an event is no authority: a separator by its digest, or a sentence of the firmware's."""
    text = (event.content or b"\0").decode("ascii", "replace")
    return is_separator(event, bank) or (event.type in (EV_EFI_ACTION, EV_ACTION) and text.isprintable())


def _signatures(variables: list[VariableData]) -> Mapping[str, tuple[Signature, ...]]:
    found: dict[str, tuple[Signature, ...]] = {}
    for variable in variables[1:]:
        try:
            found[variable.unicode_name] = parse_signature_lists(variable.variable_data)
        except EvidenceFormatError:
            continue
    return found


def _authorities(events: Iterable[MeasuredEvent]) -> tuple[tuple[Authority, ...], list[MeasuredEvent]]:
    """Return the authorities among events, whatever type the log gives them, and the events that are none."""
    found: list[Authority] = []
    others: list[MeasuredEvent] = []
    for event in events:
        try:
            variable = VariableData.parse(event.content or b"")
            authority = _authority(variable)
        except EvidenceFormatError:
            others.append(event)
            continue
        if variable.unicode_name and len(variable.trailing) <= _SHIM_TRAILING:
            found.append(authority)
        else:
            others.append(event)
    return tuple(found), others


def _authority(variable: VariableData) -> Authority:
    """Firmware measures owner and certificate, shim before version 15.3 the certificate alone."""
    value = variable.variable_data
    if value[:1] != b"\x30" and variable.unicode_name in ("db", "dbx", "KEK"):
        value = parse_signature_data(value).data
    return Authority(variable=variable.unicode_name, digest=sha256(value).digest(), subject=_subject(value))


def _subject(der: bytes) -> str:
    if der[:1] != b"\x30":
        return ""
    try:
        certificate = load_certificate(der)
    except EvidenceFormatError:
        return ""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _conditions(
    log: ReplayedLog, events: Sequence[MeasuredEvent], *, enabled: bool, ordered: bool, opaque: bool
) -> Iterator[Condition]:
    if not enabled:
        why = "it is off" if ordered else "the log does not prove its variables"
        yield Condition(code="secure-boot-off", text=f"Secure Boot: {why}", claim="configuration")
    if log.layout == "pcr" and opaque:
        yield Condition(
            code="secure-boot-opaque",
            text="PCR 7 holds an event that the log does not explain: it could be any key",
            claim="configuration",
        )
    digests = {event.digest for event in events}
    for action, (code, text, value) in _ACTIONS.items():
        if hashed(log.bank, action) in digests:
            yield Condition(code=code, text=text, claim="configuration", value=value)
