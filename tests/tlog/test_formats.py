"""Keys, notes, checkpoints, paths, bundles, policies, proofs: vectors that name the refusing stage, then properties."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tlog.support import POLICY, ROOT, SIGNER, entry, witness
from tests.tlog.test_monitor import fetch_from, make_log

from sealwright.errors import LogFormatError, SealwrightError, VerificationError
from sealwright.tlog.checkpoint import Checkpoint
from sealwright.tlog.keys import COSIGNATURE_V1, ED25519, Signer, VerifierKey
from sealwright.tlog.note import MAX_NOTE, MAX_SIGNATURES, Note
from sealwright.tlog.policy import MAX_POLICY, LogPolicy
from sealwright.tlog.posix import directory_fetch
from sealwright.tlog.proof import MAX_LOG_PROOF, LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.tiles import MAX_BUNDLE, TilePath, encode_bundle, parse_bundle

CASES = json.loads((ROOT / "tests" / "vectors" / "log.json").read_text(encoding="utf-8"))


def _raw(case: dict[str, Any]) -> bytes:
    return bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode()


def _vkey(raw: bytes) -> bytes:
    return VerifierKey.parse(raw.decode()).encode().encode()


def _signer(raw: bytes) -> bytes:
    Signer.parse(raw.decode())
    return raw


def _path(raw: bytes) -> bytes:
    return TilePath.parse(raw.decode()).encode().encode()


PARSERS: dict[str, Callable[[bytes], bytes]] = {
    "vkey": _vkey,
    "signer": _signer,
    "note": lambda raw: Note.parse(raw).encode(),
    "checkpoint": lambda raw: Checkpoint.parse(raw).encode(),
    "path": _path,
    "bundle": lambda raw: encode_bundle(parse_bundle(raw)),
    "tlog-proof": lambda raw: LogProof.parse(raw).encode(),
}


def _run(case: dict[str, Any]) -> None:
    raw = _raw(case)
    if case["kind"] == "policy":
        LogPolicy.parse(raw)
    elif case["kind"] == "signed-checkpoint":
        verified = LogPolicy.parse(case["policy"].encode()).verify(raw)
        assert [[item.witness, item.time_s] for item in verified.cosignatures] == case["cosignatures"]
    elif case["kind"] == "logged-entry":
        logged = LogProof.parse(raw).verify(case["entry"].encode(), LogPolicy.parse(case["policy"].encode()))
        assert (logged.index, logged.size) == (case["index"], case["size"])
    else:
        assert PARSERS[case["kind"]](raw) == raw


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_vector(case: dict[str, Any]) -> None:
    if case["expect"] == "ok":
        _run(case)
        return
    with pytest.raises(SealwrightError) as caught:
        _run(case)
    assert f"{caught.value.stage}/{caught.value.code}" == case["expect"]


def test_vector_ids_are_unique() -> None:
    assert len({case["id"] for case in CASES}) == len(CASES)


@settings(max_examples=300)
@given(st.sampled_from([*PARSERS, "policy"]), st.data())
def test_a_parser_raises_only_its_own_error(kind: str, data: st.DataObject) -> None:
    """Around the good vectors: cut, insert, replace; and anything at all."""
    good = [_raw(case) for case in CASES if case["kind"] == kind and case["expect"] == "ok"]
    raw = data.draw(st.one_of(st.sampled_from(good), st.binary(max_size=300)))
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 8)))
    raw = raw[:start] + data.draw(st.binary(max_size=8)) + raw[end:]
    if kind in ("vkey", "signer", "path"):
        raw = raw.decode("utf-8", "replace").encode()
    try:
        again = raw if LogPolicy.parse(raw) and kind == "policy" else PARSERS[kind](raw)
    except LogFormatError:
        return
    assert again == raw


@given(st.sampled_from([VerifierKey.parse, Signer.parse, TilePath.parse]), st.text(min_size=8, max_size=80))
def test_any_text_is_refused_unquoted(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(LogFormatError) as caught:
        parse(text)
    assert text not in str(caught.value)  # it may be a private key


@given(st.integers(0, 2**63 - 1), st.one_of(st.none(), st.integers(0, 63)), st.integers(1, 256))
def test_paths_round_trip(index: int, level: int | None, width: int) -> None:
    path = TilePath(level=level, index=index, width=width)
    assert TilePath.parse(path.encode()) == path


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=256))
def test_bundles_round_trip(entries: list[bytes]) -> None:
    assert parse_bundle(encode_bundle(entries)) == entries


@pytest.mark.parametrize(
    ("parse", "limit"),
    [
        (Note.parse, MAX_NOTE),
        (LogPolicy.parse, MAX_POLICY),
        (LogProof.parse, MAX_LOG_PROOF),
        (parse_bundle, MAX_BUNDLE),
    ],
)
def test_sizes_are_bounded(parse: Callable[[bytes], object], limit: int) -> None:
    with pytest.raises(LogFormatError, match="over the limit"):
        parse(b"x" * (limit + 1))


def test_a_note_may_have_many_signatures() -> None:
    case = next(case for case in CASES if case["id"] == "note-sixteen-post-quantum")
    assert len(Note.parse(_raw(case)).signatures) == 16
    signature = SIGNER.sign(b"x\n")
    Note.parse(Note(unverified_text=b"x\n", signatures=(signature,) * MAX_SIGNATURES).encode())
    with pytest.raises(LogFormatError, match="at most 64"):
        Note.parse(Note(unverified_text=b"x\n", signatures=(signature,) * (MAX_SIGNATURES + 1)).encode())


def test_deep_policies_do_not_exhaust_the_stack() -> None:
    first = witness(1)
    lines = [f"log {SIGNER.vkey.encode()}", f"witness g0 {first.vkey.encode()}"]
    lines += [f"group g{i} any g{i - 1}" for i in range(1, 3000)]
    policy = LogPolicy.parse("\n".join([*lines, "quorum g2999", ""]).encode())
    checkpoint = make_log([b"x"])["checkpoint"]
    with pytest.raises(VerificationError, match="quorum"):
        policy.verify(checkpoint)
    note = Note.parse(checkpoint)
    signatures = (*note.signatures, first.sign(note.unverified_text, time_s=1))
    cosigned = Note(unverified_text=note.unverified_text, signatures=signatures)
    assert policy.verify(cosigned.encode()).quorum == "g2999"


FILES = make_log([entry(i) for i in range(100)])


def _cosigned_proof() -> tuple[bytes, LogPolicy]:
    note = Note.parse(FILES["checkpoint"])
    cosigner = witness(1)
    note = Note(
        unverified_text=note.unverified_text,
        signatures=(*note.signatures, cosigner.sign(note.unverified_text, time_s=1_700_000_000)),
    )
    hashes = TileReader(fetch_from(FILES), 100).inclusion_proof(42)
    text = f"log {SIGNER.vkey.encode()}\nwitness w {cosigner.vkey.encode()}\nquorum w\n"
    proof = LogProof(index=42, hashes=hashes, unverified_checkpoint=note.encode())
    return proof.encode(), LogPolicy.parse(text.encode())


PROOF, WITNESSED = _cosigned_proof()


def test_a_cosigned_proof() -> None:
    logged = LogProof.parse(PROOF).verify(entry(42), WITNESSED)
    assert (logged.index, logged.size, logged.checkpoint.quorum) == (42, 100, "w")
    assert logged.checkpoint.cosignatures[0].time_s == 1_700_000_000


@settings(max_examples=400)
@given(st.integers(0, len(PROOF) - 1), st.integers(1, 255))
def test_no_byte_of_a_proof_may_change(at: int, mask: int) -> None:
    changed = bytearray(PROOF)
    changed[at] ^= mask
    with pytest.raises((LogFormatError, VerificationError)):
        LogProof.parse(bytes(changed)).verify(entry(42), WITNESSED)


@given(st.binary(max_size=70))
def test_no_other_entry_has_the_proof(other: bytes) -> None:
    if other != entry(42):
        with pytest.raises(VerificationError):
            LogProof.parse(PROOF).verify(other, WITNESSED)


def test_tessera_checkpoints_verify_under_the_published_key(tessera: Path) -> None:
    vkey = (tessera / "KEYS.txt").read_text().splitlines()[1].split()[1]
    for size in range(16):
        raw = (tessera / "testdata" / "log" / f"checkpoint.{size}").read_bytes()
        assert LogPolicy.of_key(vkey).verify(raw).checkpoint.size == size
        with pytest.raises(VerificationError):
            POLICY.verify(raw)


def test_sunlight_cosignatures_verify(sunlight: Path) -> None:
    found = 0
    for config in [*sunlight.glob("*/*.v0.json"), *sunlight.glob("*/*/*.v0.json")]:
        key = VerifierKey.parse(json.loads(config.read_text())["verifier_keys"][0])
        assert key.kind == COSIGNATURE_V1
        for path in config.parent.glob("[0-9a-f]*/checkpoint"):
            note = Note.parse(path.read_bytes())
            assert Note.parse(note.encode()) == note
            assert Checkpoint.parse(note.unverified_text).size == 300
            assert note.verify([key]) == {key: 0x69546780}
            changed = Note(
                unverified_text=note.unverified_text.replace(b"300", b"301"), signatures=note.signatures
            )
            with pytest.raises(VerificationError):
                changed.verify([key])
            found += 1
    assert found == 3


def test_sunlight_tiles_lead_to_the_mirrored_root(sunlight: Path) -> None:
    (path,) = sunlight.glob("witness/mirror/*/checkpoint")
    root = path.parent
    checkpoint = Checkpoint.parse(Note.parse((root / "checkpoint").read_bytes()).unverified_text)
    reader = TileReader(directory_fetch(root), checkpoint.size)
    assert reader.root() == checkpoint.root


def test_a_cosignature_has_a_time_below_2_to_63() -> None:
    key = witness(1).vkey
    text = b"log.example/main\n"
    assert key.verify(text, witness(1).sign(text, time_s=2**63 - 1).signature) == 2**63 - 1
    with pytest.raises(VerificationError):
        key.verify(text, witness(1).sign(text, time_s=2**63).signature)


def test_signers_are_what_their_keys_say() -> None:
    assert SIGNER.vkey.kind == ED25519
    assert witness(1).vkey.kind == COSIGNATURE_V1
    assert SIGNER.vkey.key_id != witness(1).vkey.key_id


def test_the_package_exports_what_it_says_and_needs_no_linux() -> None:
    """Whoever only reads and verifies may not have fcntl."""
    code = "import sys; sys.modules['fcntl'] = None; import sealwright.tlog as t; [getattr(t, n) for n in t.__all__]"
    network = "; assert not {'socket', 'http', 'ssl', 'sqlite3'} & set(sys.modules), 'network'"
    subprocess.run([sys.executable, "-I", "-c", code + network], check=True)
