"""Write tests/vectors/sealed-artefact.json anew: `python -m tests.sealing.make_vectors`. Deterministic."""

import hashlib
import json
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.sealing.support import DEK, OWNER

from sealwright.crypto.canonical import canonical
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url
from sealwright.sealing import Entry, Manifest, read_manifest, seal_file
from sealwright.sealing.manifest import PAYLOAD_TYPE

TARGET = Path(__file__).parents[1] / "vectors" / "sealed-artefact.json"
PLAIN = b"hello, sealed world"
Case = dict[str, object]


def stream(seed: str, length: int) -> bytes:
    """Return the "random" bytes of a vector: SHAKE-256 of its seed."""
    return hashlib.shake_256(seed.encode()).digest(length)


def sealed(plain: bytes, *, version: int = 1, seed: str = "a", sha256: bool = False) -> tuple[bytes, bytes]:
    """Return (envelope, ciphertext) of `plain`, sealed as `hello.txt`."""
    calls = iter(range(99))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "hello.txt", Path(folder) / "hello.txt.sealed"
        source.write_bytes(plain)
        seal_file(
            source,
            out,
            dek=DEK,
            kid="hello",
            signer=OWNER,
            version=version,
            artefact_id=bytes(range(16)),
            sha256=sha256,
            random=lambda count: stream(f"{seed}/{next(calls)}", count),
        )
        return read_manifest(out), out.read_bytes()


def signed(manifest: Manifest, **changes: object) -> bytes:
    """Return an envelope of `manifest`'s payload with `changes`, signed by the owner."""
    payload = canonical({**json.loads(manifest.payload), **changes})
    return Envelope.sign(PAYLOAD_TYPE, payload, OWNER).encode()


def flipped(raw: bytes, at: int) -> bytes:
    """Return `raw` with the lowest bit of byte `at` turned."""
    out = bytearray(raw)
    out[at] ^= 1
    return bytes(out)


def cases() -> list[Case]:
    """Return every case."""
    envelope, ciphertext = sealed(PLAIN)
    manifest = Manifest.unverified_parse(envelope)
    empty, nothing = sealed(b"", seed="b", sha256=True)
    newer, _ = sealed(PLAIN, version=2, seed="c")
    _, other = sealed(PLAIN[::-1], seed="d")
    stranger = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
    by_stranger = Envelope.sign(PAYLOAD_TYPE, manifest.payload, stranger).encode()
    two = Manifest.build(
        [Entry(path=name, length=1, blake3=bytes(32)) for name in ("a", "b")],
        dek=DEK,
        kid="hello",
        artefact_id=bytes(range(16)),
        version=1,
        nonce=bytes(12),
    )

    def case(
        name: str, expect: str, envelope: bytes = envelope, sealed: bytes = ciphertext, **more: str
    ) -> Case:
        # What is admitted is the manifest at hand, but where the case says otherwise.
        digest = manifest.manifest_digest
        if expect not in ("parse", "signature", "admitted"):
            digest = Manifest.unverified_parse(envelope).manifest_digest
        known = {"dek": DEK.hex(), "admitted": digest.hex()}
        parts = {"envelope": envelope.decode(), "ciphertext": sealed.hex()}
        return {"id": name, "expect": expect, **known, **parts, **more}

    return [
        case("one-segment", "ok", plain=PLAIN.hex(), path="hello.txt"),
        case("empty-with-sha256", "ok", empty, nothing, plain="", path="hello.txt"),
        case("envelope-not-canonical", "parse", envelope.replace(b":", b": ", 1)),
        case("unknown-suite", "parse", signed(manifest, suite="classical")),
        case("unknown-member", "parse", signed(manifest, extra=1)),
        case("another-signer", "signature", by_stranger),
        case("payload-altered", "signature", envelope.replace(b'payload":"ey', b'payload":"ez', 1)),
        case("another-version", "admitted", newer),
        case("another-key", "key-commitment", dek=bytes(32).hex()),
        case("commitment-altered", "key-commitment", signed(manifest, key_commitment=b64url(bytes(32)))),
        case("kid-altered-and-signed", "contents", signed(manifest, kid="other")),
        case("two-files", "contents", Envelope.sign(PAYLOAD_TYPE, two.payload, OWNER).encode()),
        case("header-altered", "lengths", sealed=flipped(ciphertext, 0)),
        case("byte-appended", "lengths", sealed=ciphertext + b"\0"),
        case("byte-cut", "lengths", sealed=ciphertext[:-1]),
        case("nothing-left", "lengths", sealed=b""),
        case("salt-altered", "segments", sealed=flipped(ciphertext, 1)),
        case("prefix-altered", "segments", sealed=flipped(ciphertext, 39)),
        case("ciphertext-altered", "segments", sealed=flipped(ciphertext, 40)),
        case("tag-altered", "segments", sealed=flipped(ciphertext, len(ciphertext) - 1)),
        case("genuine-ciphertext-of-another-plaintext", "plaintext-digest", sealed=other),
    ]


def document() -> bytes:
    """Return the vector file."""
    public = OWNER.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    source = "made by tests/sealing/make_vectors.py, Apache-2.0"
    body = {"source": source, "owner_key": b64url(public), "cases": cases()}
    return json.dumps(body, indent=1).encode() + b"\n"


if __name__ == "__main__":
    TARGET.write_bytes(document())
