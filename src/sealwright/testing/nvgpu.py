"""A fake NVIDIA: device certificates, SPDM reports, signed RIM files and OCSP answers of its own, all of them worthless."""

from __future__ import annotations

import base64
import hashlib
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ObjectIdentifier

from sealwright.endorsement import nvidia_rim as shape
from sealwright.endorsement.strict_xml import canonical_xml, parse_xml
from sealwright.endorsement.x509 import fingerprint
from sealwright.evidence import nvopaque
from sealwright.evidence.envelope import DeviceEvidence
from sealwright.evidence.nvgpu import Architecture, GpuDocument, Stated
from sealwright.testing._nvidia_pki import Entity, answer, der, issue
from sealwright.testing.software import FakePlatformWarning

CHIPS: Mapping[Architecture, tuple[str, str]] = {
    "HOPPER": ("GH100", "GH100 A01 GSP FMC LF"),
    "BLACKWELL": ("GB100", "GB100 A01 GSP FMC LF"),
    "LS10": ("LS10", "LS_10 A01 FSP FMC LF"),
}
BEST_STATE = Stated(environment="production", cc_feature="on", devtools="off", multi_gpu="none")
DRIVER, GPU_VBIOS, SWITCH_VBIOS = "550.90.07", "96.00.9F.00.01", "96.10.55.00.01"
ON, OFF = b"\xaa", b"\x55"
_DRIVER_MEASUREMENTS = range(7, 10)
_VBIOS_MEASUREMENTS = range(7)
_FWID_PREFIX = bytes.fromhex("0609608648016503040202") + b"\x04\x30"


def tlv(tag: int, *contents: bytes) -> bytes:
    """Return a DER element."""
    content = b"".join(contents)
    size = len(content)
    length = (
        bytes([size]) if size < 128 else b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2)
    )
    return bytes([tag]) + length + content


def composite(key: ec.EllipticCurvePublicKey, fwid: bytes) -> bytes:
    """Return a CompositeDeviceID, as in certificates of Hopper and LS10."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return tlv(0x30, b"\x02\x01\x01", spki, tlv(0x30, _FWID_PREFIX, fwid))


def tcb_info(fwid: bytes, flags: int = 0) -> bytes:
    """Return a DiceTcbInfo, as in certificates of Blackwell; `flags`: the first byte of OperationalFlags."""
    fwids = tlv(0xA6, tlv(0x30, _FWID_PREFIX, fwid), tlv(0x30, _FWID_PREFIX, bytes(48)))
    return tlv(0x30, tlv(0x80, b"NVIDIA"), fwids, tlv(0x87, b"\0", bytes([flags, 0, 0, 1])))


def rs(signature: bytes) -> bytes:
    """Return a DER signature as r and s, 96 bytes."""
    return b"".join(one.to_bytes(48, "big") for one in decode_dss_signature(signature))


@dataclass(slots=True)
class FakeDevice:
    """One device with its keys and what it measures; change its fields to have it lie."""

    architecture: Architecture
    entity: Entity
    fwid: bytes  # 48 bytes
    measurements: dict[int, bytes]  # 0 is the first
    opaque: dict[int, bytes]

    @property
    def pdi(self) -> bytes:
        """Its identity, 8 bytes."""
        boot_rom = self.entity.entities()[1].certificate
        return boot_rom.serial_number.to_bytes(9, "big")[1:]

    def report(self, nonce: bytes, *, padding: int = 0) -> bytes:
        """Return request and signed answer over `nonce` (32 bytes)."""
        blocks = b"".join(_block(index, value) for index, value in sorted(self.measurements.items()))
        opaque = b"".join(_field(kind, value) for kind, value in self.opaque.items())
        head = bytes((0x11, 0x60, 0, 0, len(self.measurements))) + len(blocks).to_bytes(3, "little")
        answered = head + blocks + secrets.token_bytes(32) + len(opaque).to_bytes(2, "little") + opaque
        return self.sign(bytes((0x11, 0xE0, 0x01, 0xFF)) + nonce + b"\0" + answered) + bytes(padding)

    def sign(self, said: bytes) -> bytes:
        """Return `said` with its signature behind it."""
        return said + rs(self.entity.key.sign(said, ec.ECDSA(SHA384())))

    def document(self, nonce: bytes, *, stated: Stated | None = BEST_STATE) -> bytes:
        """Return evidence over `nonce` as it stands in an envelope."""
        if self.architecture == "LS10":
            stated = None
        return GpuDocument(
            arch=self.architecture,
            report=self.report(nonce),
            certificates=tuple(der(self.entity.chain)),
            stated=stated,
        ).encode()

    def sdk(self, nonce: bytes) -> dict[str, str]:
        """Return evidence over `nonce` as NVIDIA's SDK writes it."""
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in self.entity.chain)
        return {
            "arch": self.architecture,
            "nonce": nonce.hex(),
            "evidence": base64.b64encode(self.report(nonce)).decode(),
            "certificate": base64.b64encode(pem).decode(),
        }


