"""NVIDIA's reference integrity manifests: signed SWID tags (ISO 19770-2, TCG RIM), in exactly NVIDIA's shape.

There is one signature, a child of the root, over the whole document but itself. What is read of the manifest is read
from the canonical bytes that the signature's digest is over, never from the file. No signature is checked here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, Self

from cryptography import x509

from sealwright.endorsement.strict_xml import Element, canonical_xml, parse_xml
from sealwright.endorsement.x509 import load_certificate
from sealwright.errors import EvidenceFormatError

MAX_CERTIFICATES = 8
MAX_ALTERNATIVES = 64
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
DSIG = "http://www.w3.org/2000/09/xmldsig#"
HASH = "http://www.w3.org/2001/04/xmlenc#sha384"
C14N = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED = f"{DSIG}enveloped-signature"
ECDSA = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_HASH_NAME = re.compile(r"Hash(0|[1-9][0-9]{0,2})", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+", re.ASCII)
_ACTIVE = {"True": True, "true": True, "False": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """The values that one measurement may have."""

    index: int  # 0 is the first: one less than in the report
    name: str
    active: bool  # else it is not compared
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """One manifest, parsed. Nothing in it is believed before its signature has been verified."""

    name: str  # of the chip: "GH100"
    tag_id: str
    colloquial_version: str  # driver "550.90.07", VBIOS "96.00.9F.00.01"
    measurements: Mapping[int, Golden]
    canonical: bytes  # the document without its signature, which `digest` is over
    digest: bytes  # DigestValue, 48 bytes
    signed_info: bytes  # canonical SignedInfo, which the signature is over
    signature: bytes  # SignatureValue, 96 bytes, r and s
    certificates: tuple[x509.Certificate, ...]  # the signer's first

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse a RIM file.

        Raises:
            EvidenceFormatError: `malformed-xml`, `malformed-rim`, `malformed-chain`, `too-large`, `too-deep`.
        """
        document = parse_xml(raw)
        signature = _signature(document)
        canonical = canonical_xml(document, without=signature)
        info, value, key_info = _children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
        digest = _signed_info(info)
        root = parse_xml(canonical)
        meta, payload = _manifest(root)
        return cls(
            name=_attribute(root, "name"),
            tag_id=_attribute(root, "tagId"),
            colloquial_version=_attribute(meta, "colloquialVersion"),
            measurements=_measurements(payload),
            canonical=canonical,
            digest=_sized(digest, 48),
            signed_info=canonical_xml(info),
            signature=_sized(value, 96),
            certificates=_certificates(key_info),
        )


def _signature(document: Element) -> Element:
    """Return the one signature, which is the last child of the root; anywhere else none may stand."""
    if document.tag != (SWID, "SoftwareIdentity"):
        _refuse("not a SoftwareIdentity")
    found = [one for one in _descendants(document) if one.tag == (DSIG, "Signature")]
    if len(found) != 1 or document.elements[-1] is not found[0]:
        _refuse("not exactly one Signature, as the last child of the root")
    return found[0]


def _descendants(element: Element) -> Iterator[Element]:
    for child in element.children:
        if isinstance(child, Element):
            yield child
            yield from _descendants(child)


def _signed_info(info: Element) -> Element:
    """Check that everything is NVIDIA's choice of algorithms and the whole document, and return DigestValue."""
    method, algorithm, reference = _children(
        info, "CanonicalizationMethod", "SignatureMethod", "Reference", attributes={}
    )
    _algorithm(method, C14N)
    _algorithm(algorithm, ECDSA)
    transforms, digest_method, digest = _children(
        reference, "Transforms", "DigestMethod", "DigestValue", attributes={("", "URI"): ""}
    )
    enveloped, canonical = _children(transforms, "Transform", "Transform", attributes={})
    _algorithm(enveloped, ENVELOPED)
    _algorithm(canonical, C14N)
    _algorithm(digest_method, SHA384)
    return digest


