"""Chunked OHTTP: the published exchange, and every way a stream can be wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.transport.support import gateway_key, published

from sealwright.crypto import hpke
from sealwright.crypto.hpke import Aead, HpkePrivateKey, Kem
from sealwright.errors import MessageFormatError, SealwrightError, VerificationError
from sealwright.transport.keys import GatewayKey, KeyConfig, encode_key_list, parse_key_list
from sealwright.transport.ohttp import MAX_CHUNK, RequestOpener, RequestSealer, ResponseOpener
from sealwright.transport.varint import encode_varint

KEYS = {kem: gateway_key(kem) for kem in Kem}
Open = Callable[[bytes], bytes]


def run(opener: RequestOpener | ResponseOpener, stream: bytes, step: int = 1 << 20) -> bytes:
    """Feed `stream` in steps and return all plaintext, once the end is authenticated."""
    out = [plain for at in range(0, len(stream), step) for plain in opener.feed(stream[at : at + step])]
    return b"".join(out) + opener.finish()


def test_published_chunked_exchange() -> None:
    vector = published()["chunked_ohttp"]
    private = HpkePrivateKey.from_seed(Kem.X25519, bytes.fromhex(vector["sk"]))
    config = KeyConfig.parse(bytes.fromhex(vector["key_config"]))
    assert config.encode().hex() == vector["key_config"]
    assert (config.key_id, config.public, config.aead) == (1, private.public, Aead.AES_128_GCM)
    ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["skE"]))
    sealer = RequestSealer(config, testing_ephemeral=lambda: ephemeral)
    request = bytes.fromhex(vector["request"])
    sealed = sealer.prefix + sealer.seal(request[:12]) + sealer.seal(request[12:]) + sealer.finish()
    assert sealed.hex() == vector["enc_request"]

    key = GatewayKey(config=config, private=private)
    for step in (1, 7, 1000):
        opener = RequestOpener({1: key})
        assert run(opener, sealed, step) == request
    response = bytes.fromhex(vector["enc_response"])
    for step in (1, 7, 1000):
        assert run(sealer.response_opener(), response, step).hex() == vector["response"]
    # Sealed again with the published nonce, in the published pieces.
    back = opener.response_sealer(nonce=lambda length: response[:length])
    plain = bytes.fromhex(vector["response"])
    again = back.prefix + back.seal(plain[:1]) + back.seal(plain[1:]) + back.finish()
    assert again == response


def test_published_single_request_of_rfc9458() -> None:
    vector = published()["ohttp_rfc9458"]
    private = HpkePrivateKey.from_seed(Kem.X25519, bytes.fromhex(vector["sk"]))
    config = KeyConfig.parse(bytes.fromhex(vector["key_config"]))
    assert config.public == private.public
    sealed = bytes.fromhex(vector["enc_request"])
    info = b"message/bhttp request\0" + sealed[:7]
    plain = hpke.open_from(private, sealed[7:39], info, b"", sealed[39:], aead=Aead.AES_128_GCM)
    assert plain.hex() == vector["request"]


@pytest.mark.parametrize("kem", list(Kem))
@pytest.mark.parametrize("length", [0, 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK, 50_000])
def test_round_trip_at_chunk_edges(kem: Kem, length: int) -> None:
    message = bytes(index % 251 for index in range(length))
    sealer = RequestSealer(KEYS[kem].config)
    opener = RequestOpener({1: KEYS[kem]})
    assert run(opener, sealer.seal_all(message), 4096) == message
    back = opener.response_sealer()
    stream = back.prefix + back.seal(b"one") + back.finish(b"two")
    assert run(sealer.response_opener(), stream, 5) == b"onetwo"


class Exchange:
    """A request of three chunks and a response of three, in frames."""

    def __init__(self) -> None:
        key = KEYS[Kem.X25519]
        sealer = RequestSealer(key.config)
        self.request = [sealer.prefix, sealer.seal(b"a" * 9), sealer.seal(b"b" * 9), sealer.finish(b"c")]
        opener = RequestOpener({1: key})
        assert run(opener, b"".join(self.request)) == b"a" * 9 + b"b" * 9 + b"c"
        back = opener.response_sealer()
        self.response = [back.prefix, back.seal(b"x" * 9), back.seal(b"y" * 9), back.finish(b"z")]
        self._sealer = sealer

    def frames(self, request: bool) -> list[bytes]:
        return list(self.request if request else self.response)

    def open(self, request: bool, stream: bytes, step: int = 1 << 20) -> bytes:
        if request:
            return run(RequestOpener({1: KEYS[Kem.X25519]}), stream, step)
        return run(self._sealer.response_opener(), stream, step)


EXCHANGE = Exchange()


def refused(request: bool, stream: bytes, step: int = 1 << 20) -> SealwrightError:
    with pytest.raises((VerificationError, MessageFormatError)) as caught:
        EXCHANGE.open(request, stream, step)
    return caught.value


@given(request=st.booleans(), data=st.data())
def test_any_changed_byte_is_refused(request: bool, data: st.DataObject) -> None:
    stream = bytearray(b"".join(EXCHANGE.frames(request)))
    at = data.draw(st.integers(0, len(stream) - 1))
    change = data.draw(st.sampled_from(["flip", "drop", "insert", "repeat", "swap", "cut", "append"]))
    before = bytes(stream)
    if change == "flip":
        stream[at] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "drop":
        del stream[at]
    elif change == "insert":
        stream.insert(at, data.draw(st.integers(0, 255)))
    elif change == "repeat":
        stream[at:at] = stream[at : at + data.draw(st.integers(1, 40))]
    elif change == "swap":
        other = data.draw(st.integers(0, len(stream) - 1))
        stream[at], stream[other] = stream[other], stream[at]
    elif change == "cut":
        del stream[at:]
    else:
        stream += data.draw(st.binary(min_size=1, max_size=40))
    if bytes(stream) == before:
        return
    refused(request, bytes(stream), data.draw(st.integers(1, 60)))


@pytest.mark.parametrize("request_side", [True, False])
def test_frames_dropped_swapped_repeated_or_put_after_the_end(request_side: bool) -> None:
    prefix, one, two, last = EXCHANGE.frames(request_side)
    for stream in (
        [prefix, two, last],
        [prefix, one, last],
        [prefix, last],
        [prefix, two, one, last],
        [prefix, one, one, two, last],
        [prefix, one, two, last, last],
        [prefix, one, two, last, one],
        [one, two, last],
    ):
        refused(request_side, b"".join(stream))
    for cut in ([prefix], [prefix, one], [prefix, one, two], [prefix, one, two[:-1]]):
        assert refused(request_side, b"".join(cut)).code == "stream-truncated"


def test_final_chunk_is_not_a_middle_one_and_the_other_way_round() -> None:
    prefix, one, two, last = EXCHANGE.frames(True)
    sealed = last[1:]
    refused(True, prefix + one + two + encode_varint(len(sealed)) + sealed + b"\0" + sealed)
    refused(True, prefix + one + b"\0" + two[1:])


def test_response_of_another_request_is_refused() -> None:
    other = Exchange()
    with pytest.raises(VerificationError) as caught:
        EXCHANGE.open(False, b"".join(other.response))
    assert caught.value.code == "chunk-open-failed"
    # A response replayed under a fresh nonce does not open either.
    with pytest.raises(VerificationError):
        EXCHANGE.open(False, bytes(32) + b"".join(EXCHANGE.response[1:]))


def test_empty_middle_chunk_and_too_large_chunk() -> None:
    sealer = RequestSealer(KEYS[Kem.X25519].config)
    assert refused(True, sealer.prefix + sealer.seal(b"") + sealer.finish()).code == "chunk-length"
    sealer = RequestSealer(KEYS[Kem.X25519].config)
    assert refused(True, sealer.prefix + sealer.seal(bytes(MAX_CHUNK + 1))).code == "chunk-length"
    sealer = RequestSealer(KEYS[Kem.X25519].config)
    assert refused(True, sealer.prefix + sealer.finish(bytes(MAX_CHUNK + 1))).code == "chunk-length"


def test_length_in_a_longer_form_is_refused() -> None:
    prefix, one, two, last = EXCHANGE.frames(True)
    assert refused(True, prefix + b"\x40" + one + two + last).code == "chunk-length"


def test_after_a_refusal_or_the_end_nothing_opens() -> None:
    prefix, one, two, last = EXCHANGE.frames(True)
    opener = RequestOpener({1: KEYS[Kem.X25519]})
    with pytest.raises(VerificationError):
        opener.feed(prefix + two)
    for act in (lambda: opener.feed(one), opener.finish):
        with pytest.raises(VerificationError) as caught:
            act()
        assert caught.value.code == "stream-dead"
    opener = RequestOpener({1: KEYS[Kem.X25519]})
    run(opener, prefix + one + two + last)
    with pytest.raises(VerificationError):
        opener.feed(b"")


@pytest.mark.parametrize("at", range(7))
def test_every_byte_of_the_header_matters(at: int) -> None:
    prefix = bytearray(EXCHANGE.request[0])
    prefix[at] ^= 1
    assert refused(True, bytes(prefix) + b"".join(EXCHANGE.request[1:])).code == "ohttp-key"


@pytest.mark.parametrize("aead", list(Aead))
@pytest.mark.parametrize("kem", list(Kem))
def test_key_config_round_trip(kem: Kem, aead: Aead) -> None:
    config = KeyConfig(key_id=255, public=KEYS[kem].private.public, algorithms=((1, 9), (1, aead)))
    assert KeyConfig.parse(config.encode()) == config
    assert config.aead is aead
    unknown = b"\x00\x0b\x05\x99\x99" + bytes(8)
    assert parse_key_list(unknown + encode_key_list([config])) == (config,)
    for cut in (1, 2, 3, 7):
        with pytest.raises(MessageFormatError):
            parse_key_list(encode_key_list([config])[:-cut])
    with pytest.raises(MessageFormatError):
        RequestSealer(KeyConfig(key_id=0, public=config.public, algorithms=((1, 9),)))


@given(st.binary(max_size=60))
def test_key_list_parser_raises_only_its_error(raw: bytes) -> None:
    for start in (b"", b"\x00\x29\x01\x00\x20"):
        try:
            configs = parse_key_list(start + raw)
        except MessageFormatError:
            continue
        assert parse_key_list(encode_key_list(configs)) == configs
