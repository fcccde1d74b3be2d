"""RIM files: one reading only, nothing in them can change or be moved unseen."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nvidia import support
from tests.nvidia.support import NOW, OUTAGE, RIM_TIME, context, nvidia
from tests.vector_files import vector

from sealwright.endorsement import nvidia_rim as shape
from sealwright.endorsement.nvidia_rim import Rim
from sealwright.endorsement.strict_xml import MAX_DEPTH, MAX_ELEMENTS, MAX_XML, canonical_xml, parse_xml
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import EvidenceFormatError, SealwrightError, VerificationError
from sealwright.testing._nvidia_pki import Entity, answer, issue
from sealwright.testing.nvgpu import rim_text, rs
from sealwright.verify.context import Context
from sealwright.verify.nvidia_rim import VerifiedRim, verify_rim

VALUE = bytes(range(48))
TEXT = rim_text("GH100", "550.90.07", {0: [VALUE], 1: [], 2: [VALUE, VALUE[::-1]]})


def signed(text: str = TEXT, **changes: Entity) -> bytes:
    """Return a manifest that the fake NVIDIA signed."""
    return nvidia().sign_rim(text, **changes)


def verified(raw: bytes, **changes: object) -> VerifiedRim:
    """Verify a manifest of the fake NVIDIA, without OCSP."""
    return verify_rim(Rim.parse(raw), "driver", (), context(outage=OUTAGE, **changes))


def refused(raw: bytes) -> str:
    """Return the code with which a manifest is refused."""
    with pytest.raises(SealwrightError) as caught:
        verified(raw)
    return caught.value.code


def test_a_manifest_says_what_was_signed() -> None:
    found = verified(signed())
    assert found.rim.measurements[2].values == (VALUE, VALUE[::-1])
    assert [one.active for one in found.rim.measurements.values()] == [True, False, True]
    assert (found.rim.name, found.rim.colloquial_version, found.vendor_root) == ("GH100", "550.90.07", False)
    assert verified(b'<?xml version="1.0" encoding="utf-8"?>\n' + signed()).digest == found.digest
    assert verified(signed() + b"\n").digest == found.digest


@pytest.mark.parametrize("name", [support.DRIVER_RIM, support.VBIOS_RIM])
def test_the_canonical_form_is_lxmls(name: str) -> None:
    etree = pytest.importorskip("lxml.etree", reason="lxml is not installed: the oracle for canonical XML")
    raw = vector(name)
    theirs = etree.fromstring(raw)
    signature = theirs.find(f"{{{shape.DSIG}}}Signature")
    info = signature[0]
    assert canonical_xml(parse_xml(raw).elements[-1].elements[0]) == etree.tostring(
        info, method="c14n", exclusive=False, with_comments=False
    )
    assert canonical_xml(parse_xml(raw)) == etree.tostring(theirs, method="c14n", with_comments=False)
    theirs.remove(signature)
    assert Rim.parse(raw).canonical == etree.tostring(theirs, method="c14n", with_comments=False)


_NAMES = st.sampled_from(["a", "b", "p:a", "q:b", "p:c"])
_TEXTS = st.text(
    st.characters(min_codepoint=9, max_codepoint=0x2FF, exclude_categories=("Cc", "Cs")), max_size=5
)
_SPACES = st.sampled_from(
    ["", ' xmlns="urn:d"', ' xmlns:p="urn:p"', ' xmlns:q="urn:p"', ' xmlns=""', ' xmlns:p="urn:z#!"']
)


def _escaped(text: str) -> str:
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;").replace("Z", "&#13;&#9;&#10;")
    )


_ELEMENTS: st.SearchStrategy[str] = st.recursive(
    st.builds(_escaped, _TEXTS),
    lambda inner: st.builds(
        lambda name, space, value, children: (
            f'<{name}{space} z="{_escaped(value)}" p:y="1" x="{_escaped(value)}">{"".join(children)}</{name}>'
        ),
        _NAMES,
        _SPACES,
        _TEXTS,
        st.lists(inner, max_size=3),
    ),
    max_leaves=8,
)


@given(_ELEMENTS)
@settings(max_examples=150)
def test_any_document_has_lxmls_canonical_form(inner: str) -> None:
    etree = pytest.importorskip("lxml.etree", reason="lxml is not installed: the oracle for canonical XML")
    raw = f'<r xmlns:q="urn:q" xmlns:p="urn:first"  b=\'1\'>{inner}</r>'.encode()
    try:
        ours = parse_xml(raw)
    except EvidenceFormatError:
        return  # deeper than we read
    theirs = etree.fromstring(raw)
    assert canonical_xml(ours) == etree.tostring(theirs, method="c14n", with_comments=False)
    for mine, other in zip(ours.elements if not inner.strip() else [], theirs, strict=False):
        assert canonical_xml(mine) == etree.tostring(other, method="c14n", with_comments=False)


@given(_ELEMENTS)
@settings(max_examples=100)
def test_a_canonical_form_is_its_own(inner: str) -> None:
    raw = f'<r xmlns:q="urn:q" xmlns:p="urn:first">{inner}</r>'.encode()
    try:
        canonical = canonical_xml(parse_xml(raw))
    except EvidenceFormatError:
        return
    assert canonical_xml(parse_xml(canonical)) == canonical


def test_an_apex_carries_the_namespaces_in_force() -> None:
    root = parse_xml(b'<a xmlns="urn:d" xmlns:p="urn:p"><b xmlns:p="urn:p"><p:c/></b></a>')
    assert canonical_xml(root) == b'<a xmlns="urn:d" xmlns:p="urn:p"><b><p:c></p:c></b></a>'
    assert canonical_xml(root.elements[0]) == b'<b xmlns="urn:d" xmlns:p="urn:p"><p:c></p:c></b>'


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', id="an entity"),
        pytest.param(b'<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;&a;">]><a>&b;</a>', id="a bomb"),
        pytest.param(b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', id="a file"),
        pytest.param(b'<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><a/>', id="an external DTD"),
        pytest.param(b'<!DOCTYPE a [<!ATTLIST a b CDATA "c">]><a/>', id="a default attribute"),
        pytest.param(b"<!DOCTYPE a><a/>", id="a bare DTD"),
        pytest.param(b"<a><!-- --></a>", id="a comment"),
        pytest.param(b"<a/><!-- -->", id="a comment behind"),
        pytest.param(b"<a><?b c?></a>", id="a processing instruction"),
        pytest.param(b"<a><![CDATA[b]]></a>", id="CDATA"),
        pytest.param(b"<a>&b;</a>", id="an unknown entity"),
        pytest.param(b'<a xml:base="b"/>', id="xml:base"),
        pytest.param(b'<a xml:id="b"/>', id="xml:id"),
        pytest.param(b'<a xmlns:xml="http://www.w3.org/XML/1998/namespace"/>', id="xml declared"),
        pytest.param(b'<a xmlns:b=""/>', id="a prefix taken back"),
        pytest.param(b'<a xmlns="a&amp;b"/>', id="a namespace that has to be escaped"),
        pytest.param(b"<b:a/>", id="a prefix that is not declared"),
        pytest.param(b'<a b:c=""/>', id="one of an attribute"),
        pytest.param(b'<a xmlns:b="u" xmlns:c="u" b:d="" c:d=""/>', id="an attribute twice by two prefixes"),
        pytest.param(b'<a b="" b=""/>', id="an attribute twice"),
        pytest.param(b'<a xmlnsb=""/>', id="almost a declaration"),
        pytest.param("<ä/>".encode(), id="a name beyond ASCII"),
        pytest.param(b'<?xml version="1.0" encoding="UTF-16"?><a/>', id="another encoding"),
        pytest.param(b'<?xml version="1.1"?><a/>', id="XML 1.1"),
        pytest.param(b"\xef\xbb\xbf<a/>", id="a byte order mark"),
        pytest.param(b"<a>\xff</a>", id="not UTF-8"),
        pytest.param(b"<a/><a/>", id="two roots"),
        pytest.param(b"<a>", id="cut off"),
        pytest.param(b"", id="nothing"),
        pytest.param(b" <a/>", id="white space in front"),
    ],
)
def test_xml_that_could_be_read_in_two_ways(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_xml(raw)
    assert caught.value.code == "malformed-xml"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"<a>" + b" " * MAX_XML + b"</a>", "too-large"),
        (b"<a>" * (MAX_DEPTH + 1) + b"</a>" * (MAX_DEPTH + 1), "too-deep"),
        (b"<a " + b" ".join(b'xmlns:a%d="u"' % number for number in range(17)) + b"/>", "too-deep"),
        (b"<a>" + b"<b/>" * MAX_ELEMENTS + b"</a>", "too-deep"),
        (b"<a " + b" ".join(b'a%d=""' % number for number in range(65)) + b"/>", "too-deep"),
    ],
)
def test_xml_beyond_a_limit(raw: bytes, code: str) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_xml(raw)
    assert caught.value.code == code


@given(st.binary(max_size=200))
def test_parsing_raises_its_own_error_only(data: bytes) -> None:
    for raw in (
        data,
        b"<a>" + data + b"</a>",
        b'<a b="' + data + b'"/>',
        signed()[:1000] + data + signed()[1000:],
    ):
        try:
            parse_xml(raw)
            Rim.parse(raw)
        except EvidenceFormatError:
            continue


Change = Callable[[str], str]


def _replace(old: str, new: str, count: int = 1) -> Change:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, count)

    return change


WRAPPING: dict[str, tuple[Change, str]] = {
    "another value": (_replace(VALUE.hex(), bytes(48).hex()), "rim-digest"),
    "another version": (
        _replace('colloquialVersion="550.90.07"', 'colloquialVersion="550.90.08"'),
        "rim-digest",
    ),
    "another name": (_replace('name="GH100"', 'name="GB100"'), "rim-digest"),
    "a measurement made inactive": (_replace('active="True"', 'active="False"'), "rim-digest"),
    "white space": (_replace("<ns0:Payload>", "<ns0:Payload> "), "rim-digest"),
    "a namespace more": (_replace(" name=", ' xmlns:x="urn:x" name='), "rim-digest"),
    "an attribute more": (_replace(" name=", ' extra="" name='), "rim-digest"),
    "a namespace of Hash swapped": (_replace(shape.HASH, f"{shape.HASH}x"), "malformed-rim"),
    "two signatures": (
        lambda text: text.replace("</SoftwareIdentity>", text[text.index("<ds:Sig") :]),
        "malformed-rim",
    ),
    "the signature first": (
        lambda text: (
            text[: (at := text.index("<ds:Signature"))].replace(
                "<ns0:Entity", text[at : text.rindex("</Soft")] + "<ns0:Entity", 1
            )
            + "</SoftwareIdentity>"
        ),
        "malformed-rim",
    ),
    "the signature in the payload": (
        lambda text: (
            text[: (at := text.index("<ds:Signature"))].replace(
                "</ns0:Payload>", text[at : text.rindex("</Soft")] + "</ns0:Payload>"
            )
            + "</SoftwareIdentity>"
        ),
        "malformed-rim",
    ),
    "the document wrapped in another": (
        lambda text: text[: text.index(">") + 1] + text + text[text.index("<ds:Signature") :],
        "malformed-rim",
    ),
    "a second payload in the signature": (
        _replace("</ds:Signature>", "<ds:Object><ns0:Payload/></ds:Object></ds:Signature>"),
        "malformed-rim",
    ),
    "a second payload": (_replace("<ns0:Payload>", "<ns0:Payload/><ns0:Payload>"), "malformed-rim"),
    "a reference to a part": (_replace('URI=""', 'URI="#a"'), "malformed-rim"),
    "an id": (_replace("<ds:SignedInfo>", '<ds:SignedInfo Id="a">'), "malformed-rim"),
    "two references": (
        lambda text: text.replace(
            "</ds:Reference>",
            "</ds:Reference>" + text[text.index("<ds:Reference") : text.index("</ds:SignedInfo>")],
        ),
        "malformed-rim",
    ),
    "a transform left out": (
        _replace(f'<ds:Transform Algorithm="{shape.ENVELOPED}"/>', ""),
        "malformed-rim",
    ),
    "a transform more": (
        _replace(
            "</ds:Transforms>",
            '<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"/></ds:Transforms>',
        ),
        "malformed-rim",
    ),
    "XPath in a transform": (
        _replace(
            f'<ds:Transform Algorithm="{shape.ENVELOPED}"/>',
            f'<ds:Transform Algorithm="{shape.ENVELOPED}"><ds:XPath>a</ds:XPath></ds:Transform>',
        ),
        "malformed-rim",
    ),
    "exclusive canonicalisation": (
        _replace(shape.C14N, "http://www.w3.org/2001/10/xml-exc-c14n#"),
        "malformed-rim",
    ),
    "canonicalisation with comments": (_replace(shape.C14N, f"{shape.C14N}#WithComments"), "malformed-rim"),
    "HMAC": (_replace(shape.ECDSA, f"{shape.DSIG}hmac-sha1"), "malformed-rim"),
    "SHA-1": (_replace(shape.SHA384, f"{shape.DSIG}sha1"), "malformed-rim"),
    "a key instead of certificates": (_replace("ds:X509Data", "ds:KeyValue", 2), "malformed-rim"),
    "a comment in a value": (_replace("<ds:DigestValue>", "<ds:DigestValue><!---->"), "malformed-xml"),
    "no signature": (
        lambda text: text[: text.index("<ds:Signature")] + "</SoftwareIdentity>",
        "malformed-rim",
    ),
    "a signature in no namespace": (
        _replace(f' xmlns:ds="{shape.DSIG}"', ' xmlns:ds="urn:x"'),
        "malformed-rim",
    ),
}


@pytest.mark.parametrize("name", WRAPPING)
def test_wrapping(name: str) -> None:
    change, code = WRAPPING[name]
    assert refused(change(signed().decode()).encode()) == code


def test_another_digest_with_the_old_signature_is_refused() -> None:
    """The digest can be made to fit; then the signature over SignedInfo does not."""
    text = signed().decode().replace(VALUE.hex(), bytes(48).hex())
    old = Rim.parse(text.encode())
    fits = base64.b64encode(hashlib.sha384(old.canonical).digest()).decode()
    text = text.replace(base64.b64encode(old.digest).decode(), fits)
    assert refused(text.encode()) == "bad-signature"


def test_no_byte_of_a_manifest_can_change() -> None:
    """Every byte, one bit each: what is accepted has the same canonical form, value and chain (white space in tags)."""
    raw = signed()
    whole = Rim.parse(raw)
    for offset in range(len(raw)):
        flipped = bytearray(raw)
        flipped[offset] ^= 1 << offset % 7
        try:
            found = verified(bytes(flipped)).rim
        except SealwrightError:
            continue
        assert found.canonical == whole.canonical
        assert found.certificates == whole.certificates
        assert (found.signature, found.digest, found.signed_info) == (
            whole.signature,
            whole.digest,
            whole.signed_info,
        )


def test_no_byte_of_nvidias_manifest_can_change() -> None:
    """Every 41st byte up to the last certificate, the root, which is passed over because the pinned one counts."""
    raw = vector(support.DRIVER_RIM)
    whole = Rim.parse(raw)
    accepted = 0
    for offset in range(0, raw.rindex(b"<ds:X509Certificate>"), 41):
        flipped = bytearray(raw)
        flipped[offset] ^= 1 << offset % 7
        try:
            rim = Rim.parse(bytes(flipped))
            verify_rim(rim, "driver", (), Context(at=RIM_TIME, outage=OUTAGE, work=support.work()))
        except SealwrightError:
            continue
        accepted += 1
        assert (rim.canonical, rim.certificates[:3]) == (whole.canonical, whole.certificates[:3])
    assert accepted < 5


def _signers() -> dict[str, Entity]:
    middle = nvidia().rim_signer.issuer
    assert middle is not None
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    foreign = issue("Foreign Root", None, NOW)
    foreign = issue("Foreign CA", foreign, NOW)
    return {
        "a CA": middle,
        "an OCSP responder": issue("Responder", middle, NOW, ca=False, extensions=[(purpose, False)]),
        "another curve": issue("P-256", middle, NOW, ca=False, curve=ec.SECP256R1()),
        "a foreign root": issue("Foreign Signer", foreign, NOW, ca=False),
        "the device PKI": nvidia().device().entity,
        "the root itself": nvidia().rim_root,
    }


@pytest.mark.parametrize(
    ("who", "code"),
    [
        ("a CA", "bad-certificate"),
        ("an OCSP responder", "bad-certificate"),
        ("a foreign root", "unknown-root"),
        ("the root itself", "unknown-root"),
    ],
)
def test_a_manifest_signed_by(who: str, code: str) -> None:
    with pytest.raises(VerificationError) as caught:
        verified(signed(signer=_signers()[who]))
    assert (caught.value.stage, caught.value.code) == ("rim", code)


def test_a_manifest_signed_by_a_key_of_another_curve() -> None:
    signer = _signers()["another curve"]
    raw = signed(signer=signer)
    with pytest.raises(VerificationError) as caught:
        verified(raw)
    assert (caught.value.stage, caught.value.code) == ("rim", "bad-certificate")


def test_a_device_certificate_signs_no_manifest_where_only_nvidias_roots_count() -> None:
    raw = signed(signer=_signers()["the device PKI"])
    only_rim = frozenset({fingerprint(nvidia().rim_root.certificate)})
    with pytest.raises(VerificationError) as caught:
        verified(raw, roots=only_rim)
    assert caught.value.code == "unknown-root"


def test_revoked_held_and_stale_signers() -> None:
    signer = nvidia().rim_signer
    rim = Rim.parse(signed())
    good = nvidia().answers(signer)[1:]

    def check(reason: x509.ReasonFlags | None) -> VerifiedRim:
        return verify_rim(rim, "driver", [answer(signer, NOW, revoked=reason), *good], context())

    assert check(None).held == ()
    assert check(x509.ReasonFlags.certificate_hold).held == ("certificate 'Fake RIM L4 Signer'",)
    with pytest.raises(SealwrightError) as caught:
        check(x509.ReasonFlags.key_compromise)
    assert (caught.value.code, caught.value.exit_code, caught.value.stage) == (
        "certificate-revoked",
        13,
        "rim",
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('index="0"', 'index="00"'),
        ('index="0"', 'index="-1"'),
        ('index="0"', 'index="2"'),
        ('index="0"', ""),
        ('active="True"', 'active="yes"'),
        ('alternatives="1"', 'alternatives="0"'),
        ('alternatives="1"', 'alternatives="2"'),
        ('alternatives="2"', 'alternatives="1"'),
        ('alternatives="1"', 'alternatives="65"'),
        ('size="48"', 'size="47"'),
        ("ns2:Hash0", "Hash0"),
        (VALUE.hex(), VALUE.hex()[:-1] + "g"),
        ('type="Measurement"', 'type="File"'),
        ("ns0:Resource", "ns0:File"),
        ('colloquialVersion="550.90.07"', 'colloquialVersion=""'),
        ("<ns0:Entity", "<ns0:Link"),
        ('name="GH100"', ""),
    ],
)
def test_a_malformed_manifest_is_refused_even_if_it_is_signed(old: str, new: str) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    with pytest.raises(EvidenceFormatError) as caught:
        Rim.parse(signed(text))
    assert caught.value.code == "malformed-rim"


def test_text_between_elements_is_refused_even_if_it_is_signed() -> None:
    for tag in ("<ns0:Payload>", "</ns0:Payload>", "</SoftwareIdentity>"):
        with pytest.raises(EvidenceFormatError) as caught:
            Rim.parse(signed(TEXT.replace(tag, f"text{tag}")))
        assert caught.value.code == "malformed-xml"


def test_a_manifest_without_measurements_and_one_that_is_no_swid_tag() -> None:
    for text in (rim_text("GH100", "1.1", {}), TEXT.replace("SoftwareIdentity", "Identity")):
        with pytest.raises(EvidenceFormatError) as caught:
            Rim.parse(signed(text))
        assert caught.value.code == "malformed-rim"


def test_a_signature_of_another_length_is_refused() -> None:
    raw = signed()
    rim = Rim.parse(raw)
    value, longer = (base64.b64encode(one) for one in (rim.signature, rim.signature + b"\0\0\0"))
    assert refused(raw.replace(value, longer)) == "malformed-rim"
    key = nvidia().rim_signer.key
    other = rs(key.sign(rim.signed_info + b" ", ec.ECDSA(SHA384())))
    assert refused(raw.replace(value, base64.b64encode(other))) == "bad-signature"
    assert refused(raw.replace(value, base64.b64encode(bytes(96)))) == "bad-signature"
