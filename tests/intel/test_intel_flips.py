"""Every byte of a real quote of each format: changed, it is refused. There are no bytes outside what is checked."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.intel.support import NOW, caches, collateral, day, everything, parse_quote, quote_bytes, verify

from sealwright.endorsement.bag import Endorsements
from sealwright.errors import SealwrightError
from sealwright.testing.intel import TdxTestPlatform, td_extension
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.context import Context, WorkCache
from sealwright.verify.sgx import verify_sgx
from sealwright.verify.tdx import verify_tdx

WORK = WorkCache()


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("sgx/dcap-qvl/sgx_quote", "2025-06-25"),
        ("tdx/dcap-qvl/tdx_quote", "2025-06-25"),  # version 4, with padding
        ("tdx/go-tdx-guest/testing__testdata__quote_v5_sample.dat", "2026-03-01"),
    ],
)
def test_every_byte(name: str, at: str) -> None:
    raw = quote_bytes(name)
    assert _accepted(raw, everything(day(at)), Context(at=day(at), **caches())) == []


def test_every_byte_of_a_real_body_with_extension() -> None:
    name, at = "tdx/dcap-qvl/tdx_quote_td15ex", day("2026-10-15")
    found = Endorsements.detect(collateral(f"{name}_collateral.json"))
    assert _accepted(quote_bytes(name), found, Context(at=at, **caches())) == []


def test_every_byte_of_a_body_with_extension() -> None:
    with pytest.warns(FakePlatformWarning):
        platform = TdxTestPlatform(NOW)
    raw, blobs = platform.evidence(
        bytes(range(64)), version=5, body=4, extension=td_extension(td_id=b"\1" * 32)
    )
    context = Context(at=NOW, roots=frozenset({platform.root_fingerprint}), **caches())
    assert _accepted(raw, Endorsements.detect(blobs), context) == []


def _accepted(raw: bytes, found: Endorsements, context: Context) -> list[int]:
    """Return the places whose byte can be changed."""
    quote = parse_quote(raw)
    sgx = quote.header.version == 3
    check = partial(
        verify_sgx if sgx else verify_tdx,
        endorsements=found,
        expected_report_data=quote.report.report_data,
        context=context,
    )
    assert check(quote).tcb.status
    accepted = []
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 0x01
        try:
            check(parse_quote(bytes(changed)))
        except SealwrightError:
            continue
        accepted.append(place)
    return accepted


def test_every_byte_of_collateral() -> None:
    """TCB info, identity, signing certificate, CRLs; not the root beside them, which stands in the quote too."""
    with pytest.warns(FakePlatformWarning):
        platform = TdxTestPlatform(NOW)
    raw, (info, identity, _, *crls) = platform.evidence(bytes(64))
    blobs = [info, identity, platform.pki.signing.public_bytes(Encoding.DER), *crls]
    accepted = []
    for number, blob in enumerate(blobs):
        for place in range(len(blob)):
            changed = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
            with suppress(SealwrightError):
                found = Endorsements.detect([*blobs[:number], changed, *blobs[number + 1 :]])
                verify(raw, found, NOW, roots=frozenset({platform.root_fingerprint}), work=WORK)
                accepted.append((number, place))
    assert accepted == []
