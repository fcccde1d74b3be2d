"""Two boots of a unified kernel image under QEMU, held against the prediction event by event.

They were made once, with swtpm 0.7.1, QEMU 7.2 (TCG), firmware ovmf 2025.02-8+deb13u1, the stub of systemd 257.13 and Linux
6.12.117 of Debian 13: one from a disk with Secure Boot on, under a key of our own that virt-firmware enrolled; one by -kernel
with firmware that has no Secure Boot. The guest printed its event log and its PCRs, which stand in `recorded/` with the
digests of the image's parts (the image itself is 13 MB, and others' work).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from tests.image.predict.support import signature_list

from sealwright.evidence.eventlog import EventLog
from sealwright.image.predict.events import Algorithm, Prediction
from sealwright.image.predict.explain import explain
from sealwright.image.predict.pcr import Boot, Digests, predict_pcrs
from sealwright.image.predict.secureboot import ImageSignature, SecureBoot
from sealwright.verify.eventlog import replay

FOLDER = Path(__file__).parent / "recorded"
KNOWN: dict[str, Any] = json.loads((FOLDER / "boots.json").read_text())
CERTIFICATE = x509.load_pem_x509_certificate(KNOWN["certificate"].encode())
LIST = signature_list(CERTIFICATE, owner=UUID(KNOWN["owner"]))
STATES: Mapping[str, SecureBoot] = {
    "secure-boot-disk": SecureBoot(enabled=True, pk=LIST, kek=LIST, db=LIST, dbx=bytes.fromhex(KNOWN["dbx"])),
    "no-secure-boot-kernel": SecureBoot(enabled=False, built_in=False),
}
BOOTS: Mapping[str, Boot] = {"secure-boot-disk": "disk", "no-secure-boot-kernel": "kernel"}


def log(boot: str) -> EventLog:
    return EventLog.parse((FOLDER / f"{boot}.log").read_bytes())


def digests(algorithm: Algorithm, **changes: Any) -> Digests:
    known = KNOWN["uki"][algorithm]
    found = Digests(
        algorithm=algorithm,
        image=bytes.fromhex(known["image"]),
        signature=ImageSignature(sha256=bytes.fromhex(KNOWN["uki"]["sha256"]["image"]), chain=(CERTIFICATE,)),
        kernel=bytes.fromhex(known["kernel"]),
        sections=tuple((name, bytes.fromhex(digest)) for name, digest in known["sections"]),
        command_line=KNOWN["command_line"],
        initrd=bytes.fromhex(known["initrd"]),
    )
    return replace(found, **changes)


def prediction(boot: str, algorithm: Algorithm = "sha256", **changes: Any) -> Prediction:
    return predict_pcrs(digests(algorithm, **changes), STATES[boot], boot=BOOTS[boot])


@pytest.mark.parametrize("boot", BOOTS)
def test_pcrs_are_those_that_the_guest_read(boot: str) -> None:
    read = {name: bytes.fromhex(value) for name, value in KNOWN["boots"][boot].items() if name != "pcr8"}
    assert prediction(boot).registers == read


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
@pytest.mark.parametrize("boot", BOOTS)
def test_every_event_is_the_one_in_the_log(boot: str, algorithm: Algorithm) -> None:
    found = prediction(boot, algorithm)
    assert explain(found, log(boot), layout="pcr", algorithm=algorithm) == []
    replayed = replay(log(boot), layout="pcr", bank=algorithm)
    extended = {name: value for name, value in found.registers.items() if any(value)}
    assert extended == {name: replayed[name] for name in ("pcr4", "pcr7", "pcr9", "pcr11")}


@pytest.mark.parametrize(
    ("changes", "register", "position", "what"),
    [
        ({"command_line": "quiet"}, "pcr9", 1, "command line"),
        ({"initrd": bytes(32)}, "pcr9", 2, "initrd"),
        ({"image": bytes(32)}, "pcr4", 3, "unified kernel image"),
        ({"sections": ((".linux", bytes(32)),)}, "pcr11", 2, "section .linux"),
    ],
)
def test_the_first_event_that_differs_is_named(
    changes: dict[str, Any], register: str, position: int, what: str
) -> None:
    boot = "secure-boot-disk"
    (found, *_) = explain(prediction(boot, **changes), log(boot), layout="pcr", algorithm="sha256")
    assert (found.register, found.position) == (register, position)
    assert found.predicted is not None
    assert found.predicted.what == what
    assert found.line().startswith(f"{register}, event {position}: predicted {what} ")


def test_events_too_many_and_too_few_are_named() -> None:
    boot, sections = "secure-boot-disk", digests("sha256").sections
    (more,) = explain(prediction(boot, sections=sections[:-1]), log(boot), layout="pcr", algorithm="sha256")
    assert (more.register, more.position, more.predicted) == ("pcr11", 11, None)
    assert "predicted no further event; logged EV_IPL" in more.line()
    extra = (*sections, (".pcrpkey", bytes(32)))
    (fewer,) = explain(prediction(boot, sections=extra), log(boot), layout="pcr", algorithm="sha256")
    assert (fewer.register, fewer.position, fewer.unverified_logged) == ("pcr11", 13, None)
    assert fewer.line().endswith("logged no further event")


def test_differences_come_in_the_order_of_the_log() -> None:
    """The wrong state of Secure Boot shows first in PCR 7: variables are measured before anything is loaded."""
    boot = "secure-boot-disk"
    wrong = predict_pcrs(digests("sha256"), STATES["no-secure-boot-kernel"], boot="disk")
    found = explain(wrong, log(boot), layout="pcr", algorithm="sha256")
    assert [one.register for one in found] == ["pcr7", "pcr4"]
    assert found[0].position == 1


def test_an_extend_of_a_register_that_should_stay_zero_is_a_difference() -> None:
    boot = "secure-boot-disk"
    recorded = log(boot)
    override = replace(recorded.events[-1], index=12)
    changed = replace(recorded, events=(*recorded.events, override))
    (found,) = explain(prediction(boot), changed, layout="pcr", algorithm="sha256")
    assert (found.register, found.position, found.predicted) == ("pcr12", 1, None)
    assert found.unverified_logged == override
