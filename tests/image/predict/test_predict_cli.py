"""`sealwright image predict`: results, signed and logged reference values, and refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.image.predict.support import (
    certificate_table,
    firmware,
    gpt,
    issuer,
    kernel,
    signature_list,
    store,
    uki,
    variable,
)
from tests.protocol.support import config as enclave_config
from tests.tlog.support import POLICY, SIGNER, filled

from sealwright.appraisal.reference import ReferenceValues
from sealwright.appraisal.signed import REFERENCE_VALUES
from sealwright.cli import main
from sealwright.cli.image_predict import Platform
from sealwright.crypto.dsse import Envelope
from sealwright.errors import SettingsError
from sealwright.evidence.uefi import EFI_GLOBAL_VARIABLE, EFI_IMAGE_SECURITY_DATABASE
from sealwright.image.eif import Eif
from sealwright.image.predict.targets import TARGETS
from sealwright.protocol.commitment import LogEntry
from sealwright.tlog.proof import LogProof

CONFIG = enclave_config()
CMDLINE = b"console=ttyS0 roothash=" + b"ab" * 32 + b"\n"
RECORDED = Path(__file__).parent / "recorded"
LIST = signature_list(issuer("owner")[0])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder as `image build` writes it, and what belongs to machines beside it."""
    image = Eif.make(kernel(), "quiet", [b"init", b"app"], name="test", version="1")
    contents = {
        "image/guest.efi": uki({".cmdline": CMDLINE}, certificates=certificate_table(*issuer("owner"))),
        "image/kernel": kernel(),
        "image/initrd": b"an initrd",
        "image/cmdline": CMDLINE,
        "image/disk.raw": gpt() + bytes(4096),
        "ovmf.fd": firmware(),
        "vars.fd": store(
            variable(EFI_GLOBAL_VARIABLE, "PK", LIST),
            variable(EFI_GLOBAL_VARIABLE, "KEK", LIST),
            variable(EFI_IMAGE_SECURITY_DATABASE, "db", LIST),
        ),
        "list.esl": LIST,
        "config.json": CONFIG.encode(),
        "guest.eif": image.encode(),
        "signer.pem": issuer("owner")[0].public_bytes(Encoding.PEM),
    }
    (tmp_path / "image").mkdir()
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture
def key(files: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["owner-key", "new", str(files / "owner.key")]) == 0
    capsys.readouterr()
    return files / "owner.key"


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON object."""
    code = main(["image", "predict", *map(str, args), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def error(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code, found = run(capsys, *args)
    return code, found["error"]["code"], found["error"]["stage"]


def test_the_command_knows_every_platform() -> None:
    assert get_args(Platform) == tuple(TARGETS)


@pytest.mark.parametrize(
    ("platform", "options", "registers", "missing"),
    [
        ("tpm", ["--vars", "vars.fd"], ["pcr4", "pcr7", "pcr9", "pcr11", "pcr12", "pcr13"], []),
        ("vtpm", ["--secure-boot", "off"], ["pcr4", "pcr7", "pcr9", "pcr11", "pcr12", "pcr13"], []),
        (
            "az-snp-vtpm",
            ["--pk", "list.esl", "--kek", "list.esl", "--db", "list.esl"],
            ["pcr4", "pcr7", "pcr9", "pcr11", "pcr12", "pcr13"],
            ["measurement"],
        ),
        ("snp", ["--firmware", "ovmf.fd", "--shape", "2"], ["measurement"], []),
        ("tdx", ["--firmware", "ovmf.fd", "--vars", "vars.fd"], ["mrtd", "rtmr1", "rtmr2"], ["rtmr0"]),
        ("gcp-tdx", ["--vars", "vars.fd"], ["rtmr1", "rtmr2"], ["mrtd", "rtmr0"]),
        ("nitro", ["--eif", "guest.eif"], ["pcr0", "pcr1", "pcr2", "pcr8"], []),
    ],
)
def test_what_each_platform_gives(
    platform: str,
    options: Sequence[str],
    registers: list[str],
    missing: list[str],
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [str(files / one) if (files / one).is_file() else one for one in options]
    code, found = run(capsys, files / "image", "--platform", platform, *named)
    assert code == 0
    assert list(found["registers"]) == registers
    assert [one["register"] for one in found["not_predicted"]] == missing
    assert found["config_register"] == TARGETS[platform].config_register


def test_three_ways_to_say_the_same_keys(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [option for name in ("pk", "kek", "db") for option in (f"--{name}", files / "list.esl")]
    one = run(capsys, files / "image", "--platform", "tpm", "--vars", files / "vars.fd")[1]
    other = run(capsys, files / "image", "--platform", "tpm", *named)[1]
    assert one["registers"] == other["registers"]


def test_keys_that_are_switched_off_are_measured_all_the_same(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [option for name in ("pk", "kek", "db") for option in (f"--{name}", files / "list.esl")]
    options = [files / "image", "--platform", "tpm"]
    values = {
        tuple(run(capsys, *options, *more)[1]["registers"]["pcr7"])
        for more in (named, [*named, "--secure-boot", "off"], ["--secure-boot", "off"])
    }
    assert len(values) == 3


def test_shapes_are_several_values_of_one_register(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--firmware", files / "ovmf.fd", "--shape", "2", "--shape", "4:EPYC-Genoa", "--shape", "2"]
    found = run(capsys, files / "image", "--platform", "snp", *options)[1]
    assert len(found["registers"]["measurement"]) == 2
    direct = run(capsys, files / "image", "--platform", "snp", *options, "--direct-uki")[1]
    assert direct["registers"] != found["registers"]


def test_lines_for_people(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--platform", "gcp-tdx", "--secure-boot", "off"]
    assert main(["image", "predict", str(files / "image"), *options]) == 0
    out = capsys.readouterr().out
    assert "platform  tdx, config in rtmr3" in out
    assert "NOT KNOWN rtmr0" in out


@pytest.mark.parametrize(
    ("platform", "register", "wanted"),
    [
        ("tpm", "pcr8", None),
        ("snp", "host_data", CONFIG.digest()),
        ("tdx", "mrconfigid", CONFIG.digest() + bytes(16)),
        ("gcp-tdx", "rtmr3", None),
        ("nitro", "pcr16", None),
    ],
)
def test_the_config_in_its_register(
    platform: str, register: str, wanted: bytes | None, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[object] = ["--firmware", files / "ovmf.fd", "--shape", "1", "--vars", files / "vars.fd"]
    options += ["--eif", files / "guest.eif", "--config", files / "config.json"]
    code, found = run(capsys, files / "image", "--platform", platform, *options)
    assert code == 0
    (value,) = found["registers"][register]
    assert value == (TARGETS[platform].config(CONFIG.digest())[register] if wanted is None else wanted).hex()


def test_signed_reference_values_in_the_log(
    files: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(files / "log", 3).close()
    secret = files / "log.key"
    secret.write_text(_signer_text())
    secret.chmod(0o600)
    out = files / "guest.refvalues"
    options: list[object] = ["--vars", files / "vars.fd", "--config", files / "config.json"]
    options += [
        "--register",
        "pcr0=" + "aa" * 32,
        "--out",
        out,
        "--key",
        key,
        "--name",
        "guest",
        "--version",
        7,
    ]
    options += ["--at", "2026-03-01T12:00:00Z", "--log", files / "log", "--log-key", secret]
    code, found = run(capsys, files / "image", "--platform", "tpm", *options)
    assert (code, found["log_index"]) == (0, 3)
    payload = Envelope.parse(out.read_bytes()).unverified_payload
    document = ReferenceValues.parse(payload, error=SettingsError)
    assert (document.name, document.version, document.platform) == ("guest", 7, "tpm")
    assert document.config_register == "pcr8"
    assert {name: [one.hex() for one in some] for name, some in document.registers.items()} == found[
        "registers"
    ]
    assert Envelope.parse(out.read_bytes()).payload_type == REFERENCE_VALUES
    proof = LogProof.parse((files / "guest.refvalues.tlog-proof").read_bytes())
    entry = LogEntry(type="reference-values", commitment=document.digest()).encode()
    assert proof.verify(entry, POLICY).index == 3
    # The same command again: nothing is signed or logged twice.
    assert error(capsys, files / "image", "--platform", "tpm", *options) == (65, "unwritable-file", "parse")
    assert main(["refvalues", "show", str(out)]) == 0


def _signer_text() -> str:
    import base64

    seed = SIGNER.key.private_bytes_raw()
    material = base64.b64encode(b"\x01" + seed).decode()
    return f"PRIVATE+KEY+{SIGNER.name}+{SIGNER.vkey.key_id.hex()}+{material}\n"


def test_a_log_that_cannot_be_written_leaves_nothing_signed(
    files: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "none").mkdir()
    secret = files / "log.key"
    secret.write_text(_signer_text())
    secret.chmod(0o600)
    out = files / "guest.refvalues"
    options: list[object] = ["--secure-boot", "off", "--out", out, "--key", key, "--name", "guest"]
    options += ["--log", files / "none", "--log-key", secret]
    assert error(capsys, files / "image", "--platform", "tpm", *options)[:2] == (10, "log-missing")
    secret.write_bytes(b"\xff")
    assert error(capsys, files / "image", "--platform", "tpm", *options)[:2] == (65, "malformed-key")
    assert not out.exists()


def test_a_log_of_another_boot_is_explained(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RECORDED / "secure-boot-disk.log"
    options = [files / "image", "--platform", "tpm", "--secure-boot", "off", "--explain", log]
    assert error(capsys, *options) == (10, "prediction-differs", "pcr7")


@pytest.mark.parametrize(
    ("platform", "options", "wanted"),
    [
        ("tpm", [], (65, "input-missing")),
        ("tdx", [], (65, "input-missing")),
        ("snp", [], (65, "input-missing")),
        ("snp", ["--firmware", "ovmf.fd"], (65, "input-missing")),
        ("nitro", [], (65, "input-missing")),
        ("tpm", ["--secure-boot", "off", "--config", "list.esl"], (65, None)),
        ("tpm", ["--vars", "list.esl"], (65, "malformed-variables")),
        ("tpm", ["--secure-boot", "off", "--uki", "list.esl"], (65, "malformed-pe")),
        ("tpm", ["--secure-boot", "off", "--kernel", "list.esl"], (65, "image-parts-differ")),
        ("tpm", ["--secure-boot", "off", "--initrd", "list.esl"], (65, "image-parts-differ")),
        ("tpm", ["--secure-boot", "off", "--cmdline", "config.json"], (65, "image-parts-differ")),
        ("snp", ["--firmware", "list.esl"], (65, "malformed-firmware")),
        ("snp", ["--firmware", "ovmf.fd", "--shape", "2:Pentium"], (65, "unknown-shape")),
        ("nitro", ["--eif", "list.esl"], (65, "malformed-eif")),
        ("gcp-tdx", ["--secure-boot", "off", "--disk", "list.esl"], (65, "malformed-gpt")),
    ],
)
def test_refusals(
    platform: str,
    options: Sequence[str],
    wanted: tuple[int, str | None],
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [str(files / one) if (files / one).is_file() else one for one in options]
    code, name, _ = error(capsys, files / "image", "--platform", platform, *named)
    assert (code, name if wanted[1] else None) == wanted


@pytest.mark.parametrize(
    "options",
    [
        ["--vars", "vars.fd", "--secure-boot", "off"],
        ["--pk", "list.esl"],
        ["--pk", "list.esl", "--secure-boot", "absent"],
        ["--secure-boot", "on"],
        ["--secure-boot", "off", "--out", "new"],
        ["--secure-boot", "off", "--log", "image"],
        ["--secure-boot", "off", "--register", "pcr4=00"],
        ["--secure-boot", "off", "--register", "pcr0"],
        ["--secure-boot", "off", "--register", "pcr0=XX"],
        ["--secure-boot", "off", "--shape", "x"],
        ["--secure-boot", "off", "--shape", "1", "--features", "x"],
    ],
)
def test_options_that_do_not_fit_are_usage_errors(
    options: Sequence[str], files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    assert main(["image", "predict", "image", "--platform", "tpm", *options]) == 2
    capsys.readouterr()


def test_platforms_with_one_bank_or_no_event_log(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RECORDED / "secure-boot-disk.log"
    for platform, option in (
        ("snp", ("--explain", log)),
        ("tdx", ("--bank", "sha256")),
        ("nitro", ("--explain", log)),
    ):
        assert (
            main(["image", "predict", str(files / "image"), "--platform", platform, *map(str, option)]) == 2
        )
        capsys.readouterr()


def test_an_enclave_image_and_who_signs_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--platform", "nitro", "--eif", files / "guest.eif", "--certificate", files / "signer.pem"]
    code, found = run(capsys, *options)
    assert code == 0
    assert found["registers"]["pcr8"] != ["00" * 48]
    one = (files / "signer.pem").read_bytes()
    (files / "signer.pem").write_bytes(one + one)
    assert error(capsys, *options)[:2] == (65, "input-missing")
    (files / "signer.pem").write_bytes(b"")
    assert error(capsys, *options)[:2] == (65, "malformed-pem")


def test_a_key_that_others_can_read_signs_nothing(
    files: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.name != "posix":
        pytest.skip("permissions of another kind")
    key.chmod(0o644)
    options: list[object] = ["--secure-boot", "off", "--out", files / "new", "--key", key, "--name", "guest"]
    assert error(capsys, files / "image", "--platform", "tpm", *options)[:2] == (65, "secret-exposed")


def test_an_enclave_image_is_written_and_predicted_alike(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = files / "image"
    options = [f"--{name}={image / name}" for name in ("kernel", "cmdline")]
    options += [f"--ramdisk={image / 'initrd'}", f"--ramdisk={image / 'disk.raw'}", "--name=test", "--json"]
    written = []
    for name in ("one.eif", "two.eif"):
        assert main(["image", "eif", *options, f"--out={files / name}"]) == 0
        written.append(json.loads(capsys.readouterr().out)["registers"])
    assert (files / "one.eif").read_bytes() == (files / "two.eif").read_bytes()
    found = run(capsys, "--platform", "nitro", "--eif", files / "one.eif")[1]["registers"]
    assert written == [{name: value for name, (value,) in found.items()}] * 2
    assert main(["image", "eif", *options, f"--out={files / 'one.eif'}"]) == 65  # it is there


@pytest.mark.parametrize("line", [b" quiet", b"quiet \n", b"quiet\n\n", b"a\tb", b"a" * 4097, b"\xff"])
def test_a_command_line_that_would_change_on_its_way_is_refused(
    line: bytes, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "image" / "cmdline").write_bytes(line)
    options = ["--platform", "tpm", "--secure-boot", "off"]
    assert error(capsys, files / "image", *options)[:2] == (65, "malformed-uki")
