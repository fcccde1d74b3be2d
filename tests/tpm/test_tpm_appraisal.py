"""What a policy says of a genuine TPM quote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from tests.tpm.support import REPORT_DATA, platform, verify

from sealwright.appraisal.boot import PCRS
from sealwright.appraisal.tpm import TpmRules
from sealwright.verify.tpm import VerifiedTpm

ZERO = "00" * 32
FAKE = platform()
RIGHT = {
    "tpm": "provider",
    "minimum_firmware": "2019000000000000",
    "registers": {name: [ZERO] for name in PCRS},
    "roots": [FAKE.root_fingerprint.hex()],
}


def rules(**changes: Any) -> TpmRules:
    return TpmRules.model_validate(RIGHT | changes)


def verified(pcrs: dict[int, bytes] | None = None, **changes: Any) -> VerifiedTpm:
    return verify(FAKE, FAKE.quote(REPORT_DATA, pcrs=pcrs, **changes))


def refusals(rule: TpmRules, found: VerifiedTpm) -> list[str]:
    return [failure.code for failure in (*rule.refusals(found), *rule.shared_refusals(found))]


def test_what_the_policy_names_is_admitted() -> None:
    assert refusals(rules(), verified()) == []


def test_a_policy_that_says_nothing_admits_nothing() -> None:
    bare = TpmRules.model_validate({"minimum_firmware": "00" * 8, "vendor_roots": True})
    assert refusals(bare, verified()) == [
        "tpm-not-allowed",
        *["register-not-listed"] * len(PCRS),
        "root-not-allowed",
    ]


def test_firmware() -> None:
    with pytest.raises(ValidationError):
        TpmRules.model_validate({name: value for name, value in RIGHT.items() if name != "minimum_firmware"})
    for wrong in ("", "00", "00" * 9, 0):
        with pytest.raises(ValidationError):
            rules(minimum_firmware=wrong)
    assert refusals(rules(minimum_firmware="2019102300163636"), verified()) == []
    assert refusals(rules(minimum_firmware="2019102300163637"), verified()) == ["tpm-firmware-too-old"]
    assert refusals(rules(minimum_firmware="00" * 8), verified(firmwareVersion=0)) == []


def test_registers_that_have_to_be_unextended() -> None:
    extended = verified({12: b"\x01" * 32, 13: b"\x01" * 32})
    assert refusals(rules(), extended) == ["pcr-extended", "pcr-extended"]
    listed = RIGHT["registers"] | {"pcr12": ["01" * 32]}  # type: ignore[operator]
    assert refusals(rules(registers=listed), extended) == ["pcr-extended"]
    assert refusals(rules(unchecked=["pcr12", "pcr13"]), extended) == []
    # Listed, and then with another value than it has.
    assert refusals(rules(registers=listed), verified({12: b"\x02" * 32})) == ["measurement-not-allowed"]


def test_registers_that_are_not_quoted() -> None:
    quote = FAKE.quote(REPORT_DATA, bank="sha256")
    only = {number: quote.pcrs["sha256"][number] for number in range(12)}
    assert FAKE.public.scheme is not None
    import hashlib

    from sealwright.evidence.tpmwire import PcrSelection

    attest = replace(
        quote.attest,
        pcrSelect=(PcrSelection(bank="sha256", pcrs=tuple(range(12))),),
        pcrDigest=hashlib.sha256(b"".join(only.values())).digest(),
    )
    found = verify(FAKE, FAKE.signed(attest, {"sha256": only}, FAKE.public.scheme))
    assert refusals(rules(), found) == ["register-missing", "register-missing"]
    eight = RIGHT["registers"] | {"pcr14": [ZERO]}  # type: ignore[operator]
    assert refusals(rules(registers=eight), found) == ["register-missing"] * 3


def test_a_changed_register() -> None:
    assert refusals(rules(), verified({4: b"\x04" * 32})) == ["measurement-not-allowed"]
    assert refusals(rules(), verified({5: b"\x05" * 32})) == []  # the policy does not name it


def test_banks() -> None:
    assert refusals(rules(banks=["sha256", "sha384"]), verified()) == ["pcr-bank-missing"]
    with pytest.raises(ValidationError):
        rules(banks=[])
    old = verified(bank="sha1")
    assert refusals(rules(), old)[0] == "pcr-bank-missing"
    assert "sha1" in refusals(rules(), old)  # the condition, which the policy does not admit


def test_conditions_are_refused_unless_admitted() -> None:
    unsafe = verified(safe=False)
    assert refusals(rules(), unsafe) == ["clock-not-safe"]
    assert refusals(rules(admit=["clock-not-safe"]), unsafe) == []


@pytest.mark.parametrize("name", ["pcr24", "pcr01", "PCR1", "mrtd", "pcr1\n"])
def test_unchecked_names_registers(name: str) -> None:
    with pytest.raises(ValidationError):
        rules(unchecked=[name])


def test_whose_ca_counts_is_said() -> None:
    """Google's certifies the vTPM of everybody who rents a VM there."""
    base = {name: value for name, value in RIGHT.items() if name != "roots"}
    with pytest.raises(ValidationError, match="vendor_roots"):
        TpmRules.model_validate(base)
    mine = verified()
    theirs = replace(mine, vendor_root=True, root=b"g" * 32)  # as if it were Google's
    for said, refused in (
        ({"roots": RIGHT["roots"]}, [theirs]),
        ({"vendor_roots": True}, [mine]),
        ({"vendor_roots": True, "roots": RIGHT["roots"]}, []),
    ):
        rule = TpmRules.model_validate(base | said)
        for found in (mine, theirs):
            assert refusals(rule, found) == ["root-not-allowed"] * (found in refused)
