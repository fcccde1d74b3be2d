"""Packs: one spelling, whole or refused, and what an import believes."""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.collateral.support import intel, milan_chain, milan_crl, milan_vcek

from sealwright.collateral.cache import Cache
from sealwright.collateral.need import Need
from sealwright.collateral.pack import PAYLOAD_TYPE, Pack, PackManifest
from sealwright.collateral.record import Piece
from sealwright.collateral.sources import piece_of
from sealwright.collateral.tar import read_tar, write_tar
from sealwright.crypto.canonical import canonical, parse_json
from sealwright.crypto.dsse import Envelope
from sealwright.errors import EvidenceFormatError, SealwrightError, VerificationError

NOW = datetime(2025, 6, 20, tzinfo=UTC)
OWNER, STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32)), Ed25519PrivateKey.generate()


def pieces() -> list[Piece]:
    """Return real collateral of both vendors; two pieces share the chain of Intel's TCB signing key."""
    given_ = intel("tdx")
    chains = [unquote(one).encode() for one in (given_.tcb_info_chain, given_.identity_chain)]
    found = [
        piece_of(Need("intel-tcb-info", f"tdx:{given_.fmspc}"), [given_.tcb_info, chains[0]], fetched=NOW),
        piece_of(Need("intel-qe-identity", "tdx"), [given_.identity, chains[1]], fetched=NOW),
    ]
    return [
        *found,
        *(piece_of(need, [blob], fetched=NOW) for need, blob in (milan_vcek(), milan_chain(), milan_crl())),
    ]


def packed(*keys: Ed25519PrivateKey) -> bytes:
    return Pack.of(pieces(), created=NOW, keys=keys).encode()


def refused(raw: bytes) -> SealwrightError:
    with pytest.raises((EvidenceFormatError, VerificationError)) as caught:
        Pack.parse(raw).pieces()
    return caught.value


def test_round_trip() -> None:
    raw = packed(OWNER)
    pack = Pack.parse(raw)
    assert pack.encode() == raw
    pack.verify([OWNER.public_key()])
    assert sorted(pack.pieces(), key=lambda one: one.need) == sorted(pieces(), key=lambda one: one.need)
    assert len(pack.blobs) == 6, "the chain that two share is there once"
    assert Pack.of(reversed(pieces()), created=NOW, keys=[OWNER]).encode() == raw, "deterministic"


def test_any_tar_reads_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(OWNER))) as archive:
        names = archive.getnames()
        assert names[:2] == ["manifest.json", "manifest.sig.json"]
        assert {member.isfile() for member in archive.getmembers()} == {True}
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert parse_json(manifest.read())["format"] == "sealwright-collateral-pack/v1"


def test_signatures() -> None:
    for raw, code in ((packed(), "pack-unsigned"), (packed(STRANGER), "untrusted-signer")):
        with pytest.raises(VerificationError) as caught:
            Pack.parse(raw).verify([OWNER.public_key()])
        assert caught.value.code == code
    pack = Pack.parse(packed())
    for envelope, code in (
        (Envelope.sign("application/x", pack.manifest.encode(), OWNER), "wrong-payload-type"),
        (Envelope.sign(PAYLOAD_TYPE, pack.manifest.encode(), OWNER), None),
    ):
        one = Pack.parse(Pack(manifest=pack.manifest, blobs=pack.blobs, signature=envelope).encode())
        if code is None:
            one.verify([OWNER.public_key()])
            continue
        with pytest.raises(VerificationError) as caught:
            one.verify([OWNER.public_key()])
        assert caught.value.code == code
    with pytest.raises(VerificationError) as caught:
        one.verify([])
    assert caught.value.code == "untrusted-signer"


