"""Gramine's pseudo-files, against a stand-in that shares one buffer as Gramine does."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sealwright.attester.gramine import ATTEMPTS, GramineAttester
from sealwright.errors import UnavailableError
from sealwright.testing.gramine import FakeGramine
from sealwright.testing.software import FakePlatformWarning

OURS = bytes(range(64))


def gramine(kind: str = "dcap", **kw: Any) -> FakeGramine:
    with pytest.warns(FakePlatformWarning):
        return FakeGramine(kind, **kw)


def code_of(files: FakeGramine) -> str:
    with pytest.raises(UnavailableError) as caught:
        GramineAttester(files).quote(OURS)
    return caught.value.code


def test_a_quote_is_over_our_report_data() -> None:
    envelope = GramineAttester(gramine()).quote(OURS)
    assert (envelope.type, envelope.evidence[368:432], envelope.event_log) == ("sgx", OURS, None)


@pytest.mark.parametrize("length", [0, 63, 65])
def test_other_lengths_are_our_callers_bug(length: int) -> None:
    files = gramine()
    with pytest.raises(ValueError, match="64 bytes"):
        GramineAttester(files).quote(bytes(length))  # Gramine itself would cut or pad it in silence
    assert files.user_report_data == bytes(64)


@pytest.mark.parametrize("kind", ["epid", "none", ""])
def test_only_dcap_will_do(kind: str) -> None:
    assert code_of(gramine(kind)) == "tee-refused"


def test_outside_of_gramine_and_without_aesm() -> None:
    assert code_of(gramine(directory="/elsewhere")) == "tee-interface-missing"
    files = gramine()
    files.aesm = False
    assert code_of(files) == "tee-refused"


def test_another_user_of_the_buffer_is_noticed() -> None:
    files = gramine()
    acted: list[str] = []

    def before(operation: str, path: str) -> None:
        if path.endswith("/quote") and len(acted) < limit:
            acted.append(path)
            files.user_report_data = bytes(64)

    files.before = before
    limit = 1
    assert GramineAttester(files).quote(OURS).evidence[368:432] == OURS
    assert len(acted) == 1
    limit = 99
    assert code_of(files) == "tee-busy"
    assert len(acted) == 1 + ATTEMPTS


def test_threads_do_not_mix_their_report_data() -> None:
    files = gramine()
    attester = GramineAttester(files)
    wrong: list[bytes] = []

    def work(data: bytes) -> None:
        quotes = [attester.quote(data).evidence[368:432] for _ in range(50)]
        wrong.extend(quote for quote in quotes if quote != data)

    threads = [threading.Thread(target=work, args=(bytes([n]) * 64,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_no_version_3_quote_is_refused() -> None:
    class Odd(FakeGramine):
        def read(self, path: str) -> bytes:
            return b"\4\0" + bytes(1000) if path.endswith("/quote") else super().read(path)

    with pytest.warns(FakePlatformWarning):
        assert code_of(Odd()) == "tee-refused"


def test_it_says_what_enclave_this_is() -> None:
    told = GramineAttester(gramine(debug=True)).describe()
    assert told == {
        "interface": "/dev/attestation",
        "attestation_type": "dcap",
        "mrenclave": "11" * 32,
        "debug": True,
    }
    assert GramineAttester(gramine()).describe()["debug"] is False
