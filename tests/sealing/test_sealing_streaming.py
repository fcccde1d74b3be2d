"""The streaming AEAD: layout, buffers, and the `tink` library as the judge of both directions."""

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sealing.tink_oracle import tink_with
from tink import streaming_aead

from sealwright.crypto.streaming import HEADER_BYTES, SEGMENT_BYTES, TAG_BYTES, Layout, StreamingAead, wipe
from sealwright.errors import ArtefactFormatError, VerificationError

DEK = bytes(range(32))
DATA = b"associated data, 32 bytes of it.."[:32]
FIRST = SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES
NEXT = SEGMENT_BYTES - TAG_BYTES
SIZES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1, 3 * 2**20 + 17]


def seal(plain: bytes, *, segment_bytes: int = SEGMENT_BYTES) -> bytes:
    aead = StreamingAead(DEK, DATA, salt=b"s" * 32, prefix=b"prefix7")
    layout = Layout(length=len(plain), segment_bytes=segment_bytes)
    out = bytearray(layout.sealed_length)
    out[:HEADER_BYTES] = aead.header
    for index in range(layout.segments):
        part = layout.segment(index)
        target = memoryview(out)[part.sealed_offset :][: part.sealed_length]
        aead.encrypt_into(part, plain[part.offset :][: part.length], target)
    return bytes(out)


def unseal(sealed: bytes, length: int, *, segment_bytes: int = SEGMENT_BYTES) -> bytes:
    aead = StreamingAead.from_header(DEK, DATA, sealed[:HEADER_BYTES])
    layout = Layout(length=length, segment_bytes=segment_bytes)
    assert layout.sealed_length == len(sealed)
    out = bytearray(length)
    for index in reversed(range(layout.segments)):  # any order will do
        part = layout.segment(index)
        target = memoryview(out)[part.offset :][: part.length]
        aead.decrypt_into(part, sealed[part.sealed_offset :][: part.sealed_length], target)
    return bytes(out)


@pytest.fixture(scope="module")
def oracle() -> streaming_aead.StreamingAead:
    """Tink with our DEK."""
    return tink_with(DEK)


class Held(io.BytesIO):
    """Keeps its bytes when tink closes it."""

    held = b""

    def close(self) -> None:
        self.held = self.held or self.getvalue()
        super().close()


@pytest.mark.parametrize("size", SIZES)
def test_tink_opens_what_we_seal(oracle: streaming_aead.StreamingAead, size: int) -> None:
    plain = os.urandom(size)
    with oracle.new_decrypting_stream(io.BytesIO(seal(plain)), DATA) as stream:
        assert stream.read() == plain


@pytest.mark.parametrize("size", SIZES)
def test_we_open_what_tink_seals(oracle: streaming_aead.StreamingAead, size: int) -> None:
    plain = os.urandom(size)
    target = Held()
    with oracle.new_encrypting_stream(target, DATA) as stream:
        stream.write(plain)
    assert unseal(target.held, size) == plain


@given(plain=st.binary(max_size=600), segment_bytes=st.integers(HEADER_BYTES + TAG_BYTES + 1, 200))
def test_opens_what_it_seals(plain: bytes, segment_bytes: int) -> None:
    sealed = seal(plain, segment_bytes=segment_bytes)
    assert unseal(sealed, len(plain), segment_bytes=segment_bytes) == plain


@given(length=st.integers(0, 2**50), segment_bytes=st.sampled_from([57, 128, SEGMENT_BYTES]))
def test_segments_cover_everything_once(length: int, segment_bytes: int) -> None:
    if length > 2**22:
        segment_bytes = SEGMENT_BYTES
    layout = Layout(length=length, segment_bytes=segment_bytes)
    first, last = layout.segment(0), layout.segment(layout.segments - 1)
    assert (first.offset, first.sealed_offset) == (0, HEADER_BYTES)
    assert last.last
    assert last.offset + last.length == length
    assert last.sealed_offset + last.sealed_length == layout.sealed_length
    if layout.segments > 1:
        after = layout.segment(1)
        assert after.offset == first.length
        assert after.sealed_offset == segment_bytes
        assert last.length > 0


def test_a_bad_tag_leaves_nothing_in_the_buffer() -> None:
    plain = b"planted plaintext" * 20
    sealed = bytearray(seal(plain))
    sealed[-1] ^= 1
    aead = StreamingAead.from_header(DEK, DATA, bytes(sealed[:HEADER_BYTES]))
    out = bytearray(b"\xff" * len(plain))
    with pytest.raises(VerificationError) as caught:
        aead.decrypt_into(Layout(length=len(plain)).segment(0), sealed[HEADER_BYTES:], out)
    assert (caught.value.code, caught.value.stage) == ("bad-segment", "segments")
    assert out == bytes(len(plain))


@pytest.mark.parametrize("header", [b"", b"\x28" * 39, b"\x28" * 41, b"\x27" + bytes(39)])
def test_another_header_is_refused(header: bytes) -> None:
    with pytest.raises(ArtefactFormatError, match="header"):
        StreamingAead.from_header(DEK, DATA, header)


def test_a_misuse_is_our_bug() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        StreamingAead(b"short", DATA, salt=bytes(32), prefix=bytes(7))
    with pytest.raises(ValueError, match="header"):
        Layout(length=1, segment_bytes=56)
    with pytest.raises(ValueError, match="segments"):
        Layout(length=2**53)
    with pytest.raises(ValueError, match="no such segment"):
        Layout(length=1).segment(1)


def test_wipe_clears_a_view() -> None:
    buffer = bytearray(b"secret")
    wipe(memoryview(buffer)[:3])
    assert buffer == b"\0\0\0ret"