def test_every_flipped_byte_is_refused_or_unsigned() -> None:
    raw = packed(OWNER)
    step = max(1, len(raw) // 700)
    for at in range(0, len(raw), step):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises((EvidenceFormatError, VerificationError)):
            pytest.fail(f"byte {at}: {Pack.parse(changed).verify([OWNER.public_key()])}")


def test_a_flipped_signature_byte() -> None:
    pack = Pack.parse(packed(OWNER))
    assert pack.signature is not None
    ((name, signature),) = pack.signature.signatures
    bad = Envelope(
        payload_type=PAYLOAD_TYPE,
        unverified_payload=pack.signature.unverified_payload,
        signatures=((name, signature[:-1] + bytes([signature[-1] ^ 1])),),
    )
    with pytest.raises(VerificationError) as caught:
        Pack(manifest=pack.manifest, blobs=pack.blobs, signature=bad).verify([OWNER.public_key()])
    assert caught.value.code == "bad-signature"


def test_a_signature_over_another_manifest() -> None:
    pack = Pack.parse(packed())
    other = Envelope.sign(PAYLOAD_TYPE, canonical({"format": "x"}), OWNER)
    error = refused(Pack(manifest=pack.manifest, blobs=pack.blobs, signature=other).encode())
    assert (error.code, error.stage) == ("pack-mismatch", "pack")


def test_swapped_blobs() -> None:
    pack = Pack.parse(packed())
    files = read_tar(packed(), max_files=20, max_file=1 << 20)
    (one, first), (two, second) = files[1:3]
    assert refused(write_tar([files[0], (one, second), (two, first), *files[3:]])).code == "pack-mismatch"
    assert refused(write_tar([files[0], *reversed(files[1:])])).code == "malformed-pack"
    assert refused(write_tar(files[:-1])).code == "malformed-pack"
    assert refused(write_tar([*files, ("blobs/" + "f" * 64, b"more")])).code == "malformed-pack"
    assert refused(write_tar(files[1:])).code == "malformed-pack"
    assert refused(write_tar([])).code == "malformed-pack"
    assert refused(write_tar([files[0], files[1], files[1], *files[2:]])).code == "malformed-pack"
    assert pack.blobs


def manifest(**changes: object) -> bytes:
    """Return a pack of the CRL alone, whose entry says something else."""
    need, blob = milan_crl()
    piece = piece_of(need, [blob], fetched=NOW)
    entry = piece.entry().to_json() | {name: value for name, value in changes.items() if name != "created"}
    said = {
        "format": "sealwright-collateral-pack/v1",
        "created": changes.get("created", "2025-06-20T00:00:00Z"),
        "entries": [entry],
    }
    files = [("manifest.json", canonical(said))]
    return write_tar([*files, ("blobs/" + piece.entry().blobs[0].hex(), blob)])


def test_what_the_manifest_says_is_compared_with_the_blobs() -> None:
    assert Pack.parse(manifest()).pieces()
    assert refused(manifest(next_update="2099-01-01T00:00:00Z")).code == "pack-mismatch"
    assert refused(manifest(issued="2025-06-19T00:00:00Z")).code == "pack-mismatch"
    assert refused(manifest(key="vcek:Genoa")).code == "unknown-endorsement"
    assert refused(manifest(kind="amd-chain")).code in ("malformed-chain", "malformed-pem")
    assert refused(manifest(kind="amd-magic")).code == "malformed-document"
    assert refused(manifest(key="../../etc")).code == "malformed-document"
    assert refused(manifest(fetched="2025-06-21T00:00:00Z")).code == "malformed-document"
    assert refused(manifest(kind="azure-thim", key="this-vm")).code == "malformed-document"
    assert refused(manifest(blobs=[])).code == "malformed-document"
    assert refused(manifest(blobs=["00" * 32])).code == "malformed-pack"
    assert refused(manifest(more=1)).code == "malformed-document"
    assert refused(manifest(created="2025-06-20")).code == "malformed-document"


def test_entries_stand_once_and_in_order() -> None:
    entries = [piece.entry().to_json() for piece in sorted(pieces(), key=lambda one: one.need)]
    for listed in (entries[::-1], [entries[0], entries[0]], []):
        with pytest.raises(EvidenceFormatError) as caught:
            PackManifest.from_json(
                {"format": "sealwright-collateral-pack/v1", "created": NOW, "entries": listed},
                error=EvidenceFormatError,
            )
        assert caught.value.code == "malformed-document"


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_archives_of_others() -> None:
    link = tarfile.TarInfo("blobs/a")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    sparse = tarfile.TarInfo("manifest.json")
    sparse.type = tarfile.GNUTYPE_SPARSE
    for name in ("../x", "/etc/x", "blobs/../../x", "a//b", "Ä", "./manifest.json", "x\0y"):
        assert refused(_tar((tarfile.TarInfo(name), b"x"))).code == "malformed-pack", name
    assert refused(_tar((link, b""))).code == "malformed-pack"
    assert refused(_tar((sparse, b""))).code == "malformed-pack"
    assert refused(_tar((tarfile.TarInfo("manifest.json"), b"{}"))).code == "malformed-pack"  # mtime, padding
    good = packed()
    assert refused(good + b"\0" * 512).code == "malformed-pack"
    assert refused(good[:-512]).code == "malformed-pack"
    assert refused(good[512:]).code == "malformed-pack"
    assert refused(b"").code == "malformed-pack"


def test_claimed_sizes_take_no_memory() -> None:
    good = packed()
    huge = good[:124] + b"77777777777\0" + good[136:]
    assert refused(huge).code == "too-large"
    signed = good[:124] + b"-0000000001\0" + good[136:]
    assert refused(signed).code == "malformed-pack"
    assert refused(bytes(64 * 1024 * 1024 + 1)).code == "too-large"
    assert refused(write_tar([(f"blobs/{number:064x}", b"") for number in range(9000)])).code == "too-large"


NAMES = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,30}[a-z0-9]", fullmatch=True).filter(
    lambda name: ".." not in name
)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=1200)), unique_by=lambda file: file[0], max_size=6)


@given(FILES)
def test_tar_round_trip(files: list[tuple[str, bytes]]) -> None:
    assert read_tar(write_tar(files), max_files=6, max_file=1200) == files


@given(FILES, st.data())
def test_tar_has_one_spelling(files: list[tuple[str, bytes]], data: st.DataObject) -> None:
    raw = bytearray(write_tar(files))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read_tar(bytes(raw), max_files=9, max_file=1 << 16)
    except EvidenceFormatError:
        return
    assert write_tar(found) == bytes(raw)


@given(st.binary(max_size=2000))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        Pack.parse(raw)


def test_a_pack_that_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("MAX_JSON", 100), ("MAX_PACK", 10_000)):
        with monkeypatch.context() as patch:
            patch.setattr(f"sealwright.collateral.pack.{name}", limit)
            with pytest.raises(EvidenceFormatError) as caught:
                packed()
            assert caught.value.code == "too-large"


def test_an_import_keeps_what_is_newer(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    taken = [cache.put(piece) for piece in Pack.parse(packed(OWNER)).pieces()]
    assert taken == [True] * 5
    found = cache.get(milan_crl()[0])
    assert found is not None
    assert found.fetched == NOW, "the age is that of the fetch, not of the import"
    newer = Piece(
        need=found.need,
        blobs=(b"newer",),
        fetched=NOW + timedelta(days=1),
        issued=NOW,
        next_update=found.next_update,
    )
    cache.put(newer)
    assert not cache.put(Pack.parse(manifest()).pieces()[0])
    assert cache.get(found.need) == newer
