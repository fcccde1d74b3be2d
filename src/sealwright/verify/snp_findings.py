"""What a genuine SEV-SNP report says: conditions, facts, the chain of trust for people. Spec: docs/spec/snp.md."""

from __future__ import annotations

from collections.abc import Iterator

from sealwright.endorsement.amd import VekCertificate, signer_name
from sealwright.evidence.snp import HOST_VMPL, SnpReport
from sealwright.verify.chain import Chain
from sealwright.verify.verified import CollateralUse, Condition, Fact, Proof

NO_MIGRATION_AGENT = b"\xff" * 32  # REPORT_ID_MA
MASKED_CHIP_ID = bytes(64)
_TELLS_ALIASES = 3  # version of reports
_NOT_PROVED = (
    "that nobody taps or alters the memory bus or has opened the processor: SEV-SNP does not defend against that",
    "that no side channel leads out of the guest",
    "what ran after launch: the measurement covers the guest's first memory, what it loads it has to check itself",
)
_NOT_PROVED_BY_VLEK = "which machine it is: one VLEK serves many machines of its cloud"
_NOT_PROVED_ON_MILAN = (
    "that the key never left the chip: software alone can extract the root seed of a Milan (arXiv 2605.12990)"
)


def conditions(report: SnpReport) -> Iterator[Condition]:
    """Yield the states that a policy has to admit."""
    if report.policy.has("debug"):
        text = "the guest policy allows debugging: the host may read and write the guest's memory"
        yield Condition(code="debug", text=text, claim="runtime-opaque")
    if report.policy.has("migrate_ma") or report.report_id_ma != NO_MIGRATION_AGENT:
        text = "the guest may be moved by a migration agent, which then holds its memory"
        yield Condition(code="migration", text=text, claim="runtime-opaque", value=32)
    unknown = (report.policy.unknown_bits, report.platform_info.unknown_bits)
    if any(unknown):
        text = (
            f"bits are set that are not known: guest policy {unknown[0]}, platform information {unknown[1]}"
        )
        yield Condition(code="unknown-bits", text=text, claim="configuration", value=32)
    # Firmware that writes version 3 tells this of every generation; older versions have no such bit to set.
    if report.version >= _TELLS_ALIASES and not report.platform_info.has("alias_check_complete"):
        text = "the firmware did not check that no two addresses lead to the same memory (CVE-2024-21944)"
        yield Condition(code="alias-check-incomplete", text=text)
    yield from _tcb_conditions(report)
    if report.key_info.signing_key == "vcek" and report.chip_id == MASKED_CHIP_ID:
        text = "the host masks CHIP_ID: the chip is known from the certificate of its key alone"
        yield Condition(code="chip-id-masked", text=text, claim="instance-identity", value=32)


def _tcb_conditions(report: SnpReport) -> Iterator[Condition]:
    if (report.committed_tcb, report.committed) != (report.current_tcb, report.current):
        text = (
            f"firmware {report.current} ({report.current_tcb}) runs, but {report.committed} ({report.committed_tcb}) "
            "is committed: the host may go back to that"
        )
        yield Condition(code="provisional-firmware", text=text, value=32)
    for name, tcb in (("reported", report.reported_tcb), ("launch", report.launch_tcb)):
        lower = report.current_tcb.below(tcb)
        if lower:
            text = (
                f"the current TCB is below the {name} TCB in {', '.join(lower)}: the firmware was taken back"
            )
            yield Condition(code="tcb-inconsistent", text=text)


def facts(report: SnpReport, vek: VekCertificate) -> dict[str, Fact]:
    """Return the report's fields by AMD's names, as JSON values."""
    fms = report.cpuid_fms
    return {
        "version": report.version,
        "product": vek.product,
        "guest_svn": report.guest_svn,
        "policy": report.policy.to_json(),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "vmpl": report.vmpl,
        "platform_info": report.platform_info.to_json(),
        "author_key_en": report.key_info.author_key_en,
        "signing_key": vek.kind,
        "csp_id": vek.csp_id,
        "hwid": None if vek.hwid is None else vek.hwid.hex(),
        "chip_id": report.chip_id.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "cpuid": None if fms is None else {"family": fms[0], "model": fms[1], "stepping": fms[2]},
        "current_tcb": report.current_tcb.to_json(),
        "reported_tcb": report.reported_tcb.to_json(),
        "committed_tcb": report.committed_tcb.to_json(),
        "launch_tcb": report.launch_tcb.to_json(),
        "current": str(report.current),
        "committed": str(report.committed),
        "launch_mit_vector": _hex(report.launch_mit_vector),
        "current_mit_vector": _hex(report.current_mit_vector),
    }


def report_proof(report: SnpReport, vek: VekCertificate) -> Proof:
    """Return what the key proves of the report."""
    by = "the host" if report.vmpl == HOST_VMPL else f"a guest at VMPL {report.vmpl}"
    return Proof(what=f"report asked for by {by}, measurement {report.measurement.hex()[:16]}…", by=_key(vek))


def chain_proofs(vek: VekCertificate, chain: Chain) -> tuple[Proof, ...]:
    """Return who vouches for the key, root last."""
    ask, ark = signer_name(vek.product, vek.kind), f"ARK-{vek.product}"
    leaf, middle, top = (certificate.not_valid_after_utc for certificate in chain.certificates)
    return (
        Proof(what=f"{_key(vek)}, for TCB {vek.tcb}", by=ask, until=leaf),
        Proof(what=ask, by=ark, until=middle),
        Proof(what=ark, by="pinned in this package" if chain.vendor else "named by the policy", until=top),
    )


def revocation_proof(vek: VekCertificate, crl: CollateralUse) -> Proof:
    """Return what is known of the revocation of the ASK or ASVK."""
    ask = signer_name(vek.product, vek.kind)
    if not crl.digest:
        return Proof(what=f"not known: whether {ask} was revoked", by="outage policy")
    return Proof(what=f"{ask} was not revoked", by=f"CRL of ARK-{vek.product}", until=crl.next_update)


def not_proved(vek: VekCertificate) -> tuple[str, ...]:
    """Return what such a report cannot show."""
    by_vlek = (_NOT_PROVED_BY_VLEK,) if vek.kind == "vlek" else ()
    on_milan = (_NOT_PROVED_ON_MILAN,) if vek.product == "Milan" else ()
    return (*on_milan, *by_vlek, *_NOT_PROVED)


def _key(vek: VekCertificate) -> str:
    return f"VCEK of chip {vek.hwid.hex()[:16]}…" if vek.hwid else f"VLEK of cloud {vek.csp_id}"


def _hex(vector: int | None) -> str | None:
    return None if vector is None else f"{vector:#x}"
