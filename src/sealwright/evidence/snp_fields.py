"""Fields of SEV-SNP reports that are records themselves: TCB versions, guest policy, platform information, processor.

Layouts: AMD 56860 (SEV-SNP Firmware ABI), TCB_VERSION, guest policy, PLATFORM_INFO; AMD 57230 for the processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from sealwright.errors import EvidenceFormatError

Product = Literal["Milan", "Genoa", "Turin"]
PRODUCTS: tuple[Product, ...] = ("Milan", "Genoa", "Turin")
SigningKey = Literal["vcek", "vlek", "none"]

GuestPolicyBit = Literal[
    "smt",
    "migrate_ma",
    "debug",
    "single_socket",
    "cxl_allow",
    "mem_aes_256_xts",
    "rapl_dis",
    "ciphertext_hiding_dram",
    "page_swap_disable",
]
PlatformInfoBit = Literal[
    "smt_en",
    "tsme_en",
    "ecc_en",
    "rapl_dis",
    "ciphertext_hiding_dram_en",
    "alias_check_complete",
    "iommu_write_safe",
    "tio_en",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbVersion:
    """Security version numbers of one state of the platform. Each of them counts by itself."""

    fmc: int | None  # Turin alone has one
    boot_loader: int
    tee: int
    snp: int
    microcode: int

    @classmethod
    def decode(cls, raw: bytes, product: Product | None) -> Self:
        """Return the TCB version in 8 bytes.

        Args:
            product: None where the report does not say; those reports are of Milan or Genoa.

        Raises:
            EvidenceFormatError: `reserved-not-zero`.
        """
        if product == "Turin":
            fmc, boot_loader, tee, snp, *reserved, microcode = raw
            version = cls(fmc=fmc, boot_loader=boot_loader, tee=tee, snp=snp, microcode=microcode)
        else:
            boot_loader, tee, *reserved, snp, microcode = raw
            version = cls(fmc=None, boot_loader=boot_loader, tee=tee, snp=snp, microcode=microcode)
        if any(reserved):
            raise EvidenceFormatError("reserved bytes of a TCB version are set", code="reserved-not-zero")
        return version

    def encode(self) -> bytes:
        """Return the 8 bytes that `decode` accepts."""
        if self.fmc is not None:
            return bytes((self.fmc, self.boot_loader, self.tee, self.snp, 0, 0, 0, self.microcode))
        return bytes((self.boot_loader, self.tee, 0, 0, 0, 0, self.snp, self.microcode))

    def below(self, other: TcbVersion) -> list[str]:
        """Return the names of the numbers that are lower here than in `other`; one that is missing counts as 0."""
        if self is other:
            return []
        pairs = (
            ("fmc", self.fmc or 0, other.fmc or 0),
            ("boot_loader", self.boot_loader, other.boot_loader),
            ("tee", self.tee, other.tee),
            ("snp", self.snp, other.snp),
            ("microcode", self.microcode, other.microcode),
        )
        return [name for name, mine, theirs in pairs if mine < theirs]

    def to_json(self) -> dict[str, int]:
        """Return the numbers by name, without `fmc` where there is none."""
        fmc = {} if self.fmc is None else {"fmc": self.fmc}
        rest = {
            "boot_loader": self.boot_loader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }
        return fmc | rest

    def __str__(self) -> str:
        return " ".join(f"{name} {number}" for name, number in self.to_json().items())


@dataclass(frozen=True, slots=True, order=True)
class FirmwareVersion:
    """Version of the SNP firmware; ordered."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True)
class GuestPolicy:
    """What the guest's owner allowed the firmware to do with this guest, fixed at launch."""

    value: int  # 64 bits
    BITS: ClassVar[Mapping[GuestPolicyBit, int]] = {
        "smt": 16,
        "migrate_ma": 18,
        "debug": 19,
        "single_socket": 20,
        "cxl_allow": 21,
        "mem_aes_256_xts": 22,
        "rapl_dis": 23,
        "ciphertext_hiding_dram": 24,
        "page_swap_disable": 25,
    }
    KNOWN: ClassVar[int] = 0x3FFFFFF  # bits 0-15: ABI version; bit 17 is always set

    def has(self, bit: GuestPolicyBit) -> bool:
        """Say whether a bit is set."""
        return bool(self.value >> self.BITS[bit] & 1)

    @property
    def abi(self) -> tuple[int, int]:
        """The lowest ABI version (major, minor) that the guest may run on."""
        return self.value >> 8 & 0xFF, self.value & 0xFF

    @property
    def unknown_bits(self) -> list[int]:
        """Bits that are set and that this version of Sealwright has no name for."""
        return _bits(self.value & ~self.KNOWN)

    def to_json(self) -> dict[str, bool | str | list[int]]:
        """Return every bit by name, `abi` and the unknown bits."""
        known: dict[str, bool | str | list[int]] = {
            name: bool(self.value >> bit & 1) for name, bit in self.BITS.items()
        }
        return {"abi": "{}.{}".format(*self.abi), **known, "unknown_bits": self.unknown_bits}


@dataclass(frozen=True, slots=True)
class PlatformInfo:
    """What the firmware says of the platform at the time of the report."""

    value: int  # 64 bits
    BITS: ClassVar[Mapping[PlatformInfoBit, int]] = {
        "smt_en": 0,
        "tsme_en": 1,
        "ecc_en": 2,
        "rapl_dis": 3,
        "ciphertext_hiding_dram_en": 4,
        "alias_check_complete": 5,
        "iommu_write_safe": 6,
        "tio_en": 7,
    }
    KNOWN: ClassVar[int] = 0xFF

    def has(self, bit: PlatformInfoBit) -> bool:
        """Say whether a bit is set."""
        return bool(self.value >> self.BITS[bit] & 1)

    @property
    def unknown_bits(self) -> list[int]:
        """Bits that are set and that this version of Sealwright has no name for."""
        return _bits(self.value & ~self.KNOWN)

    def to_json(self) -> dict[str, bool | list[int]]:
        """Return every bit by name, and the unknown bits."""
        known: dict[str, bool | list[int]] = {
            name: bool(self.value >> bit & 1) for name, bit in self.BITS.items()
        }
        return {**known, "unknown_bits": self.unknown_bits}


def product_of(family: int, model: int) -> Product:
    """Return the product line of a processor, which decides the root key and the layout of TCB versions.

    Args:
        family, model: of CPUID, with the extended parts added.

    Raises:
        EvidenceFormatError: `unknown-processor`. Later generations have other layouts: nothing is guessed.
    """
    match family:
        case 0x19 if model <= 0x0F:
            return "Milan"
        case 0x19 if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:  # the latter: Zen 4c, Bergamo and Siena
            return "Genoa"
        case 0x1A if model <= 0x11:
            return "Turin"
    raise EvidenceFormatError(
        f"a report of a processor that is not known: family {family:#x}, model {model:#x}",
        code="unknown-processor",
    )


def _bits(value: int) -> list[int]:
    return [bit for bit in range(64) if value >> bit & 1] if value else []
