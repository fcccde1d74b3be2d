"""A software TPM as the machine's: persistent keys, the owner's authorisation, and `attest --local` up to `verify`."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.tpm.support import REPORT_DATA
from tests.tpm.test_tpm_swtpm import BY_NAME, enrol

from sealwright.attester.azure import AK_HANDLE, AzureAttester
from sealwright.attester.base import BindsConfig
from sealwright.attester.tpm import Tpm, TpmAttester, connect
from sealwright.attester.tpm.attester import AK_TEMPLATE, primary_ak
from sealwright.attester.tpm.commands import RH_ENDORSEMENT, LoadedKey
from sealwright.cli import main
from sealwright.crypto.encoding import b64url, rfc3339
from sealwright.endorsement.bag import Endorsements
from sealwright.endorsement.x509 import fingerprint
from sealwright.errors import UnavailableError, VerificationError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.evidence.tpm import TpmQuote
from sealwright.evidence.tpmkey import Scheme
from sealwright.evidence.tpmwire import ALG_RSA
from sealwright.protocol.tpm_ca import new_attestation_ca
from sealwright.testing.azure import AzureTestPlatform, AzureTestVtpm, b64url_integer
from sealwright.testing.software import FakePlatformWarning
from sealwright.testing.tpm import SwTpm
from sealwright.verify.azure import VerifiedAzure
from sealwright.verify.context import Context
from sealwright.verify.evidence import verify_evidence

AK_CERTIFICATE = 0x01C00002  # NV index of the RSA endorsement key's certificate: the owner may read it
AZURE_AK = replace(
    AK_TEMPLATE, type=ALG_RSA, scheme=Scheme(name="rsassa", hash="sha256"), curveID=0, keyBits=2048
)


def make_persistent(swtpm: SwTpm) -> LoadedKey:
    """Put an RSA attestation key where Azure has its own."""
    with Tpm(connect(swtpm.address)) as tpm:
        key = tpm.create_primary(RH_ENDORSEMENT, AZURE_AK)
        tpm.evict_control(key.handle, AK_HANDLE)
        tpm.flush(key.handle)
    return key


def test_a_persistent_key_quotes_and_stays(swtpm: SwTpm) -> None:
    made = make_persistent(swtpm)
    for _ in range(2):  # closing does not flush it
        with TpmAttester.open(swtpm.address, handle=AK_HANDLE) as attester:
            quote = TpmQuote.parse(attester.quote(REPORT_DATA).evidence)
            assert (attester.ak.handle, attester.ak.persistent) == (AK_HANDLE, True)
        assert quote.ak_public == made.public
        assert (quote.signature.scheme, len(quote.signature.values[0])) == (AZURE_AK.scheme, 256)


def test_a_handle_without_a_key_is_refused(swtpm: SwTpm) -> None:
    with pytest.raises(UnavailableError) as caught:
        TpmAttester.open(swtpm.address, handle=AK_HANDLE)
    assert caught.value.code == "tpm-refused"
    with TpmAttester.open(swtpm.address) as attester:  # and the TPM is free again
        assert not attester.ak.persistent


def test_an_index_is_read_by_its_owner_too(swtpm: SwTpm) -> None:
    with Tpm(connect(swtpm.address)) as tpm:
        found = tpm.nv_read(AK_CERTIFICATE, owner=True)
        assert found is not None
        assert found[:1] == b"\x30"
        assert tpm.nv_read(AK_CERTIFICATE) == found
        assert tpm.nv_read(0x01400001, owner=True) is None


class Guest:
    """An Azure guest whose vTPM is a software TPM; its paravisor and metadata service are made up."""

    def __init__(self, swtpm: SwTpm) -> None:
        (modulus,) = make_persistent(swtpm).public.unique
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FakePlatformWarning)
            self.machine = AzureTestPlatform(datetime.now(UTC))
        n = int.from_bytes(modulus, "big")
        self.machine.claims["keys"] = [self.machine.jwk(n=b64url_integer(n))]
        self.fake = AzureTestVtpm(self.machine)
        self.vtpm = TpmAttester.open(swtpm.address, handle=AK_HANDLE)

    def attester(self) -> AzureAttester:
        return AzureAttester(self.fake, self.vtpm, self.fake.http)

    def verify(self, envelope: EvidenceEnvelope) -> VerifiedAzure:
        found = verify_evidence(
            EvidenceEnvelope.parse(envelope.encode()),
            expected_report_data=REPORT_DATA,
            context=Context(at=datetime.now(UTC), roots=frozenset({self.machine.root_fingerprint})),
            collateral=Endorsements.detect([self.machine.hardware.crl]),
        )
        assert isinstance(found, VerifiedAzure)
        return found


def test_azures_evidence_with_a_real_tpms_quote(swtpm: SwTpm) -> None:
    guest = Guest(swtpm)
    with guest.vtpm:
        made = guest.attester()
        before = guest.verify(made.quote(REPORT_DATA))
        made.bind_config(bytes(range(32)))
        after = guest.verify(made.quote(REPORT_DATA))
    assert isinstance(made, BindsConfig)
    assert [name for name in after.registers if after.registers[name] != before.registers[name]] == ["pcr8"]


def test_another_key_than_the_paravisor_names(swtpm: SwTpm) -> None:
    guest = Guest(swtpm)
    guest.machine.claims["keys"] = [guest.machine.jwk()]
    with guest.vtpm, pytest.raises(VerificationError) as caught:
        guest.attester().quote(REPORT_DATA)
    assert (caught.value.code, caught.value.stage) == ("ak-mismatch", "collect")


# `sealwright attest --local`, then `sealwright verify` of the file that it wrote.


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def policy(path: Path, platforms: dict[str, Any]) -> Path:
    now = datetime.now(UTC)
    said = {
        "format": "sealwright-policy/v1",
        "version": 1,
        "profile": "demo",
        "require_hardware": False,
        "created": rfc3339(now - timedelta(hours=1)),
        "expires": rfc3339(now + timedelta(hours=1)),
        "platforms": platforms,
        "config": {"brokers": [b64url(bytes(32))], "log_keys": ["log.test/one+b0f29b1a+AQ" + "A" * 42]},
    }
    path.write_text(json.dumps(said))
    return path


def test_a_tpms_file_is_verified(swtpm: SwTpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)
    machine = enrol(swtpm, new_attestation_ca("Owner's CA", at=now), now, BY_NAME["H-3"])
    files, options = [], []
    for number, blob in enumerate(machine.endorsements):
        files.append(tmp_path / f"{number}.der")
        files[-1].write_bytes(blob)
        options += ["--endorsement", files[-1]]
    out, data = tmp_path / "evidence.json", REPORT_DATA.hex()
    collect = ["attest", "--local", "--platform", f"tpm:{swtpm.address}", "--report-data", data, "--out", out]
    code, said = run(capsys, *collect, *options)
    assert (code, said["platform"], said["verified"], said["endorsements"]) == (0, "tpm", False, 3)
    rules = {
        "tpm": "provider",
        "minimum_firmware": "2019000000000000",
        "unchecked": ["pcr0", "pcr2", "pcr4", "pcr7", "pcr9", "pcr11"],
        "roots": [fingerprint(machine.ca.root).hex()],
    }
    check = ["verify", out, "--policy", policy(tmp_path / "p.yaml", {"tpm": rules})]
    code, said = run(capsys, *check, "--report-data", data)
    assert (code, said["genuine"], said["allowed"], said["confidential"]) == (0, True, True, False)
    assert run(capsys, *check, "--report-data", "01" * 64)[1]["error"]["code"] == "report-data-mismatch"
    assert run(capsys, "verify", out, "--report-data", data)[1]["error"]["code"] == "unknown-root"
    # Without the certificate it is nobody's key; with it beside the file it is the same evidence again.
    assert run(capsys, *collect)[0] == 0
    assert run(capsys, *check, "--report-data", data)[1]["error"]["code"] == "ak-not-certified"
    beside = [part for file in files for part in ("--endorsements", file)]
    assert run(capsys, *check, "--report-data", data, *beside)[0] == 0


def test_a_primary_key_is_left_to_nobody(swtpm: SwTpm) -> None:
    """A transient key is flushed: a TPM has room for three."""
    for _ in range(5):
        with TpmAttester.open(swtpm.address) as attester:
            attester.quote(REPORT_DATA)
    with Tpm(connect(swtpm.address)) as tpm:
        assert not primary_ak(tpm).persistent
