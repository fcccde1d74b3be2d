"""Each way to lie with an event log is refused, or proves nothing."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.boot.support import KNOWN, TPM, builder, hex_registers, load, signed, tdx_registers
from tests.vector_files import vector

from sealwright.errors import EvidenceFormatError, VerificationError
from sealwright.evidence.eventlog import EV_NO_ACTION, Event, EventLog
from sealwright.evidence.runtimelog import RuntimeEvent, parse_aael, parse_systemd_log
from sealwright.evidence.uefi import (
    EFI_GLOBAL_VARIABLE,
    EFI_IMAGE_SECURITY_DATABASE,
    image_path,
    parse_signature_lists,
)
from sealwright.testing.eventlog import BootLogBuilder, variable
from sealwright.testing.software import FakePlatformWarning
from sealwright.verify.boot import read_boot, with_boot
from sealwright.verify.eventlog import replay, verify_event_log
from sealwright.verify.measured import (
    EV_ACTION,
    EV_EFI_ACTION,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_BOOT,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_IPL,
    EV_POST_CODE,
    EV_S_CRTM_VERSION,
    EV_SEPARATOR,
    content_of,
)

SECURITY = (
    (EFI_GLOBAL_VARIABLE, "PK"),
    (EFI_GLOBAL_VARIABLE, "KEK"),
    (EFI_IMAGE_SECURITY_DATABASE, "db"),
    (EFI_IMAGE_SECURITY_DATABASE, "dbx"),
)
ALPHABET = st.binary(max_size=300)


def refused(
    code: str, log: EventLog, registers: dict[str, bytes], platform: str = "tpm", **options: object
) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_event_log(log, signed(platform, registers), **options)
    assert (caught.value.code, caught.value.stage) == (code, "event-log")
    return str(caught.value)


def test_first_register_that_does_not_replay_is_named() -> None:
    made = builder()
    made.boot()
    registers = made.registers()
    registers["pcr4"] = registers["pcr11"] = bytes(32)
    assert "pcr4" in refused("event-log-mismatch", made.log(), registers)


@pytest.mark.parametrize("name", ["pcr8", "pcr15", "pcr16", "pcr23", "pcr17"])
def test_unlogged_extend_is_refused_unless_named(name: str) -> None:
    made = builder()
    made.boot()
    registers = made.registers() | {name: b"\x01" * 32}
    assert name in refused("event-log-mismatch", made.log(), registers)
    log = verify_event_log(made.log(), signed("tpm", registers), unlogged=[name])
    assert log.unlogged == (name,)
    assert [one.code for one in log.conditions] == ["unlogged-extends"]
    assert "unlogged-extends" in {one.code for one in read_boot(log).conditions}


def test_pcrs_of_a_dynamic_launch_begin_with_ones() -> None:
    made = builder()
    made.boot()
    verify_event_log(
        made.log(), signed("tpm", made.registers() | {"pcr17": b"\xff" * 32, "pcr22": bytes(32)})
    )
    refused("event-log-mismatch", made.log(), made.registers() | {"pcr16": b"\xff" * 32})


@pytest.mark.parametrize(("platform", "layout", "name"), [("tpm", "pcr", "pcr10"), ("tdx", "rtmr", "rtmr3")])
def test_registers_of_the_operating_system_need_not_replay(platform: str, layout: str, name: str) -> None:
    made = builder(layout, banks=("sha384",))
    made.boot()
    registers = made.registers("sha384") | {name: b"\x05" * 48}
    log = verify_event_log(made.log(), signed(platform, registers))
    assert (log.unlogged, log.conditions) == ((name,), ())
    assert any(name in text for text in read_boot(log).not_proved)
    made.add(10 if name == "pcr10" else 4, EV_IPL, b"logged after all")
    refused("event-log-mismatch", made.log(), registers, platform)


def test_a_config_digest_is_one_raw_extend_after_the_log() -> None:
    made = builder()
    made.boot()
    config = hashlib.sha256(b"config").digest()
    registers = made.registers() | {"pcr8": hashlib.sha256(bytes(32) + config).digest()}
    event = RuntimeEvent(register="pcr8", digest=config, source="config")
    log = verify_event_log(made.log(), signed("tpm", registers), runtime=[event])
    assert read_boot(log).runtime == (f"pcr8 config: {config.hex()}",)
    refused("event-log-mismatch", made.log(), registers, runtime=[event, event])
    refused("event-log-mismatch", made.log(), registers, runtime=[replace(event, register="pcr9")])
    with pytest.raises(ValueError):
        verify_event_log(
            made.log(), signed("tpm", registers), runtime=[replace(event, digest=bytes(33) + b"x")]
        )


def test_log_without_the_signed_bank_is_refused() -> None:
    full = load(TPM.format("rhel8-uefi"))
    assert full.spec_id is not None
    stripped = EventLog(
        spec_id=replace(full.spec_id, algorithms=("sha1",)),
        events=tuple(replace(event, digests=event.digests[:1]) for event in full.events),
        padding=b"",
    )
    registers = hex_registers(KNOWN["tpm"]["rhel8-uefi"]["registers"])
    refused("bank-not-in-log", EventLog.parse(stripped.encode()), registers)


def test_a_digest_of_another_bank_proves_nothing() -> None:
    """The data matches the SHA-1 digest alone; what was measured into the signed bank is something else."""
    made = builder()
    made.boot()
    made.add(8, EV_IPL, b"grub_cmd: evil\0", b"evil")
    digests = (("sha1", hashlib.sha1(b"good").digest()), made.events[-1].digests[1])
    made.events[-1] = Event(index=8, type=EV_IPL, digests=digests, data=b"grub_cmd: good\0")
    account = read_boot(verify_event_log(made.log(), signed("tpm", made.registers())))
    assert account.commands == ()
    assert account.files[0].digest == hashlib.sha256(b"evil").digest()


@pytest.mark.parametrize(
    "registers", [{}, {"pcr0": bytes(32), "pcr1": bytes(20)}, {"measurement": bytes(48)}]
)
def test_evidence_without_registers_of_one_bank(registers: dict[str, bytes]) -> None:
    made = builder()
    made.boot()
    refused("bad-register", made.log(), registers)


@pytest.mark.parametrize("index", [0, 5, 23])
def test_ccel_extends_rtmrs_alone(index: int) -> None:
    made = builder("rtmr", banks=("sha384",))
    made.boot()
    registers = made.registers("sha384")
    made.add(index, EV_IPL, b"x")
    refused("bad-register", made.log(), registers, "tdx")


def test_no_action_is_not_extended() -> None:
    made = builder()
    made.boot()
    registers = made.registers()
    made.add(4, EV_NO_ACTION, b"SP800-155 Event3")
    account = read_boot(verify_event_log(made.log(), signed("tpm", registers)))
    assert len(account.images) == 1


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_startup_locality(locality: int) -> None:
    made = builder()
    made.add(0, EV_NO_ACTION, b"StartupLocality\0" + bytes([locality]))
    made.boot()
    registers = made.registers()
    start = bytes(31) + bytes([locality])
    assert registers["pcr0"] == hashlib.sha256(start + hashlib.sha256(bytes(4)).digest()).digest()
    verify_event_log(made.log(), signed("tpm", registers))
    made.events[0] = replace(made.events[0], data=b"StartupLocality\0" + bytes([3 if locality != 3 else 0]))
    refused("event-log-mismatch", made.log(), registers)


@pytest.mark.parametrize(
    ("index", "value", "late"), [(0, b"\x01", False), (1, b"\3", False), (0, b"", False), (0, b"\3", True)]
)
def test_startup_locality_that_is_none(index: int, value: bytes, late: bool) -> None:
    made = builder()
    made.boot()
    registers = made.registers()
    made.add(index, EV_NO_ACTION, b"StartupLocality\0" + value)
    if not late:
        made.events.insert(0, made.events.pop())
    refused("bad-startup-locality", made.log(), registers)


@pytest.mark.parametrize("kind", [EV_SEPARATOR, EV_EFI_ACTION, EV_EFI_VARIABLE_DRIVER_CONFIG])
def test_data_that_firmware_always_hashes_whole(kind: int) -> None:
    made = builder()
    made.boot()
    made.add(5, kind, b"shown", b"measured")
    assert "data" in refused("event-data-mismatch", made.log(), made.registers())


def test_what_is_not_quoted_is_not_told() -> None:
    made = builder()
    made.boot()
    registers = {name: value for name, value in made.registers().items() if name in ("pcr0", "pcr4")}
    log = verify_event_log(made.log(), signed("tpm", registers))
    assert {event.register for event in log.events} == {"pcr0", "pcr4"}
    assert "pcr7" in log.unsigned
    account = read_boot(log)
    assert not account.secure_boot.enabled
    assert "secure-boot-off" in {one.code for one in account.conditions}


# --- Secure Boot: types are not measured ---


def state(made, platform: str = "tpm", bank: str = "sha256"):
    return read_boot(verify_event_log(made.log(), signed(platform, made.registers(bank)))).secure_boot


def test_secure_boot_on_and_off() -> None:
    for secure, enabled in (
        (b"\x01", True),
        (b"\x00", False),
        (b"", False),
        (b"\x01\x01", False),
        (b"\x02", False),
    ):
        made = builder()
        made.boot(secure=secure)
        assert state(made).enabled is enabled


@pytest.mark.parametrize(
    ("layout", "platform", "bank", "index"), [("pcr", "tpm", "sha256", 7), ("rtmr", "tdx", "sha384", 1)]
)
def test_boot_variable_relabelled_as_secure_boot_variable(
    layout: str, platform: str, bank: str, index: int
) -> None:
    """Whoever sets Boot0001 chooses what is hashed: firmware hashes its value alone."""
    made = builder(layout, banks=(bank,))
    made.boot(secure=b"\x00")
    forged = variable(EFI_GLOBAL_VARIABLE, "SecureBoot", b"\x01")
    made.add(index, EV_EFI_VARIABLE_BOOT, variable(EFI_GLOBAL_VARIABLE, "Boot0001", forged), forged)
    made.events[-1] = replace(made.events[-1], type=EV_EFI_VARIABLE_DRIVER_CONFIG, data=forged)
    assert not state(made, platform, bank).enabled  # though the log replays, and the event is proved


def test_separator_that_the_log_calls_something_else() -> None:
    """All five variables forged as values of boot variables, between a separator under another label and a later one."""
    made = builder("rtmr", banks=("sha384",))
    made.boot(secure=b"\x00")
    for number, event in enumerate(made.events[:5]):
        made.events[number] = replace(event, type=EV_POST_CODE, data=b"hidden")
    made.events[5] = replace(made.events[5], type=EV_ACTION)
    for guid, name in ((EFI_GLOBAL_VARIABLE, "SecureBoot"), *SECURITY):
        made.add(
            1, EV_EFI_VARIABLE_DRIVER_CONFIG, variable(guid, name, b"\x01" if name == "SecureBoot" else b"")
        )
    made.add(1, EV_SEPARATOR, bytes(4))
    found = state(made, "tdx", "sha384")
    assert not found.enabled
    assert found.variables == {}


@pytest.mark.parametrize(
    ("action", "code"), [(b"UEFI Debug Mode", "debug"), (b"DMA Protection Disabled", "dma-protection-off")]
)
@pytest.mark.parametrize("layout", ["pcr", "rtmr"])
def test_action_that_the_log_calls_something_else(action: bytes, code: str, layout: str) -> None:
    made = builder(layout, banks=("sha384",))
    made.boot()
    made.add(7 if layout == "pcr" else 1, EV_POST_CODE, b"nothing to see", action)
    platform = "tdx" if layout == "rtmr" else "tpm"
    assert code in {one.code for one in state(made, platform, "sha384").conditions}


def test_authority_that_the_log_calls_something_else() -> None:
    key = variable(EFI_IMAGE_SECURITY_DATABASE, "db", bytes(16) + b"\x30key of somebody")
    for kind in (EV_EFI_VARIABLE_AUTHORITY, EV_ACTION, EV_EFI_VARIABLE_BOOT, EV_IPL):
        made = builder()
        made.boot()
        made.add(7, kind, key)
        assert [one.variable for one in state(made).authorities] == ["db"]
    for content in (b"", b"\x00" * 32, key + b"\x00" * 9):  # no variable: it could be any key
        made = builder()
        made.boot()
        made.add(7, EV_ACTION, content)
        assert [one.code for one in state(made).conditions] == ["secure-boot-opaque"]


def test_image_and_file_whose_content_the_log_tells() -> None:
    """Whoever has an image knows what its digest is made of, and can make an event of it that looks proved."""
    made = builder()
    made.boot()
    made.add(4, EV_ACTION, b"MZ an unsigned boot loader")
    made.add(9, EV_ACTION, b"a file")
    made.add(9, EV_IPL, b"\xff\xfe another file")
    account = read_boot(verify_event_log(made.log(), signed("tpm", made.registers())))
    assert hashlib.sha256(b"MZ an unsigned boot loader").digest() in {one.digest for one in account.images}
    files = {one.digest for one in account.files}
    assert {hashlib.sha256(one).digest() for one in (b"a file", b"\xff\xfe another file")} <= files


def test_section_that_the_log_calls_something_else() -> None:
    made = builder()
    made.boot(sections=[(".linux", b"kernel"), (".cmdline", b"init=/bin/sh")])
    hidden = [
        replace(event, type=EV_POST_CODE, data=b"") if event.index == 11 else event for event in made.events
    ]
    log = replace(made.log(), events=tuple(hidden))
    account = read_boot(verify_event_log(log, signed("tpm", made.registers())))
    assert [name for name, _ in account.uki_sections] == [".linux", ".cmdline"]


def test_secure_boot_variable_after_the_separator_or_twice() -> None:
    made = builder()
    made.boot()
    moved = made.events.pop(0)
    made.events.insert(6, moved)  # behind the separator
    assert not state(made).enabled
    made = builder()
    made.boot()
    made.events.insert(1, made.events[0])
    assert not state(made).enabled
    made = builder()
    made.boot()
    made.events = [event for event in made.events if event.type != EV_SEPARATOR]
    assert not state(made).enabled


def test_opaque_event_in_pcr_7_is_a_condition() -> None:
    made = builder()
    made.boot()
    made.add(7, EV_EFI_VARIABLE_AUTHORITY, b"not what was measured", b"a key of somebody")
    found = state(made)
    assert found.enabled
    assert not found.authorities_complete
    assert [one.code for one in found.conditions] == ["secure-boot-opaque"]


@pytest.mark.parametrize(
    ("action", "code"), [(b"UEFI Debug Mode", "debug"), (b"DMA Protection Disabled", "dma-protection-off")]
)
def test_firmware_that_says_it_is_open(action: bytes, code: str) -> None:
    made = builder()
    made.boot()
    made.add(7, EV_EFI_ACTION, action)
    assert [one.code for one in state(made).conditions] == [code]


def test_image_under_another_label_is_still_an_image() -> None:
    made = builder()
    made.boot()
    made.add(4, EV_EFI_VARIABLE_BOOT, bytes(64), b"an unsigned boot loader")
    account = read_boot(verify_event_log(made.log(), signed("tpm", made.registers())))
    assert hashlib.sha256(b"an unsigned boot loader").digest() in {one.digest for one in account.images}


@pytest.mark.parametrize("value", [b"\1\0\0\0", b"\0\0\0\0\0", b"\0\0\0\0"])
def test_separators(value: bytes) -> None:
    made = builder()
    made.boot()
    made.add(3, EV_SEPARATOR, value)
    codes = [
        one.code
        for one in read_boot(verify_event_log(made.log(), signed("tpm", made.registers()))).conditions
    ]
    assert codes == ["boot-separators"]


def test_events_after_the_firmware_left() -> None:
    made = builder()
    made.boot()
    made.add(5, EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
    codes = [
        one.code
        for one in read_boot(verify_event_log(made.log(), signed("tpm", made.registers()))).conditions
    ]
    assert codes == ["late-events"]


def test_unified_kernel_image() -> None:
    sections = [(".linux", b"kernel"), (".cmdline", b"root=verity"), (".initrd", b"initrd")]
    made = builder()
    made.boot(sections=sections)
    made.add(12, EV_IPL, "init=/bin/sh\0".encode("utf-16-le"))
    account = read_boot(verify_event_log(made.log(), signed("tpm", made.registers())))
    assert account.uki_sections == tuple((n, hashlib.sha256(c).digest()) for n, c in sections)
    assert [one.text for one in account.command_lines] == ["init=/bin/sh"]
    assert not account.conditions


def test_labels_of_grub_are_no_content() -> None:
    found = content_of(EV_IPL, b"kernel_cmdline: quiet\0", hashlib.sha256(b"quiet").digest(), "sha256")
    assert found == (b"quiet", "kernel_cmdline")
    assert content_of(EV_IPL, b"kernel_cmdline: quiet\0", hashlib.sha256(b"loud").digest(), "sha256") is None


def test_every_digest_of_a_real_log_counts() -> None:
    """Any change of any digest is refused; any change of proved data is refused or no longer proved."""
    raw = vector("tdx/go-tdx-guest/testdata__ccel__ccel_data.dat")
    verified = signed("tdx", tdx_registers(vector("tdx/go-tdx-guest/testdata__ccel__cos-113-tdx-quote.dat")))
    log = EventLog.parse(raw)
    before = verify_event_log(log, verified)
    proved = {event.number: event for event in before.events if event.proved}
    for number, event in enumerate(log.events):
        (bank, digest), *_ = event.digests
        for position in (0, 47):
            bad = bytearray(digest)
            bad[position] ^= 1
            changed = replace(event, digests=((bank, bytes(bad)),))
            assert "rtmr" in refused(
                "event-log-mismatch", swapped(log, number, changed), dict(verified.registers), "tdx"
            )
        if number in proved:
            for position in range(0, len(event.data), max(1, len(event.data) // 40)):
                check_data(log, number, event, position, verified, proved[number].content)


def check_data(log, number, event, position, verified, content) -> None:
    data = bytearray(event.data)
    data[position] ^= 1
    changed = swapped(log, number, replace(event, data=bytes(data)))
    try:
        events = verify_event_log(changed, verified).events
    except VerificationError as exc:
        if exc.code != "event-data-mismatch":
            raise
        return
    after = next(one for one in events if one.number == number)
    assert after.content in (None, content)  # labels and what follows the text are not measured
    if after.content is None:
        assert not after.proved


def swapped(log: EventLog, number: int, event: Event) -> EventLog:
    return replace(log, events=(*log.events[:number], event, *log.events[number + 1 :]))


def test_events_left_out_added_or_in_another_order() -> None:
    registers = hex_registers(KNOWN["tpm"]["rhel8-uefi"]["registers"])
    log = load(TPM.format("rhel8-uefi"))
    events = log.events
    for changed in (events[:-1], events[1:], (*events, events[-1]), (events[1], events[0], *events[2:])):
        refused("event-log-mismatch", replace(log, events=changed), registers)


def test_no_flipped_byte_of_a_log_proves_anything_new() -> None:
    """Types, labels and opaque data are not measured: changing them is no forgery, as long as nothing rests on them."""
    raw = vector("tpm/go-eventlog-ccel/CCEL_unpadded.data.bin")
    log = EventLog.parse(raw)
    verified = signed("tdx", replay(log, layout="rtmr", bank="sha384"))
    genuine = {
        (event.register, event.number, event.content) for event in verify_event_log(log, verified).events
    }
    for position in range(len(raw)):
        changed = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
        try:
            after = verify_event_log(EventLog.parse(changed), verified)
        except (EvidenceFormatError, VerificationError):
            continue
        told = {(event.register, event.number, event.content) for event in after.events if event.proved}
        assert told <= genuine, position


@pytest.mark.parametrize(("index", "layout"), [(1, "rtmr"), (1, "pcr")])
def test_firmware_version_from_a_register_that_others_fill(index: int, layout: str) -> None:
    made = builder(layout, banks=("sha384",))
    made.boot()
    made.add(index, EV_S_CRTM_VERSION, "Trusted firmware\0".encode("utf-16-le"))
    platform = "tdx" if layout == "rtmr" else "tpm"
    account = read_boot(verify_event_log(made.log(), signed(platform, made.registers("sha384"))))
    assert account.firmware_versions == ()


def test_account_joins_what_it_was_proved_with() -> None:
    made = builder()
    made.boot(secure=b"\x00")
    verified = signed("tpm", made.registers())
    account = read_boot(verify_event_log(made.log(), verified))
    joined = with_boot(verified, account)
    assert [one.code for one in joined.conditions] == ["secure-boot-off"]
    assert joined.facts["boot"] == account.facts
    assert set(account.not_proved) <= set(joined.not_proved)
    with pytest.raises(ValueError, match="pcr4"):
        with_boot(signed("tpm", made.registers() | {"pcr4": bytes(32)}), account)


# --- formats ---


@settings(max_examples=300, deadline=None)
@given(raw=st.one_of(ALPHABET, st.builds(lambda tail: b"\0\0\0\0\3\0\0\0" + bytes(20) + tail, ALPHABET)))
def test_parser_raises_its_own_error_alone(raw: bytes) -> None:
    try:
        log = EventLog.parse(raw)
    except EvidenceFormatError:
        return
    assert log.encode() == raw


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_real_log_parses_exactly_or_is_refused(data: st.DataObject) -> None:
    raw = bytearray(vector("tpm/go-eventlog-ccel/CCEL_unpadded.data.bin"))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        log = EventLog.parse(bytes(raw))
    except EvidenceFormatError:
        return
    assert log.encode() == bytes(raw)
    with suppress(VerificationError):
        read_boot(verify_event_log(log, signed("tdx", replay(log, layout="rtmr", bank="sha384"))))


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([EV_IPL, EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_AUTHORITY, 0x80000003, 6, 10, 8]),
    data=ALPHABET,
)
def test_account_of_any_event(kind: int, data: bytes) -> None:
    made = builder()
    made.boot()
    for index in (0, 4, 7, 8, 11):
        made.add(index, kind, data)
    account = read_boot(verify_event_log(made.log(), signed("tpm", made.registers())))
    assert all(line.isprintable() for line in account.lines())


@given(raw=ALPHABET)
def test_uefi_structures_raise_their_own_error_alone(raw: bytes) -> None:
    image_path(raw)
    with suppress(EvidenceFormatError):
        parse_signature_lists(raw)


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (4, 4),  # the head is no EV_NO_ACTION
        (8, 1),  # nor without a digest
        (56, 2),  # it lists more algorithms than follow
        (60, 5),  # of an unknown kind
        (62, 47),  # of another size
        (64, 1),  # vendor information that is not there
        (65, 24),  # the first event is of a register that there is not
        (73, 2),  # has another number of digests
        (77, 11),  # of another algorithm
    ],
)
def test_malformed_log(position: int, value: int) -> None:
    raw = bytearray(vector("tpm/go-eventlog-ccel/CCEL_unpadded.data.bin"))
    raw[position] = value
    with pytest.raises(EvidenceFormatError) as caught:
        EventLog.parse(bytes(raw))
    assert caught.value.code == "malformed-event-log"


def test_bounds() -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        EventLog.parse(bytes(4 * 1024 * 1024 + 1))
    assert caught.value.code == "too-large"
    made = builder()
    made.add(0, EV_IPL, b"x")
    raw = made.log().encode()
    for broken in (raw[:-1], raw + b"\0\1", raw[:-5] + (1024 * 1024 + 1).to_bytes(4, "little") + b"x"):
        with pytest.raises(EvidenceFormatError):
            EventLog.parse(broken)
    for filler in (b"\0", b"\xff"):
        assert EventLog.parse(raw + 9 * filler).padding == 9 * filler
    many = replace(made.log(), events=made.log().events * (16 * 1024 + 1))
    with pytest.raises(EvidenceFormatError):
        EventLog.parse(many.encode())


def test_runtime_logs() -> None:
    first = b"INIT/sha384 " + b"00" * 48 + b"\n"
    events = parse_aael(first + b'cc.example pull {"image": 1}\n', "rtmr3")
    assert [event.content for event in events] == [b'cc.example pull {"image": 1}']
    made = builder("rtmr", banks=("sha384",))
    made.boot()
    value = hashlib.sha384(bytes(48) + hashlib.sha384(events[0].content).digest()).digest()
    registers = made.registers("sha384") | {"rtmr3": value}
    log = verify_event_log(made.log(), signed("tdx", registers), runtime=events)
    assert read_boot(log).runtime == ('rtmr3 aael: cc.example pull {"image": 1}',)
    for broken in (b"", b"a b c\n", first + b"one two\n", b"INIT/sha384 01" + b"00" * 47 + b"\n", b"\xff"):
        with pytest.raises(EvidenceFormatError) as caught:
            parse_aael(broken, "rtmr3")
        assert caught.value.code == "malformed-runtime-log"


def test_systemd_log() -> None:
    record = '\x1e{"pcr":11,"digests":[],"content_type":"systemd","content":{"string":"enter-initrd"}}\n'
    assert parse_systemd_log(record.encode()) == (
        RuntimeEvent(register="pcr11", content=b"enter-initrd", source="systemd"),
    )
    for broken in (
        '\x1e{"pcr":24,"content":{"string":"x"}}',
        '\x1e{"pcr":true,"content":{"string":"x"}}',
        "\x1e[]",
    ):
        with pytest.raises(EvidenceFormatError) as caught:
            parse_systemd_log(broken.encode())
        assert caught.value.code == "malformed-runtime-log"


def test_results_are_made_by_verification_alone() -> None:
    made = builder()
    made.boot()
    log = verify_event_log(made.log(), signed("tpm", made.registers()))
    with pytest.raises(TypeError):
        replace(log, _made_by=None)
    with pytest.raises(TypeError):
        replace(read_boot(log), _made_by=object())
    with pytest.raises(ValueError):
        RuntimeEvent(register="pcr8")
    with pytest.warns(FakePlatformWarning):
        BootLogBuilder()
