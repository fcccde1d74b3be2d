"""Is this genuine SEV-SNP report allowed? Spec: docs/spec/snp.md, "Rules".

A generation is admitted by naming it with its lowest TCB, so that one that was broken can be left out; nothing is
admitted because a rule is missing. "any" is written where nothing is to be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from sealwright.appraisal.rules import HardwareRules, HexBytes
from sealwright.crypto.document import Record
from sealwright.endorsement.amd import VekKind
from sealwright.errors import AppraisalFailure
from sealwright.evidence.snp import SnpReport
from sealwright.evidence.snp_fields import (
    FirmwareVersion,
    GuestPolicyBit,
    PlatformInfoBit,
    Product,
    TcbVersion,
)
from sealwright.verify.snp import VerifiedSnp
from sealwright.verify.verified import Verified

_B = TypeVar("_B", GuestPolicyBit, PlatformInfoBit)
_U8 = Annotated[int, Field(ge=0, le=255)]
_U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
_Vector = Annotated[str, Field(pattern=r"^0x[0-9a-f]{1,16}$")]
_AnyOf = Literal["any"] | Annotated[list[HexBytes], Field(min_length=1, max_length=4096)]


def _no_cxl() -> list[GuestPolicyBit]:
    return ["cxl_allow"]


def _vcek_only() -> list[VekKind]:
    return ["vcek"]


class TcbFloor(Record):
    """The lowest security version of each part."""

    fmc: _U8 | None = None  # of Turin, which alone has one
    boot_loader: _U8
    tee: _U8
    snp: _U8
    microcode: _U8

    def version(self) -> TcbVersion:
        """Return it as reports have it."""
        return TcbVersion(
            fmc=self.fmc, boot_loader=self.boot_loader, tee=self.tee, snp=self.snp, microcode=self.microcode
        )


class ProductRules(Record):
    """What is asked of one generation of processors."""

    minimum_tcb: TcbFloor  # of the reported TCB, which the signing key is bound to
    minimum_launch_tcb: TcbFloor | None = (
        None  # when the guest was launched; left out: the same as `minimum_tcb`
    )
    minimum_version: Annotated[str, Field(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")] = (
        "0.0"  # of committed firmware
    )
    minimum_build: _U8 = 0  # where the committed version is exactly the lowest one
    minimum_launch_mit_vector: _Vector = "0x0"  # bits that have to be set; reports before version 5 have none
    minimum_current_mit_vector: _Vector = "0x0"


class GuestPolicyRules(Record):
    """Bits of the guest policy. Debugging and migration are conditions: see `admit`."""

    require: Annotated[list[GuestPolicyBit], Field(max_length=16)] = Field(default_factory=list)
    forbid: Annotated[list[GuestPolicyBit], Field(max_length=16)] = Field(default_factory=_no_cxl)
    minimum_abi: Annotated[str, Field(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")] = "0.0"


class PlatformInfoRules(Record):
    """Bits of the platform information."""

    require: Annotated[list[PlatformInfoBit], Field(max_length=16)] = Field(default_factory=list)
    forbid: Annotated[list[PlatformInfoBit], Field(max_length=16)] = Field(default_factory=list)


class SnpRules(HardwareRules):
    """Admits SEV-SNP guests. Registers: `measurement`, `host_data`, `id_key_digest`, `author_key_digest`."""

    products: Annotated[
        dict[Product, ProductRules], Field(min_length=1)
    ]  # a generation that is not named is refused
    # A VLEK is one key for many machines of a cloud: whoever takes it from one of them can speak for all.
    signing_keys: Annotated[list[VekKind], Field(min_length=1, max_length=2)] = Field(
        default_factory=_vcek_only
    )
    csp_ids: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)  # of VLEKs
    chips: _AnyOf = "any"  # HWID of VCEKs: 64 bytes, on Turin 8
    vmpl: Annotated[list[Annotated[int, Field(ge=0, le=3)]], Field(min_length=1, max_length=4)] = Field(
        default_factory=lambda: [0]
    )
    guest_policy: GuestPolicyRules = Field(default_factory=GuestPolicyRules)
    platform_info: PlatformInfoRules = Field(default_factory=PlatformInfoRules)
    # With keys named in either list, the guest's ID block was signed by one of `id_keys`, or by a key that one of
    # `author_keys` certified.
    id_keys: Annotated[list[HexBytes], Field(max_length=64)] = Field(default_factory=list)
    author_keys: Annotated[list[HexBytes], Field(max_length=64)] = Field(default_factory=list)
    require_author_key: bool = False
    minimum_guest_svn: _U32 = 0
    family_ids: _AnyOf = "any"
    image_ids: _AnyOf = "any"
    report_ids: _AnyOf = "any"
    report_ids_ma: _AnyOf = "any"

    @model_validator(mode="after")
    def _check(self) -> Self:
        for product, rules in self.products.items():
            for floor in (rules.minimum_tcb, rules.minimum_launch_tcb or rules.minimum_tcb):
                if (floor.fmc is not None) != (product == "Turin"):
                    raise ValueError("fmc is named for Turin, and for Turin alone")
        if "vlek" in self.signing_keys and not self.csp_ids:
            raise ValueError("with signing key vlek, csp_ids names the clouds")
        if self.require_author_key and not self.author_keys:
            raise ValueError("with require_author_key, author_keys names the keys")
        return self

    def names_code(self, verified: Verified) -> bool:
        """Say whether the measurement is listed: HOST_DATA says nothing about code, the host chooses it."""
        return "measurement" in self.listed and super().names_code(verified)

    def refusals(self, verified: VerifiedSnp) -> Iterator[AppraisalFailure]:
        """Yield every reason of this platform's own to refuse `verified`."""
        if not ("measurement" in self.listed or self.id_keys or self.author_keys):
            text = "the policy names no code: it lists no measurement, and no key that signs guests"
            yield AppraisalFailure(text, code="no-code-named")
        yield from self.hardware_refusals(verified)

    def hardware_refusals(self, verified: VerifiedSnp) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse `verified` but that nothing names its code."""
        report = verified.report
        rules = self.products.get(verified.product)
        if rules is None:
            text = f"the policy does not admit {verified.product} processors"
            yield AppraisalFailure(text, code="product-not-allowed")
        else:
            yield from _product_refusals(report, rules)
        yield from self._signer_refusals(verified)
        yield from self._guest_refusals(report)
        yield from self._id_block_refusals(report)

    def _signer_refusals(self, verified: VerifiedSnp) -> Iterator[AppraisalFailure]:
        if verified.signing_key not in self.signing_keys:
            text = (
                f"the report was signed by a {verified.signing_key.upper()}, which the policy does not admit"
            )
            yield AppraisalFailure(text, code="signing-key-not-allowed")
        if verified.csp_id is not None and verified.csp_id not in self.csp_ids:
            text = f"the VLEK belongs to {verified.csp_id!r}, which the policy does not list"
            yield AppraisalFailure(text, code="csp-not-allowed")
        if self.chips != "any" and verified.chip_id not in self.chips:
            chip = "not told" if verified.chip_id is None else f"{verified.chip_id.hex()[:16]}…"
            yield AppraisalFailure(
                f"the chip is {chip}, which the policy does not list", code="chip-not-allowed"
            )

    def _guest_refusals(self, report: SnpReport) -> Iterator[AppraisalFailure]:
        if report.vmpl not in self.vmpl:
            text = f"the report was asked for at VMPL {report.vmpl}; the policy admits {self.vmpl}"
            yield AppraisalFailure(text, code="vmpl-not-allowed")
        policy = report.policy
        for wrong in _wrong(self.guest_policy.require, self.guest_policy.forbid, policy.has):
            yield AppraisalFailure(
                f"guest policy: {wrong}, against the policy", code="guest-policy-not-allowed"
            )
        if policy.abi < _version(self.guest_policy.minimum_abi):
            text = f"guest policy: the guest may run on ABI {policy.abi[0]}.{policy.abi[1]}, which the policy refuses"
            yield AppraisalFailure(text, code="guest-policy-not-allowed")
        info = report.platform_info
        for wrong in _wrong(self.platform_info.require, self.platform_info.forbid, info.has):
            yield AppraisalFailure(f"platform: {wrong}, against the policy", code="platform-info-not-allowed")

    def _id_block_refusals(self, report: SnpReport) -> Iterator[AppraisalFailure]:
        by_author = report.key_info.author_key_en and report.author_key_digest in self.author_keys
        by_id_key = report.id_key_digest in self.id_keys and not self.require_author_key
        if (self.id_keys or self.author_keys) and not (by_author or by_id_key):
            text = "the guest's ID block was not signed by a key that the policy lists"
            yield AppraisalFailure(text, code="id-block-not-allowed")
        if report.guest_svn < self.minimum_guest_svn:
            text = f"GUEST_SVN is {report.guest_svn}; the policy asks for {self.minimum_guest_svn}"
            yield AppraisalFailure(text, code="id-block-not-allowed")
        listed = (
            ("family_id", report.family_id, self.family_ids),
            ("image_id", report.image_id, self.image_ids),
            ("report_id", report.report_id, self.report_ids),
            ("report_id_ma", report.report_id_ma, self.report_ids_ma),
        )
        for name, found, allowed in listed:
            if allowed != "any" and found not in allowed:
                text = f"{name} is {found.hex()}, which the policy does not list"
                yield AppraisalFailure(text, code="guest-identity-not-allowed")


def _product_refusals(report: SnpReport, rules: ProductRules) -> Iterator[AppraisalFailure]:
    floors = (
        ("reported", report.reported_tcb, rules.minimum_tcb),
        ("launch", report.launch_tcb, rules.minimum_launch_tcb or rules.minimum_tcb),
    )
    for name, tcb, floor in floors:
        low = tcb.below(floor.version())
        if low:
            text = f"the {name} TCB ({tcb}) is below the policy's in {', '.join(low)}"
            yield AppraisalFailure(text, code="tcb-below-minimum")
    lowest = FirmwareVersion(*_version(rules.minimum_version), rules.minimum_build)
    if report.committed < lowest:
        text = f"firmware {report.committed} is committed; the policy asks for {lowest}"
        yield AppraisalFailure(text, code="firmware-below-minimum")
    vectors = (
        ("launch", report.launch_mit_vector, rules.minimum_launch_mit_vector),
        ("current", report.current_mit_vector, rules.minimum_current_mit_vector),
    )
    for name, vector, minimum in vectors:
        missing = int(minimum, 16) & ~(vector or 0)
        if missing:
            text = f"the {name} mitigation vector lacks bits {missing:#x}"
            yield AppraisalFailure(text, code="mitigation-missing")


def _wrong(require: Sequence[_B], forbid: Sequence[_B], has: Callable[[_B], bool]) -> Iterator[str]:
    yield from (f"{bit} is not set" for bit in require if not has(bit))
    yield from (f"{bit} is set" for bit in forbid if has(bit))


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
