"""What a TDX quote says beside its registers, and which of it is refused unless a policy admits it. Spec: docs/spec/dcap.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from sealwright.evidence.tdreport import TD_REPORT_1_0, TD_REPORT_1_5, TD_REPORT_1_5_EX, TdExtension
from sealwright.evidence.tdx import TdxQuote
from sealwright.verify.verified import Condition, Fact

_BODIES = MappingProxyType(
    {TD_REPORT_1_0: "TD 1.0", TD_REPORT_1_5: "TD 1.5", TD_REPORT_1_5_EX: "TD 1.5, extended"}
)
# Bits whose effect this package judges; every other bit that is set is reported as `unknown-bits`.
_BITS = MappingProxyType(
    {
        "DEBUG": ("debug", "the TD runs in debug mode: its memory and registers can be read", 96),
        "HGS_PLUS_PROF": ("profiling", "the host may profile the TD (HGS_PLUS_PROF)", 96),
        "PERF_PROF": ("profiling", "the host may profile the TD (PERF_PROF)", 96),
        "PMT_PROF": ("profiling", "the host may profile the TD (PMT_PROF)", 96),
        "MIGRATABLE": ("migration", "the TD may be migrated to another machine", 32),
        "PERFMON": ("perfmon-enabled", "the TD may use performance monitoring, a side channel", 32),
        "KL": ("key-locker-enabled", "the TD may use Key Locker, whose keys the platform handles", 32),
        "SERVTD_EXT": (
            "initial-platform",
            "the TD tells where it was first made, and the TCB of that platform is not judged",
            32,
        ),
        "PKS": ("supervisor-keys-enabled", "the TD may use supervisor protection keys", 32),
    }
)
_UNDER_DEBUG = frozenset(range(8))  # the group TUD: with any of its bits a TD is not to be trusted
_JUDGED = frozenset({*_BITS, "SEPT_VE_DISABLE"})


def facts(quote: TdxQuote) -> dict[str, Fact]:
    """Return what is worth knowing of the TD, JSON values."""
    report = quote.report
    later, service = report.tee_tcb_svn_2, report.mr_servicetd
    return {
        "body": _BODIES[quote.body_type],
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "tee_tcb_svn_2": later.hex() if later is not None else None,
        "mr_servicetd": service.hex() if service is not None else None,
        "seam_attributes": report.seam_attributes.hex(),
        "td_attributes": report.td_attributes.hex(),
        "td_attribute_bits": list(quote.attributes.names),
        "xfam": report.xfam.hex(),
        "xfam_bits": list(quote.xfam.names),
        "padding": quote.padding,
        **({} if report.extension is None else {"extension": _extension(report.extension)}),
    }


def _extension(said: TdExtension) -> Mapping[str, Fact]:
    texts = {
        name: getattr(said, name).hex() for name in said.__dataclass_fields__ if name != "vmid"
    }  # all but one are bytes
    return {"vmid": said.vmid, **texts}


def conditions(quote: TdxQuote) -> Iterator[Condition]:
    """Yield every state that is refused unless a policy admits it; the TCB has its own."""
    found: dict[str, Condition] = {}
    for name in quote.attributes.names:
        if name in _BITS:
            code, text, value = _BITS[name]
            found.setdefault(code, _condition(code, text, value))
    nameless = sorted(_UNDER_DEBUG & set(quote.attributes.unknown))
    if nameless:
        text = f"attributes are set that mean a TD under debug: {', '.join(map(str, nameless))}"
        found.setdefault("debug", _condition("debug", text, 96))
    if quote.report.service_tds:
        text = "a service TD is bound to the TD, such as one that migrates it"
        found.setdefault("migration", _condition("migration", text, 32))
    yield from found.values()
    yield from _extended(quote.report.extension)
    if "SEPT_VE_DISABLE" not in quote.attributes:
        text = "the host can inject exceptions by taking pages away (SEPT_VE_DISABLE is not set)"
        yield Condition(code="sept-ve-enabled", text=text, claim="configuration")
    unknown = [name for name in quote.attributes.names if name not in _JUDGED]
    unknown += [f"attribute {bit}" for bit in quote.attributes.unknown if bit not in _UNDER_DEBUG]
    unknown += [f"XFAM {bit}" for bit in quote.xfam.unknown]
    if unknown:
        text = f"bits are set whose effect is not judged: {', '.join(unknown)}"
        yield Condition(code="unknown-bits", text=text, claim="configuration")


def _extended(said: TdExtension | None) -> Iterator[Condition]:
    if said is None:
        return
    if said.vmid:
        text = f"guest {said.vmid} within a partitioned TD asked for this: the registers are not its own"
        yield _condition("td-partitioned", text, 32)
    if any(said.dev_info):
        text = "devices were given to the TD, and nothing here proves what they are"
        yield _condition("devices-assigned", text, 32)


def _condition(code: str, text: str, value: int) -> Condition:
    looked_into = code in ("debug", "profiling")
    return Condition(
        code=code, text=text, claim="runtime-opaque" if looked_into else "configuration", value=value
    )
