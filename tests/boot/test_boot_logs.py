"""Every event log of the manifest parses, replays, and tells what it can prove."""

from __future__ import annotations

import base64
import json

import pytest
from tests.boot.support import KNOWN, TDX, TPM, best, hex_registers, load, signed, tdx_registers
from tests.vector_files import manifest, vector

from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.eventlog import CcelTable, EventLog
from sealwright.verify.boot import read_boot
from sealwright.verify.eventlog import replay, verify_event_log

LOGS = [
    row["file"]
    for tee in ("tpm", "tdx")
    for row in manifest(tee)
    if row["expected"].startswith("EVENT LOG") and not row["file"].endswith((".json", ".pb", "nonce.dat"))
]
TABLES = [name for name in LOGS if "table" in name or name.endswith("/CCEL.bin")]


@pytest.mark.parametrize("name", sorted(set(LOGS) - set(TABLES)))
def test_log_parses_replays_and_is_readable(name: str) -> None:
    raw = vector(name)
    log = EventLog.parse(raw)
    assert log.encode() == raw
    assert not log.padding.strip(log.padding[:1])
    pcrs = "go-tpm-tools" in name
    registers = replay(log, layout="pcr" if pcrs else "rtmr", bank=best(log))
    if best(log) == "sm3":  # Hygon CSV: no platform of ours, so nothing signs it
        assert set(registers) == {"rtmr0", "rtmr1", "rtmr2"}
        return
    replayed = verify_event_log(log, signed("tpm" if pcrs else "tdx", registers))
    assert dict(replayed.registers) == registers
    account = read_boot(replayed)
    assert json.loads(json.dumps(account.facts)) == account.facts
    assert all(line.isprintable() for line in account.lines())
    assert sum(event.proved for event in replayed.events) * 2 > len(replayed.events)


@pytest.mark.parametrize("name", TABLES)
def test_ccel_table(name: str) -> None:
    raw = vector(name)
    table = CcelTable.parse(raw)
    assert (table.cc_type, table.cc_subtype) == (2, 0)
    assert table.log_area_minimum_length in (0x10000, 0x40000)
    for position in range(56):
        changed = bytearray(raw)
        changed[position] ^= 1
        with pytest.raises(EvidenceFormatError) as caught:  # the checksum covers every byte
            CcelTable.parse(bytes(changed))
        assert caught.value.code == "malformed-ccel-table"
    with pytest.raises(EvidenceFormatError):
        EventLog.parse(raw)


def test_nonce_of_the_manifest_is_no_log() -> None:
    with pytest.raises(EvidenceFormatError):
        EventLog.parse(vector("tdx/go-tdx-guest/testdata__ccel__nonce.dat"))


@pytest.mark.parametrize("name", sorted(KNOWN["tpm"]))
def test_replay_gives_the_pcrs_that_the_machine_had(name: str) -> None:
    known = KNOWN["tpm"][name]
    registers = hex_registers(known["registers"])
    verified = signed("tpm", registers)
    replayed = verify_event_log(load(TPM.format(name)), verified)
    assert replayed.bank == known["bank"]
    assert dict(replayed.registers) == registers


@pytest.mark.parametrize(
    ("log", "quote"),
    [
        (
            "tdx/go-tdx-guest/testdata__ccel__ccel_data.dat",
            "tdx/go-tdx-guest/testdata__ccel__cos-113-tdx-quote.dat",
        ),
        (
            "tdx/attestation-rs/attestation__test_data__tdx_ccel_live2.dat",
            "tdx/attestation-rs/attestation__test_data__tdx_quote_live.dat",
        ),
    ],
)
def test_ccel_replays_to_the_quote_of_its_machine(log: str, quote: str) -> None:
    replayed = verify_event_log(load(log), signed("tdx", tdx_registers(vector(quote))))
    assert set(replayed.registers) == {"rtmr0", "rtmr1", "rtmr2", "rtmr3"}


def test_ccel_replays_to_the_tdreport_of_its_boot_and_to_no_other() -> None:
    log = load("tdx/attestation-rs/attestation__test_data__tdx_ccel_live.bin")
    report = vector("tdx/attestation-rs/attestation__test_data__tdx_tdreport_live.bin")
    registers = {f"rtmr{i}": report[512 + 208 + 48 * i :][:48] for i in range(4)}
    verify_event_log(log, signed("tdx", registers))
    quote = vector("tdx/attestation-rs/attestation__test_data__tdx_quote_live.dat")
    with pytest.raises(VerificationError, match="rtmr2") as caught:  # another initrd
        verify_event_log(log, signed("tdx", tdx_registers(quote)))
    assert (caught.value.code, caught.value.stage) == ("event-log-mismatch", "event-log")


