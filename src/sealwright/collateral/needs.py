"""From evidence to the list of collateral it needs. Nothing is verified: a wrong name costs an unanswered request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha384
from itertools import pairwise
from typing import Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealwright.collateral.need import Need
from sealwright.errors import CollateralError, MessageFormatError

Tee = Literal["sgx", "tdx"]
Vek = Literal["vcek", "vlek"]
_LONG_IDS = frozenset({"Milan", "Genoa"})  # later products have ids of 8 bytes, and a fifth level (57230)


class TcbLevels(Protocol):
    """The security patch levels of an SEV-SNP report's REPORTED_TCB."""

    @property
    def boot_loader(self) -> int:
        """BL."""

    @property
    def tee(self) -> int:
        """TEE."""

    @property
    def snp(self) -> int:
        """SNP."""

    @property
    def microcode(self) -> int:
        """Microcode."""

    @property
    def fmc(self) -> int | None:
        """FMC, from Turin on."""


def snp_needs(
    product: str, chip_id: bytes, tcb: TcbLevels, *, vek: Vek = "vcek", has_vek: bool = False
) -> tuple[Need, ...]:
    """Return what an SEV-SNP report needs.

    Args:
        product: KDS's name: `Milan`, `Genoa` (Zen 4c too), `Turin`.
        chip_id: CHIP_ID, 64 bytes.
        tcb: REPORTED_TCB; not the current or committed one.
        vek: the key that signed, as the report says. A VLEK always comes with the evidence.
        has_vek: the certificate of that key came along.

    Raises:
        CollateralError: `chip-not-named`: nobody can ask for the VCEK of a chip that is not named.
        MessageFormatError: `unknown-collateral`: the product is not a word.
    """
    needs = [
        Need.named("amd-chain", f"{vek}:{product}"),
        Need.named("amd-crl", f"{vek}:{product}"),
    ]
    if vek == "vcek" and not has_vek:
        needs.insert(0, vcek_need(product, chip_id, tcb))
    return tuple(needs)


def vcek_need(product: str, chip_id: bytes, tcb: TcbLevels) -> Need:
    """Return the need of one chip's VCEK. See `snp_needs`."""
    if not any(chip_id):
        raise CollateralError(
            "the report does not name its chip (CHIP_ID is masked), so that its VCEK cannot be asked for: "
            "bring the certificate with the evidence",
            code="chip-not-named",
            stage="fetch",
        )
    long = product in _LONG_IDS
    levels = [tcb.boot_loader, tcb.tee, tcb.snp, tcb.microcode, *([] if long else [tcb.fmc or 0])]
    hwid = chip_id.hex() if long else chip_id[:8].hex()
    return Need.named("amd-vcek", ":".join([product, hwid, *map(str, levels)]))


def thim_needs() -> tuple[Need, ...]:
    """Return what Azure keeps for the SEV-SNP virtual machine that asks: its VCEK and chain."""
    return (Need("azure-thim", "this-vm"),)


def dcap_needs(fmspc: bytes, ca: str, tee: Tee, *, update: str | int = "standard") -> tuple[Need, ...]:
    """Return what an SGX or TDX quote needs.

    Args:
        fmspc: of its PCK certificate, 6 bytes.
        ca: the CA that issued it: `processor` or `platform`.
        update: `standard`, `early`, or a tcbEvaluationDataNumber.

    Raises:
        MessageFormatError: `unknown-collateral`.
    """
    suffix = "" if update == "standard" else f":{update}"
    return (
        Need.named("intel-tcb-info", f"{tee}:{fmspc.hex()}{suffix}"),
        Need.named("intel-qe-identity", f"{tee}{suffix}"),
        Need.named("intel-pck-crl", ca),
        Need.named("intel-root-crl", "root"),
    )


def gpu_needs(
    product: str,
    driver: str,
    vbios: str,
    device_chain: Sequence[x509.Certificate] = (),
) -> tuple[Need, ...]:
    """Return what the report of an NVIDIA GPU needs.

    Args:
        product: of the driver's RIM: `GH100`, `GB100`, …
        driver: its version: `550.90.07`.
        vbios: `{project}_{project SKU}_{chip SKU}_{version without dots}`: `1010_0200_882_96009F0001`.
        device_chain: leaf first, root last. The leaf lives for one boot, and no responder knows it.

    Raises:
        MessageFormatError: `unknown-collateral`.
    """
    return (
        Need.named("nvidia-rim", f"NV_GPU_DRIVER_{product}_{driver}"),
        Need.named("nvidia-rim", f"NV_GPU_VBIOS_{vbios}"),
        *ocsp_needs(device_chain[1:]),
    )


def ocsp_needs(chain: Sequence[x509.Certificate]) -> tuple[Need, ...]:
    """Return the OCSP responses for a chain of NVIDIA's, issuers after their subjects; the last one is not asked for.

    Raises:
        MessageFormatError: `unknown-collateral`: a serial number that no certificate may have.
    """
    return tuple(
        Need.named("nvidia-ocsp", f"{_name(issuer)}:{_key(issuer)}:{certificate.serial_number:x}")
        for certificate, issuer in pairwise(chain)
    )


def google_needs(tee: Literal["sevsnp", "tdx"], measurement: bytes) -> tuple[Need, ...]:
    """Return what shows that Google endorsed a launch: MEASUREMENT or MRTD, 48 bytes.

    Raises:
        MessageFormatError: `unknown-collateral`.
    """
    return Need.named("google-endorsement", f"{tee}:{measurement.hex()}"), Need("google-root", "1")


def merged(needs: Iterable[Need]) -> tuple[Need, ...]:
    """Return each need once, slow ones first, so that others are answered while they wait for their turn."""
    return tuple(sorted(set(needs), key=lambda need: (need.kind != "amd-vcek", need)))


def _name(issuer: x509.Certificate) -> str:
    return sha384(issuer.subject.public_bytes()).hexdigest()


def _key(issuer: x509.Certificate) -> str:
    """Return the digest over the key's bits, without the algorithm around them (RFC 6960, 4.1.1)."""
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MessageFormatError("NVIDIA's certificates have keys on curves", code="unknown-collateral")
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return sha384(point).hexdigest()
