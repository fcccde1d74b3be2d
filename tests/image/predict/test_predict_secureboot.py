"""PCR 7 from variable stores, certificates and digests."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.image.predict.support import (
    OWNER,
    certificate_table,
    issuer,
    leaf,
    pe,
    secure,
    signature_list,
    store,
    uki,
    variable,
)

from sealwright.errors import EvidenceFormatError, FormatError
from sealwright.evidence.uefi import EFI_GLOBAL_VARIABLE, EFI_IMAGE_SECURITY_DATABASE
from sealwright.image.predict.events import measured
from sealwright.image.predict.pcr import Digests, predict_pcrs
from sealwright.image.predict.pe import PeImage
from sealwright.image.predict.secureboot import (
    SECURE_BOOT_ENABLE,
    ImageSignature,
    SecureBoot,
    authority_event,
    variable_data,
    variable_events,
)
from sealwright.image.predict.stub import Uki
from sealwright.image.predict.varstore import parse_variables

PK = variable(EFI_GLOBAL_VARIABLE, "PK", b"pk")
DB = variable(EFI_IMAGE_SECURITY_DATABASE, "db", b"db")
ON = variable(SECURE_BOOT_ENABLE, "SecureBootEnable", b"\x01")
VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")


def signature(raw: bytes) -> ImageSignature:
    return ImageSignature.of(PeImage.parse(raw))


def refused(raw: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        parse_variables(raw)
    return caught.value.code


def test_variables_of_a_store() -> None:
    raw = store(PK, variable(EFI_GLOBAL_VARIABLE, "PK", b"old", state=0x3C), DB, ON)
    found = SecureBoot.from_variables(raw)
    assert (found.enabled, found.pk, found.kek, found.db, found.dbx) == (True, b"pk", b"", b"db", b"")


@pytest.mark.parametrize(
    ("variables", "enabled"),
    [
        ((), False),
        ((DB, ON), False),  # without PK firmware is in setup mode
        ((PK, DB), True),
        ((PK, variable(SECURE_BOOT_ENABLE, "SecureBootEnable", b"\x00")), False),
    ],
)
def test_secure_boot_is_on_with_a_platform_key_unless_switched_off(
    variables: tuple[bytes, ...], enabled: bool
) -> None:
    assert SecureBoot.from_variables(store(*variables)).enabled is enabled


def test_databases_that_are_not_modelled_are_refused() -> None:
    with pytest.raises(FormatError) as caught:
        SecureBoot.from_variables(store(PK, variable(EFI_IMAGE_SECURITY_DATABASE, "dbt", b"x")))
    assert caught.value.code == "malformed-variables"


def test_stores_that_are_refused() -> None:
    good = store(PK, DB)
    assert len(parse_variables(good)) == 2
    long = bytearray(good)
    struct.pack_into("<I", long, 72 + 28 + 40, 1 << 20)
    for raw in (
        b"",
        good[:100],
        bytes(16) + bytes(16) + good[32:],
        good[:40] + b"XXXX" + good[44:],
        good[:72] + bytes(16) + good[88:],
        good[:88] + struct.pack("<I", 1 << 20) + good[92:],
        good[:92] + b"\0" + good[93:],
        bytes(long),
        store(PK, PK),
        store(variable(EFI_GLOBAL_VARIABLE, "PK", b"x", state=0x3E)),
        store(PK)[:-8] + b"\x01" + bytes(7),  # something behind the last variable
    ):
        assert refused(raw) == "malformed-variables"


def test_names_are_whole_utf16_texts() -> None:
    good = bytearray(store(PK))
    name = 72 + 28 + 60
    for at, value in ((name, b"\0\0"), (name + 4, b"x\0"), (name, b"\x00\xdc")):
        raw = bytes(good[:at]) + value + bytes(good[at + 2 :])
        assert refused(raw) == "malformed-variables"


def test_virt_firmware_reads_the_same_variables() -> None:
    edk2 = pytest.importorskip("virt.firmware.varstore.edk2", reason="an oracle that is not installed")
    if not VARS.is_file():
        pytest.skip("not installed: ovmf")
    wanted = edk2.Edk2VarStore(str(VARS)).get_varlist()
    found = parse_variables(VARS.read_bytes())
    assert {(str(guid), name): data for (guid, name), data in found.items()} == {
        (str(one.guid), str(one.name)): one.data for one in wanted.values()
    }


def test_a_shipped_store_is_read() -> None:
    if not VARS.is_file():
        pytest.skip("not installed: ovmf")
    found = SecureBoot.from_variables(VARS.read_bytes())
    assert found.enabled
    assert len(found.db) > 3000


def test_the_order_of_variables() -> None:
    state = secure(issuer("a")[0])
    whats = [event.what for event in variable_events("pcr7", state, "sha256")]
    names = ("SecureBoot", "PK", "KEK", "db", "dbx")
    assert whats == [*(f"variable {name}" for name in names), "separator"]


def test_three_states_without_keys_differ() -> None:
    states = (
        SecureBoot(enabled=False),
        SecureBoot(enabled=False, built_in=False),
        secure(issuer("a")[0]),
    )
    assert len({variable_events("pcr7", state, "sha256")[0].digest for state in states}) == 3


def test_the_entry_that_admits_is_the_first_of_db_that_vouches() -> None:
    certificate, key = leaf("vendor", "owner")
    raw = uki(certificates=certificate_table(certificate, key))
    others = issuer("other")[0], issuer("owner")[0], certificate
    found = authority_event("pcr7", secure(*others), signature(raw), "sha256")
    entry = OWNER.bytes_le + signature_list(issuer("owner")[0])[44:]
    assert found == measured(
        "pcr7", found.what, variable_data(EFI_IMAGE_SECURITY_DATABASE, "db", entry), "sha256"
    )


def test_a_digest_in_db_admits_too() -> None:
    digest = signature(uki()).sha256
    found = authority_event("pcr7", secure(issuer("other")[0], digest), signature(uki()), "sha256")
    assert found.digest is not None


@pytest.mark.parametrize(
    "case", ["unsigned", "another key", "key in dbx", "digest in dbx", "same name, another key"]
)
def test_an_image_that_firmware_would_not_start_has_no_prediction(case: str) -> None:
    certificate, key = issuer("owner")
    raw = uki(certificates=certificate_table(certificate, key))
    digest = signature(raw).sha256
    raw, state = {
        "unsigned": (uki(), secure(certificate)),
        "another key": (raw, secure(issuer("other")[0])),
        "key in dbx": (raw, secure(certificate, dbx=signature_list(certificate))),
        "digest in dbx": (raw, secure(certificate, dbx=signature_list(digest))),
        "same name, another key": (
            uki(certificates=certificate_table(*leaf("owner", "other"))),
            secure(certificate),
        ),
    }[case]
    with pytest.raises(FormatError) as caught:
        predict_pcrs(Digests.of(Uki.parse(raw), "sha256"), state, boot="disk")
    assert caught.value.code == "image-not-admitted"


@pytest.mark.parametrize(
    "table",
    [bytes(8), struct.pack("<IHH", 16, 0x200, 1) + bytes(8), struct.pack("<IHH", 64, 0x200, 2) + bytes(8)],
)
def test_certificate_tables_that_are_refused(table: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        signature(pe([(".text", b"x")], certificates=table))
    assert caught.value.code == "malformed-pe"


def test_a_signature_that_is_no_pkcs7_is_refused() -> None:
    table = struct.pack("<IHH", 16, 0x200, 2) + bytes(8)
    with pytest.raises(FormatError) as caught:
        signature(pe([(".text", b"x")], certificates=table))
    assert caught.value.code == "malformed-pe"


def test_a_database_in_another_form_is_refused() -> None:
    certificate, key = issuer("owner")
    raw = uki(certificates=certificate_table(certificate, key))
    with pytest.raises(EvidenceFormatError) as caught:
        authority_event("pcr7", SecureBoot(enabled=True, db=b"no list"), signature(raw), "sha256")
    assert caught.value.code == "malformed-event"


def test_with_secure_boot_the_kernel_is_not_measured_as_an_image() -> None:
    certificate, key = issuer("owner")
    signed = Digests.of(Uki.parse(uki(certificates=certificate_table(certificate, key))), "sha256")
    on = predict_pcrs(signed, secure(certificate), boot="disk")
    off = predict_pcrs(signed, SecureBoot(enabled=False), boot="disk")
    assert [event.what for event in on.events if event.register == "pcr4"] == [
        event.what for event in off.events if event.register == "pcr4"
    ][:-1]
    assert on.registers["pcr11"] == off.registers["pcr11"]