def _children(
    element: Element, *names: str, attributes: Mapping[tuple[str, str], str] | None = None
) -> list[Element]:
    found = element.elements
    if [one.tag for one in found] != [(DSIG, name) for name in names]:
        _refuse(f"{element.name} does not hold exactly {', '.join(names)}")
    if element.attributes != (attributes or {}):
        _refuse(f"{element.name} has other attributes than it should")
    return found


def _algorithm(element: Element, wanted: str) -> None:
    if element.children or element.attributes != {("", "Algorithm"): wanted}:
        _refuse(f"{element.name} is not {wanted}")


def _certificates(key_info: Element) -> tuple[x509.Certificate, ...]:
    (data,) = _children(key_info, "X509Data")
    found = data.elements
    if not 0 < len(found) <= MAX_CERTIFICATES or data.attributes:
        _refuse(f"X509Data with {len(found)} elements")
    if any(one.tag != (DSIG, "X509Certificate") for one in found):
        _refuse("X509Data holds something that is not a certificate")
    return tuple(load_certificate(_base64(one)) for one in found)


def _manifest(root: Element) -> tuple[Element, Element]:
    """Return Meta and Payload, of which there is one each, beside entities."""
    by_name: dict[str, list[Element]] = {"Entity": [], "Meta": [], "Payload": []}
    for child in root.elements:
        namespace, local = child.tag
        if namespace != SWID or local not in by_name:
            _refuse(f"a manifest does not hold {child.name}")
        by_name[local].append(child)
    if len(by_name["Meta"]) != 1 or len(by_name["Payload"]) != 1:
        _refuse("a manifest without exactly one Meta and one Payload")
    return by_name["Meta"][0], by_name["Payload"][0]


def _measurements(payload: Element) -> dict[int, Golden]:
    found: dict[int, Golden] = {}
    for resource in payload.elements:
        if resource.tag != (SWID, "Resource") or _attribute(resource, "type") != "Measurement":
            _refuse("a Payload holds something that is not a measurement")
        golden = _golden(resource)
        if golden.index in found:
            _refuse(f"measurement {golden.index} stands twice")
        found[golden.index] = golden
    if not found:
        _refuse("a Payload without measurements")
    return found


def _golden(resource: Element) -> Golden:
    active = _ACTIVE.get(_attribute(resource, "active"))
    alternatives, size = _number(resource, "alternatives"), _number(resource, "size")
    hashes = {local: value for (space, local), value in resource.attributes.items() if space == HASH}
    wanted = [f"Hash{number}" for number in range(min(alternatives, MAX_ALTERNATIVES))]
    values = tuple(_hash(hashes.get(name, ""), size) for name in wanted)
    extra = [name for name in hashes.keys() - set(wanted) if _HASH_NAME.fullmatch(name)]
    if active is None or not 0 < alternatives <= MAX_ALTERNATIVES or extra:
        _refuse("a measurement that is neither active nor not, or with another number of alternatives")
    name = resource.attributes.get(("", "name"), "")
    return Golden(index=_number(resource, "index"), name=name, active=active, values=values)


def _hash(text: str, size: int) -> bytes:
    if not _HEX.fullmatch(text) or len(text) != 2 * size:
        _refuse("an alternative of a measurement is missing, not hex, or not of its size")
    return bytes.fromhex(text)


def _attribute(element: Element, name: str) -> str:
    value = element.attributes.get(("", name), "")
    if not value:
        _refuse(f"{element.name} lacks {name}")
    return value


def _number(element: Element, name: str) -> int:
    text = _attribute(element, name)
    if not _NUMBER.fullmatch(text):
        _refuse(f"{name} of {element.name} is not a number")
    return int(text)


def _sized(element: Element, size: int) -> bytes:
    raw = _base64(element)
    if len(raw) != size or element.attributes:
        _refuse(f"{element.name} has {len(raw)} bytes where {size} are wanted")
    return raw


def _base64(element: Element) -> bytes:
    text = "".join(element.text.split())
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        _refuse(f"{element.name} is not base64")
    if base64.b64encode(raw).decode() != text:
        _refuse(f"{element.name} is not base64 in its one spelling")
    return raw


def _refuse(message: str) -> NoReturn:
    raise EvidenceFormatError(message, code="malformed-rim")
