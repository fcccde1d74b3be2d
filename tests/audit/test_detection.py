"""What a file is, by its content alone; and what is said of one that cannot be believed."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.audit.detect import detect, spelled
from sealwright.audit.given import folder
from sealwright.cli import main
from sealwright.collateral.peek import needs_of
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import pem_blocks
from sealwright.errors import EvidenceFormatError
from sealwright.testing.intel import SgxTestPlatform, TdxTestPlatform
from sealwright.testing.nvgpu import FakeNvidia
from sealwright.testing.snp import SnpTestPlatform

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DATA = bytes(64)
OE = b"\1\0\0\0\2\0\0\0"


def made(kind: type) -> tuple[bytes, list[bytes]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(NOW).evidence(DATA)


def pem(label: str, der: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"


def wrapped(quote: bytes, size: int | None = None) -> bytes:
    return OE + (len(quote) if size is None else size).to_bytes(8, "little") + quote


def test_the_answer_of_azures_certificate_service_is_sorted() -> None:
    certificates = Endorsements.detect(made(SnpTestPlatform)[1]).certificates
    ders = [one.public_bytes(Encoding.DER) for one in certificates]
    said = {
        "vcekCert": pem("CERTIFICATE", ders[0]),
        "certificateChain": "".join(pem("CERTIFICATE", one) for one in ders[1:]),
    }
    found = Endorsements.detect([json.dumps({**said, "tcbm": "00", "cacheControl": "1"}).encode()])
    assert found.certificates == certificates
    with pytest.raises(EvidenceFormatError):
        Endorsements.detect([json.dumps({"vcekCert": said["vcekCert"]}).encode()])


def test_collateral_in_hex_or_base64_is_read_from_files(tmp_path: Path) -> None:
    crl = next(blob for blob in made(TdxTestPlatform)[1] if Endorsements.detect([blob]).crls)
    der = crl if crl[:1] == b"0" and crl[1] & 0x80 else pem_blocks(crl)[0][1]
    for name, text in (("hex", der.hex().encode()), ("base64", base64.b64encode(der)), ("der", der)):
        (tmp_path / name).write_bytes(text)
        assert len(folder(tmp_path / name).crls) == 1
    (tmp_path / "other").write_bytes((b"\xff" * 100).hex().encode())
    with pytest.raises(EvidenceFormatError, match="other") as refused:
        folder(tmp_path / "other")
    assert refused.value.code == "unknown-endorsement"
    assert spelled(pem("CERTIFICATE", bytes(99)).encode()) is None


@pytest.mark.parametrize(("kind", "name"), [(SgxTestPlatform, "sgx"), (TdxTestPlatform, "tdx")])
def test_a_quote_in_an_open_enclave_report_is_found(kind: type, name: str) -> None:
    quote, _ = made(kind)
    envelope = detect(wrapped(quote)).envelope
    assert envelope is not None
    assert (envelope.type, envelope.evidence) == (name, quote)
    for size in (len(quote) - 1, len(quote) + 1, 1 << 63):
        with pytest.raises(EvidenceFormatError) as refused:
            detect(wrapped(quote, size))
        assert refused.value.code == "wrong-length"
    for other in (b"", bytes(2000), wrapped(quote), made(SnpTestPlatform)[0]):
        with pytest.raises(EvidenceFormatError) as refused:
            detect(wrapped(other))
        assert refused.value.code == "unknown-format"


def test_a_cose_message_of_another_shape_is_no_nitro_document() -> None:
    with pytest.raises(EvidenceFormatError) as refused:
        detect(b"\xd2\x84\x58\x20" + bytes(200))
    assert refused.value.code == "unknown-format"


@pytest.mark.parametrize(
    ("report", "verdict", "code", "ended"),
    [
        (lambda raw: b"no evidence", "malformed", "unknown-format", 65),
        (lambda raw: raw, "undecided", "vek-missing", 12),
        (lambda raw: raw[:-1] + b"\1", "malformed", "reserved-not-zero", 65),
    ],
)
def test_a_refusal_in_json_has_a_verdict(
    report: Callable[[bytes], bytes],
    verdict: str,
    code: str,
    ended: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "evidence"
    file.write_bytes(report(made(SnpTestPlatform)[0]))
    assert main(["verify", str(file), "--json"]) == ended
    said = json.loads(capsys.readouterr().out)
    assert (said["confidential"], said["verdict"], said["genuine"]) == (False, verdict, False)
    assert [one["code"] for one in said["failures"]] == [said["error"]["code"]] == [code]
    assert main(["verify", str(file)]) == ended


def test_evidence_with_empty_parts_or_too_many_is_malformed() -> None:
    """The fuzzer found what came out of these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        device = FakeNvidia(NOW).device()
    listed = json.loads(json.dumps([device.sdk(bytes(32))]))
    chain = base64.b64decode(listed[0]["certificate"])
    listed[0]["certificate"] = base64.b64encode(chain * 3).decode()
    cases: list[tuple[bytes, str | None]] = [
        (b"", "tdx"),
        (b'{"evidence":{"attestation_report":""}}', None),
        (json.dumps(listed).encode(), None),
    ]
    for raw, kind in cases:
        with pytest.raises(EvidenceFormatError) as refused:
            detect(raw, kind)
        assert refused.value.code == "malformed-document"


def test_a_crl_whose_issuer_has_a_bad_name_is_refused_and_warns_of_nothing_later() -> None:
    """The fuzzer found warnings that came out of a verification."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        country = x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "Santa Clara", _validate=False)
        builder = x509.CertificateRevocationListBuilder(x509.Name([country]), NOW, NOW + timedelta(days=1))
        crl = builder.sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    with pytest.raises(EvidenceFormatError) as refused:
        Endorsements.detect([crl.public_bytes(Encoding.DER)])
    assert refused.value.code == "malformed-crl"


def test_what_is_needed_by_a_quote_that_is_cut_off_is_not_known() -> None:
    """The fuzzer found an IndexError."""
    with pytest.raises(EvidenceFormatError) as refused:
        needs_of(b"\4\0\2\0")
    assert refused.value.code == "unknown-evidence"


@pytest.mark.parametrize("start", [b"A", b"ab" * 64, b"", b"0x"])
def test_white_space_takes_no_quadratic_time(start: bytes) -> None:
    """A file of the largest size, which took hours."""
    assert spelled(start + b" " * (4 << 20) + b"!") is None


@pytest.mark.parametrize("text", ["{}", " {}\n", "0x{}", "\n0x{}"])
def test_hex_is_read_with_and_without_its_mark(text: str) -> None:
    raw = bytes(range(100))
    assert spelled(text.format(raw.hex()).encode()) == raw
    assert spelled(text.format(raw.hex(" ", 4)).encode()) == raw
    assert spelled(text.format(raw.hex()).encode() + b"!") is None