@dataclass(slots=True)
class FakeNvidia:
    """Device root, RIM root, and everything below them, made at `now`. Never trust its roots."""

    now: datetime
    device_root: Entity = field(init=False)
    rim_root: Entity = field(init=False)
    rim_signer: Entity = field(init=False)
    _identities: dict[str, Entity] = field(init=False, default_factory=dict)
    _devices: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        warnings.warn("FakeNvidia signs anything", FakePlatformWarning, stacklevel=3)
        self.device_root = issue("Fake Device Identity CA", None, self.now)
        self.rim_root = issue("Fake RIM Root CA", None, self.now)
        middle = issue("Fake Reference Value CA", self.rim_root, self.now)
        middle = issue("Fake Reference Value L3", middle, self.now)
        self.rim_signer = issue("Fake RIM L4 Signer", middle, self.now, ca=False)

    @property
    def roots(self) -> frozenset[bytes]:
        """SHA-256 of both root certificates, for `Context.roots`."""
        return frozenset(fingerprint(one.certificate) for one in (self.device_root, self.rim_root))

    def device(
        self,
        architecture: Architecture = "HOPPER",
        *,
        flags: int = 0,
        dice: x509.UnrecognizedExtension | None = None,
        subject: str | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        curve: ec.EllipticCurve | None = None,
    ) -> FakeDevice:
        """Return a new device.

        Args:
            flags: first byte of OperationalFlags in a Blackwell's certificate.
            dice: another DICE extension than its own.
            subject: another name than its chip's.
            curve: of its key.
        """
        chip, name = CHIPS[architecture]
        boot_rom = self._boot_rom(architecture, chip)
        fwid = hashlib.sha384(f"{chip} firmware".encode()).digest()
        extension = dice or _dice(architecture, boot_rom.key.public_key(), fwid, flags)
        entity = issue(
            subject or name,
            boot_rom,
            self.now,
            ca=False,
            extensions=[(extension, False), *extensions],
            curve=curve,
        )
        device = FakeDevice(architecture, entity, fwid, _measured(chip), {})
        device.opaque = _switch_opaque(device) if architecture == "LS10" else _gpu_opaque(fwid)
        return device

    def machine(self, gpus: int, switches: int) -> tuple[list[FakeDevice], list[FakeDevice]]:
        """Return Hopper GPUs in protected-PCIe mode and the switches between them, wired to each other."""
        every_gpu = [self.device() for _ in range(gpus)]
        every_switch = [self.device("LS10") for _ in range(switches)]
        for gpu in every_gpu:
            gpu.opaque[nvopaque.PROTECTED_PCIE_STATUS] = ON
            links = [every_switch[number % switches].pdi[::-1] for number in range(18)]
            gpu.opaque[nvopaque.PDI] = b"".join(links)
        for switch in every_switch:
            seen = b"".join(gpu.pdi for gpu in every_gpu).ljust(64, b"\0")
            switch.opaque[nvopaque.GPU_PDIS] = seen + bytes(64)
        return every_gpu, every_switch

    def rim(
        self,
        device: FakeDevice,
        part: str,
        *,
        values: Mapping[int, Sequence[bytes]] | None = None,
        version: str | None = None,
        signer: Entity | None = None,
    ) -> bytes:
        """Return the RIM file of a part (`driver` or `vbios`) that `device` matches.

        Args:
            values: others than the device's, by index; none: not active.
            signer: another one than this NVIDIA's.
        """
        chip, _ = CHIPS[device.architecture]
        active = _DRIVER_MEASUREMENTS if part == "driver" else _VBIOS_MEASUREMENTS
        golden = {index: [device.measurements[index]] for index in active} | dict(values or {})
        versions = {"driver": DRIVER, "vbios": SWITCH_VBIOS if chip == "LS10" else GPU_VBIOS}
        return self.sign_rim(rim_text(chip, version or versions[part], golden), signer=signer)

    def sign_rim(self, text: str, *, signer: Entity | None = None) -> bytes:
        """Return the manifest `text` with a signature over it as its last child, in NVIDIA's shape."""
        by = signer or self.rim_signer
        root = text[: text.rindex("</")]
        digest = base64.b64encode(hashlib.sha384(canonical_xml(parse_xml(text.encode()))).digest()).decode()
        unsigned = root + signature_text(digest, "", der(by.chain)) + text[len(root) :]
        info = parse_xml(unsigned.encode()).elements[-1].elements[0]
        value = rs(by.key.sign(canonical_xml(info), ec.ECDSA(SHA384())))
        signed = signature_text(digest, base64.b64encode(value).decode(), der(by.chain))
        return (root + signed + text[len(root) :]).encode()

    def answers(self, entity: Entity) -> list[bytes]:
        """Return good OCSP answers about `entity` and those above it, but the root."""
        return [answer(one, self.now) for one in entity.entities()[:-1]]

    def endorsements(self, device: FakeDevice) -> tuple[bytes, ...]:
        """Return all that a verifier needs beside the evidence: root certificates, RIM files, OCSP answers."""
        parts = ["vbios"] if device.architecture == "LS10" else ["driver", "vbios"]
        return (
            *(self.rim(device, part) for part in parts),
            *self.answers(device.entity.entities()[1]),
            *self.answers(self.rim_signer),
        )

    def evidence(
        self, device: FakeDevice, nonce: bytes, *, stated: Stated | None = BEST_STATE
    ) -> DeviceEvidence:
        """Return evidence over `nonce` with all endorsements, as an envelope carries it."""
        return DeviceEvidence(
            type="nvswitch" if device.architecture == "LS10" else "nvgpu",
            evidence=device.document(nonce, stated=stated),
            endorsements=self.endorsements(device),
        )

    def _boot_rom(self, architecture: Architecture, chip: str) -> Entity:
        if architecture not in self._identities:
            identity = issue(f"Fake {chip} Identity", self.device_root, self.now)
            self._identities[architecture] = issue(f"Fake {chip} Provisioner ICA 1", identity, self.now)
        self._devices += 1
        prefix = 0x50 if architecture == "LS10" else 0x41
        serial = prefix << 64 | secrets.randbits(63) << 1 | 1
        return issue(
            f"{chip} A01 BROM {self._devices}", self._identities[architecture], self.now, serial=serial
        )


