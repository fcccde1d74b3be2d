"""Properties of every parser here: nothing but its own error comes out, whatever goes in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.image.predict.support import certificate_table, firmware, gpt, issuer, store, uki, variable

from sealwright.errors import FormatError
from sealwright.evidence.uefi import EFI_GLOBAL_VARIABLE
from sealwright.image.eif import Eif
from sealwright.image.predict.firmware import Firmware
from sealwright.image.predict.gpt import gpt_event
from sealwright.image.predict.pcr import Digests
from sealwright.image.predict.snp import SnpShape, predict_snp
from sealwright.image.predict.stub import Uki
from sealwright.image.predict.tdx import mrtd
from sealwright.image.predict.varstore import parse_variables


def _firmware(raw: bytes) -> None:
    found = Firmware.parse(raw)
    for section in (*found.snp_sections(), *found.tdx_sections()):
        assert section
    if sum(one.size for one in found.snp_sections()) < 1 << 20:
        predict_snp(found, SnpShape(vcpus=2), None)
    if sum(one.memory_data_size for one in found.tdx_sections()) < 1 << 20:
        mrtd(found)


def _uki(raw: bytes) -> None:
    Digests.of(Uki.parse(raw), "sha256")


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "uki": (_uki, uki(certificates=certificate_table(*issuer("owner")))),
    "firmware": (_firmware, firmware()),
    "variables": (parse_variables, store(variable(EFI_GLOBAL_VARIABLE, "PK", b"pk"), size=0x400)),
    "gpt": (gpt_event, gpt()),
    "eif": (Eif.parse, Eif.make(b"k", "c", [b"r"], name="n", version="1").encode()),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_changed_bytes(name: str, data: st.DataObject) -> None:
    parse, good = PARSERS[name]
    parse(good)
    # Firmware is read from its end, all else from its beginning.
    low = len(good) - 4096 if name == "firmware" else 0
    places = st.one_of(st.integers(low, len(good) - 1), st.integers(max(low, len(good) - 250), len(good) - 1))
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(places)
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    with contextlib.suppress(FormatError):
        parse(bytes(raw[:cut]))


@pytest.mark.parametrize("name", PARSERS)
@given(raw=st.binary(max_size=700))
@settings(max_examples=50)
def test_any_bytes(name: str, raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        PARSERS[name][0](raw)


@given(
    st.binary(min_size=1, max_size=50),
    st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=40),
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=5),
)
def test_what_is_written_is_read_back(kernel: bytes, cmdline: str, ramdisks: list[bytes]) -> None:
    image = Eif.make(kernel, cmdline, ramdisks, name="n", version="1")
    assert Eif.parse(image.encode()) == image