@pytest.mark.parametrize("suffix", ["", "-unpadded"])
def test_separator_of_another_pcr_is_a_condition(suffix: str) -> None:
    log = load(f"tpm/go-eventlog-ccel/cos-113-intel-tdx-dupe-separator{suffix}.bin")
    registers = hex_registers(KNOWN["ccel"]["cos-113-intel-tdx-dupe-separator"])
    account = read_boot(verify_event_log(log, signed("tdx", registers)))
    texts = [one.text for one in account.conditions if one.code == "boot-separators"]
    assert ["rtmr0" in text for text in texts] == [True, False]
    assert ["rtmr1" in text for text in texts] == [False, True]


@pytest.mark.parametrize(
    "name", ["AAEL_alibabacloud", "data", "data_csv", "data_grub", "data_grub_gke", "data_ovmf"]
)
def test_events_are_those_that_trustee_reads(name: str) -> None:
    expected = json.loads(vector(TDX.format(f"{name}_out.json")))["uefi_event_logs"]
    log = load(TDX.format(name))
    assert len(log.events) == len(expected)
    for event, wanted in zip(log.events, expected, strict=True):
        assert event.index == wanted["index"]
        assert base64.b64encode(event.data).decode() == wanted["event"]
        assert [digest.hex() for _, digest in event.digests] == [one["digest"] for one in wanted["digests"]]


@pytest.mark.parametrize("name", ["AAEL_alibabacloud", "data", "data_grub", "data_grub_gke", "data_ovmf"])
def test_proved_is_at_least_what_trustee_found_to_match(name: str) -> None:
    """Trustee marks the events whose digest is the hash of the whole data."""
    expected = json.loads(vector(TDX.format(f"{name}_out.json")))["uefi_event_logs"]
    log = load(TDX.format(name))
    replayed = verify_event_log(log, signed("tdx", replay(log, layout="rtmr", bank="sha384")))
    proved = {event.number for event in replayed.events if event.proved}
    assert {number for number, one in enumerate(expected) if one["digest_matches_event"]} <= proved


def test_known_facts_of_real_boots() -> None:
    def account(name: str, platform: str = "tpm"):
        log = load(name)
        registers = replay(log, layout="rtmr" if platform == "tdx" else "pcr", bank=best(log))
        return read_boot(verify_event_log(log, signed(platform, registers)))

    cos = account(TPM.format("cos-101-amd-sev"))
    assert cos.secure_boot.enabled
    assert cos.secure_boot.authorities_complete
    assert {one.subject for one in cos.secure_boot.authorities} == {"UEFI DB Key v10", ""}
    assert cos.command_lines[0].text.startswith(
        "/syslinux/vmlinuz.A init=/usr/lib/systemd/systemd boot=local"
    )
    assert not cos.conditions

    debian = account(TPM.format("debian-10"))
    assert debian.secure_boot.enabled
    assert "Debian Secure Boot CA" in {one.subject for one in debian.secure_boot.authorities}
    assert [one.code for one in debian.conditions] == ["boot-not-finished"]

    ubuntu = account(TPM.format("ubuntu-2404-amd-sevsnp"))
    assert [one.code for one in ubuntu.conditions] == ["secure-boot-off"]
    assert ubuntu.command_lines[0].confirmed  # GRUB and the kernel measured the same text
    assert len(ubuntu.secure_boot.variables["dbx"]) == 371
    assert {one.unverified_name for one in ubuntu.files} >= {
        "LOADED_IMAGE::LoadOptions",
        "/vmlinuz-6.8.0-1010-gcp",
    }

    gke = account(TDX.format("data_grub_gke"), "tdx")
    assert [name for name, _ in gke.uki_sections][:4] == [".linux", ".osrel", ".cmdline", ".initrd"]

    shim = account(TDX.format("data"), "tdx")
    (payload,) = (one for one in shim.settings if one.register == "rtmr1")
    assert (payload.unverified_name, payload.content) == (
        "td_payload_info",
        b"root=/dev/vda1 console=hvc0 rw",
    )

    aael = account(TDX.format("AAEL_alibabacloud"), "tdx")
    assert aael.runtime[0] == "rtmr3 aael: coco.com some-operation some-content"

    arch = account(TPM.format("arch-linux-workstation"))
    assert arch.command_lines[0].text.startswith("initrd=\\intel-ucode.img")