def rim_text(chip: str, version: str, golden: Mapping[int, Sequence[bytes]]) -> str:
    """Return a manifest without a signature."""
    lines = [
        f'<SoftwareIdentity xmlns="{shape.SWID}" xmlns:ns0="{shape.SWID}" xmlns:ns2="{shape.HASH}"'
        f' name="{chip}" tagId="{hashlib.sha384(version.encode()).hexdigest()}" version="1.0" tagVersion="0">',
        '    <ns0:Entity name="Fake Corporation" role="softwareCreator tagCreator"/>',
        f'    <ns0:Meta colloquialVersion="{version}" edition="GPU" product="{chip}" revision="r1"/>',
        "    <ns0:Payload>",
        *(_resource(index, values) for index, values in sorted(golden.items())),
        "    </ns0:Payload>",
        "</SoftwareIdentity>",
    ]
    return "\n".join(lines)


def signature_text(digest: str, value: str, chain: Sequence[bytes]) -> str:
    """Return a Signature element. Args: digest, value: base64; chain: DER, the signer's first."""
    certificates = "".join(
        f"<ds:X509Certificate>{base64.b64encode(one).decode()}</ds:X509Certificate>" for one in chain
    )
    return (
        f'<ds:Signature xmlns:ds="{shape.DSIG}"><ds:SignedInfo>'
        f'<ds:CanonicalizationMethod Algorithm="{shape.C14N}"/><ds:SignatureMethod Algorithm="{shape.ECDSA}"/>'
        f'<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{shape.ENVELOPED}"/>'
        f'<ds:Transform Algorithm="{shape.C14N}"/></ds:Transforms><ds:DigestMethod Algorithm="{shape.SHA384}"/>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
        f"<ds:SignatureValue>{value}</ds:SignatureValue>"
        f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )


