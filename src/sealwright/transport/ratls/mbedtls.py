"""Certificates as older Mbed TLS writes them, Gramine's among them: ECDSA algorithms with a NULL where nothing may be.

OpenSSL takes them, pyca does not. The NULLs are taken out before parsing; the signature of an attested certificate,
which this breaks, counts for nothing.
"""

from __future__ import annotations

_SEQUENCE, _VERSION, _SERIAL = 0x30, 0xA0, 0x02
_ECDSA = tuple(
    b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03" + bytes([sha]) for sha in (1, 2, 3, 4)
)  # ecdsa-with-SHA…
_NULL = b"\x05\x00"


def without_null_parameters(der: bytes) -> bytes:
    """Return a certificate without the NULLs, or `der` as it is if they, or a certificate, are not there."""
    try:
        tbs, algorithm, *rest = _elements(_content(der, _SEQUENCE))
        version, serial, inner, *more = _elements(_content(tbs, _SEQUENCE))
        bare = _bare(algorithm)
    except ValueError:
        return der
    if inner != algorithm or version[0] != _VERSION or serial[0] != _SERIAL or bare is None:
        return der
    return _sequence(_sequence(version, serial, bare, *more), bare, *rest)


def _bare(algorithm: bytes) -> bytes | None:
    content = _content(algorithm, _SEQUENCE)
    for oid in _ECDSA:
        if content == oid + _NULL:
            return _sequence(oid)
    return None


def _content(element: bytes, tag: int) -> bytes:
    (only,) = _elements(element)
    if only[0] != tag:
        raise ValueError("another tag")
    return only[2 + (only[1] & 0x7F if only[1] & 0x80 else 0) :]


def _elements(der: bytes) -> list[bytes]:
    """Return the elements that `der` is made of. Raises ValueError."""
    found, at = [], 0
    while at < len(der):
        if at + 2 > len(der) or der[at + 1] > 0x83 or der[at + 1] == 0x80:
            raise ValueError("not DER")
        size = der[at + 1] & 0x7F if der[at + 1] & 0x80 else 0
        start = at + 2 + size
        length = int.from_bytes(der[at + 2 : start], "big") if size else der[at + 1]
        if start + length > len(der):
            raise ValueError("cut off")
        found.append(der[at : start + length])
        at = start + length
    return found


def _sequence(*elements: bytes) -> bytes:
    content = b"".join(elements)
    if len(content) < 0x80:
        return bytes([_SEQUENCE, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([_SEQUENCE, 0x80 | len(length)]) + length + content
