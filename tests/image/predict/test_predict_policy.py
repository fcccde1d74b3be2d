"""From files to admission: predicted, signed, believed by a policy, held by a TPM. One changed part is one named register."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.image.predict.support import CMDLINE, certificate_table, issuer, secure, uki
from tests.protocol.support import config as enclave_config
from tests.tpm.support import NOW, REPORT_DATA, platform

from sealwright.appraisal.evidence import appraise_evidence
from sealwright.appraisal.nitro import NitroRules
from sealwright.appraisal.platform import Appraisal
from sealwright.appraisal.policy import KeyPolicy
from sealwright.appraisal.reference import ReferenceValues
from sealwright.appraisal.signed import REFERENCE_VALUES
from sealwright.appraisal.tpm import TpmRules
from sealwright.attester.tpm import Tpm, connect
from sealwright.crypto.canonical import parse_json
from sealwright.crypto.dsse import Envelope
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.errors import AppraisalError, SettingsError, VerificationError
from sealwright.image.predict.events import Prediction
from sealwright.image.predict.files import GuestFiles
from sealwright.image.predict.stub import Uki
from sealwright.image.predict.targets import TARGETS, Inputs, values
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import SwTpm

SIGNER = Ed25519PrivateKey.generate()
TARGET = TARGETS["tpm"]
CONFIG = enclave_config()
TPM = platform()


@cache
def signed(key: str = "owner", **changes: bytes) -> bytes:
    """Return the image, signed with one of our Secure Boot keys; `changes` by section, without the dot."""
    sections = {f".{name}": data for name, data in changes.items()}
    return uki(sections, certificates=certificate_table(*issuer(key)))


def predicted(raw: bytes, *, db: str = "owner") -> Prediction:
    state = secure(issuer(db)[0])
    (found,) = TARGET.predictions(Inputs(guest=GuestFiles(uki=Uki.parse(raw)), state=state))
    return found


def document(*, with_config: bool = True, **changes: Any) -> dict[str, Any]:
    """Return reference values of the right image, signed."""
    registers = values([predicted(signed())])
    if with_config:
        registers |= {name: [value] for name, value in TARGET.config(CONFIG.digest()).items()}
    fields = {
        "name": "guest",
        "version": 1,
        "created": rfc3339(NOW),
        "expires": rfc3339(NOW + timedelta(days=30)),
        "platform": TARGET.platform,
        "registers": {name: [value.hex() for value in some] for name, some in registers.items()},
        "config_register": TARGET.config_register,
    }
    raw = ReferenceValues.from_json(fields | changes, error=SettingsError).encode()
    found: dict[str, Any] = parse_json(Envelope.sign(REFERENCE_VALUES, raw, SIGNER).encode())
    return found


def policy(envelope: Mapping[str, Any], *, signer: Ed25519PrivateKey = SIGNER) -> KeyPolicy:
    """Return a policy that believes the signer of these reference values, and names no register by itself."""
    rules = {
        "tpm": "provider",
        "minimum_firmware": "00" * 8,
        "roots": [TPM.root_fingerprint.hex()],
        "unchecked": ["pcr0", "pcr2"],
        "reference": {
            "signers": {"keys": [b64url(signer.public_key().public_bytes_raw())]},
            "values": [dict(envelope)],
        },
    }
    return KeyPolicy.from_json(
        {
            "format": "sealwright-policy/v1",
            "version": 1,
            "profile": "demo",
            "require_hardware": False,
            "created": rfc3339(NOW),
            "expires": rfc3339(NOW + timedelta(hours=24)),
            "platforms": {"tpm": rules},
            "config": {"digests": [CONFIG.digest().hex()]},
        },
        error=SettingsError,
    )


def pcrs(found: Prediction, config_digest: bytes) -> dict[int, bytes]:
    """Return what a TPM holds after such a boot, and after the initrd measured the config."""
    registers = found.registers | TARGET.config(config_digest)
    return {int(name.removeprefix("pcr")): value for name, value in registers.items()}


def appraise(
    raw: bytes, *, db: str = "owner", config: bytes = CONFIG.digest(), rules: KeyPolicy | None = None
) -> Appraisal:
    envelope = TPM.envelope(REPORT_DATA, pcrs=pcrs(predicted(raw, db=db), config))
    return appraise_evidence(envelope, rules or policy(document()), expected_report_data=REPORT_DATA, at=NOW)


def test_a_guest_that_holds_what_was_predicted_is_admitted() -> None:
    found = appraise(signed())
    found.require()
    found.config.check(CONFIG.digest(), stage="config")
    assert found.vector["executables"] == 2


CHANGES = {
    "command line": ({"cmdline": CMDLINE + b"init=/bin/sh"}, ("pcr11", "pcr4", "pcr9")),
    "root hash": ({"cmdline": CMDLINE.replace(b"ab" * 32, b"ab" * 31 + b"ac")}, ("pcr11", "pcr4", "pcr9")),
    "initrd": ({"initrd": b"another initrd"}, ("pcr11", "pcr4", "pcr9")),
    "os-release": ({"osrel": b"ID=other\n"}, ("pcr11", "pcr4", "pcr9")),
}


def refusal(found: Appraisal) -> str:
    """Return the text of the one reason."""
    with pytest.raises(AppraisalError) as caught:
        found.require()
    (failure,) = caught.value.failures
    assert (failure.code, caught.value.stage) == ("measurement-not-allowed", "appraisal")
    return str(failure)


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_part_is_refused_by_the_names_of_its_registers(case: str) -> None:
    changes, registers = CHANGES[case]
    text = refusal(appraise(signed(**changes)))
    assert text.endswith(f"the closest differs in {', '.join(registers)}")


def test_another_secure_boot_key_is_refused_by_pcr7() -> None:
    """The same image, signed with another key that somebody enrolled."""
    assert refusal(appraise(signed("other"), db="other")).endswith("the closest differs in pcr7")


def test_another_config_is_refused_by_pcr8() -> None:
    assert refusal(appraise(signed(), config=b"\x07" * 32)).endswith("the closest differs in pcr8")


def test_a_config_that_the_values_do_not_name_is_refused_where_it_is_compared() -> None:
    found = appraise(signed(), config=b"\x07" * 32, rules=policy(document(with_config=False)))
    found.require()
    with pytest.raises(VerificationError) as caught:
        found.config.check(CONFIG.digest(), stage="config")
    assert (caught.value.code, caught.value.stage) == ("config-digest-mismatch", "config")


def test_values_by_another_signer_are_not_believed() -> None:
    rules = policy(document(), signer=Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError) as caught:
        appraise(signed(), rules=rules)
    assert (caught.value.code, caught.value.stage) == ("untrusted-signer", "reference-values")


def test_a_byte_of_signed_values_changed_is_refused() -> None:
    envelope = document()
    envelope["payload"] = envelope["payload"].replace("A", "B", 1)
    with pytest.raises(VerificationError) as caught:
        appraise(signed(), rules=policy(envelope))
    assert caught.value.code == "bad-signature"


def test_an_override_of_the_command_line_is_refused() -> None:
    held = pcrs(predicted(signed()), CONFIG.digest()) | {12: b"\x01" * 32}
    envelope = TPM.envelope(REPORT_DATA, pcrs=held)
    found = appraise_evidence(envelope, policy(document()), expected_report_data=REPORT_DATA, at=NOW)
    assert refusal(found).endswith("the closest differs in pcr12")


@contextlib.contextmanager
def software_tpm() -> Iterator[SwTpm]:
    if not SwTpm.installed():
        pytest.skip("swtpm is not installed: apt-get install swtpm swtpm-tools")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FakePlatformWarning)
        tpm = SwTpm()
    with tpm:
        yield tpm


@pytest.mark.slow
def test_a_real_tpm_that_is_extended_with_the_events_holds_the_registers() -> None:
    """About 3 s: a swtpm is made for it."""
    found = predicted(signed())
    with software_tpm() as swtpm, Tpm(connect(swtpm.address)) as tpm:
        for event in found.events:
            assert event.digest is not None
            tpm.pcr_extend(int(event.register.removeprefix("pcr")), {"sha256": event.digest})
        tpm.pcr_extend(8, {"sha256": CONFIG.digest()})
        wanted = pcrs(found, CONFIG.digest())
        assert tpm.pcr_read("sha256", wanted) == wanted


def test_values_of_enclaves_bind_no_config_of_instances() -> None:
    """PCR 16 of an enclave is locked, PCR 16 of a NitroTPM can be reset."""
    values_of = document(platform="nitro", config_register="pcr16", registers={"pcr0": ["00" * 48]})
    signers = {"keys": [b64url(SIGNER.public_key().public_bytes_raw())]}
    for kind, allowed in (("enclave", True), ("nitrotpm", False)):
        rule = NitroRules.model_validate(
            {"document": kind, "reference": {"signers": signers, "values": [values_of]}}
        )
        if allowed:
            assert rule.prepared("nitro", NOW).config_register == "pcr16"
            continue
        with pytest.raises(SettingsError) as caught:
            rule.prepared("nitro", NOW)
        assert caught.value.code == "config-register"


def test_values_of_a_providers_tpm_are_for_the_rules_of_that_alone() -> None:
    signers = {"keys": [b64url(SIGNER.public_key().public_bytes_raw())]}
    beside = {"tpm": "provider", "minimum_firmware": "00" * 8, "vendor_roots": True}
    rule = TpmRules.model_validate(
        beside | {"reference": {"signers": signers, "values": [document(platform="vtpm")]}}
    )
    assert rule.prepared("vtpm", NOW).config_register == "pcr8"
    with pytest.raises(SettingsError) as caught:
        rule.prepared("tpm", NOW)
    assert caught.value.code == "reference-values-platform"