def _resource(index: int, values: Sequence[bytes]) -> str:
    hashes = " ".join(
        f'ns2:Hash{number}="{value.hex()}"' for number, value in enumerate(values or [bytes(48)])
    )
    return (
        f'        <ns0:Resource type="Measurement" index="{index}" active="{bool(values)}"'
        f' alternatives="{len(values) or 1}" {hashes} name="Measurement_{index}" size="48"/>'
    )


def _dice(
    architecture: Architecture, key: ec.EllipticCurvePublicKey, fwid: bytes, flags: int
) -> x509.UnrecognizedExtension:
    if architecture == "BLACKWELL":
        return x509.UnrecognizedExtension(ObjectIdentifier("2.23.133.5.4.1.1"), tcb_info(fwid, flags))
    return x509.UnrecognizedExtension(ObjectIdentifier("2.23.133.5.4.1"), composite(key, fwid))


def _measured(chip: str) -> dict[int, bytes]:
    return {index: hashlib.sha384(f"{chip} {index}".encode()).digest() for index in range(64)}


def _gpu_opaque(fwid: bytes) -> dict[int, bytes]:
    parts = [int(part, 16) for part in GPU_VBIOS.split(".")]
    return {
        nvopaque.VBIOS_VERSION: bytes((*parts[3::-1], parts[4], 0, 0, 0)),
        nvopaque.PROJECT: b"1010\0",
        nvopaque.PROJECT_SKU: b"0200\0",
        nvopaque.CHIP_SKU: b"882\0",
        nvopaque.DRIVER_VERSION: DRIVER.encode() + b"\0",
        nvopaque.MSRSCNT: bytes(256),
        nvopaque.NVDEC0_STATUS: OFF,
        nvopaque.FWID: fwid,
        nvopaque.PROTECTED_PCIE_STATUS: OFF,
    }


def _switch_opaque(device: FakeDevice) -> dict[int, bytes]:
    return {
        nvopaque.VBIOS_VERSION: SWITCH_VBIOS.encode(),
        nvopaque.PDI: device.pdi,
        nvopaque.MSRSCNT: bytes(256),
        nvopaque.GPU_PDIS: bytes(128),
        nvopaque.DISABLED_PORTS: b"\xec\0",
        nvopaque.POSITION_ID: b"\2\0",
        nvopaque.LOCK_STATUS: b"\1\0",
    }


def _block(index: int, value: bytes) -> bytes:
    size = len(value)
    return (
        bytes((index + 1, 1))
        + (size + 3).to_bytes(2, "little")
        + b"\x01"
        + size.to_bytes(2, "little")
        + value
    )


def _field(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
