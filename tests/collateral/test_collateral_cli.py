"""`sealwright collateral`, from the network into a cache, a pack, and a site without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import Response
from tests.collateral.support import Vendor, intel, milan_chain, milan_crl, running
from tests.vector_files import vector

from sealwright.cli import _commands, main
from sealwright.collateral.cache import Cache
from sealwright.collateral.need import Need
from sealwright.collateral.pack import Pack
from sealwright.collateral.record import Piece
from sealwright.collateral.sources import piece_of
from sealwright.endorsement.bag import Endorsements

Run = Callable[..., tuple[int, dict[str, object], str]]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _commands.Entry("collateral", "app", "Fetch, keep and carry what vendors publish.")
    monkeypatch.setitem(_commands.COMMANDS, "collateral", entry)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def command(*args: str, cache: str = "online") -> tuple[int, dict[str, object], str]:
        named = [] if "--help" in args else ["--cache", str(tmp_path / cache)]
        code = main(["collateral", *args, *named, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return command


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[Vendor]:
    chain, crl = milan_chain()[1], milan_crl()[1]
    given = intel("tdx")
    answers = {
        "/vcek/v1/Milan/cert_chain": Response(chain),
        "/vcek/v1/Milan/crl": Response(crl),
        "/tdx/certification/v4/tcb": Response(
            given.tcb_info, headers={"TCB-Info-Issuer-Chain": given.tcb_info_chain}
        ),
        "/tdx/certification/v4/qe/identity": Response(
            given.identity, headers={"SGX-Enclave-Identity-Issuer-Chain": given.identity_chain}
        ),
        "/sgx/certification/v4/pckcrl": Response(
            given.pck_crl, headers={"SGX-PCK-CRL-Issuer-Chain": given.pck_crl_chain}
        ),
        "/IntelSGXRootCA.der": Response(given.root_crl),
    }
    one = Vendor(answer=lambda request, body: answers.get(request.url.path, Response(status_code=404)))
    with running(one) as url:
        names = ("amd_kds", "intel_pcs", "intel_certificates")
        (tmp_path / "hosts.yaml").write_text("".join(f"{name}: {url}\n" for name in names))
        yield one


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[str, str]:
    return "--hosts", str(tmp_path / "hosts.yaml")


def states(result: dict[str, object]) -> list[tuple[str, str]]:
    return [(entry["kind"], entry["state"]) for entry in result["entries"]]  # type: ignore[attr-defined]


def test_from_the_network_into_a_site_without_one(
    run: Run, vendor: Vendor, hosts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quote = tmp_path / "quote.bin"
    quote.write_bytes(vector("tdx/dcap-qvl/tdx_quote"))
    code, result, err = run("fetch", str(quote), *hosts, "--out", str(tmp_path / "files"))
    assert code == 0
    kinds = ["intel-pck-crl", "intel-qe-identity", "intel-root-crl", "intel-tcb-info"]
    assert states(result) == [(kind, "stale") for kind in kinds], "real bytes, issued in 2025"
    assert "asking" in err
    files = [(tmp_path / "files" / name).read_bytes() for name in result["files"]]  # type: ignore[attr-defined]
    found = Endorsements.detect(files)
    assert (len(found.intel_json), len(found.crls)) == (2, 2)

    asked = len(vendor.asked)
    assert run("fetch", "--need", "amd-chain/vcek:Milan", *hosts)[0] == 0
    assert run("fetch", "--need", "amd-chain/vcek:Milan", *hosts)[0] == 0
    assert len(vendor.asked) == asked + 1, "the second time the cache answers"

    assert main(["owner-key", "new", str(tmp_path / "key.pem"), "--json"]) == 0
    public = json.loads(capsys.readouterr().out)["public_key"]
    pack = tmp_path / "site.pack"
    code, result, err = run("pack", str(pack), "--key", str(tmp_path / "key.pem"))
    assert (code, states(result), result["signed"]) == (0, [("amd-chain", "fresh")], True)
    assert err.count("left out") == 4
    code, result, _ = run("pack", str(pack), "--stale", "--key", str(tmp_path / "key.pem"))
    assert (code, len(states(result))) == (0, 5)

    code, result, _ = run("import", str(pack), "--signer", public, "--check", cache="island")
    assert (code, result["signature_checked"], len(states(result))) == (0, True, 5)
    assert not (tmp_path / "island").exists()
    code, result, _ = run("import", str(pack), "--signer", public, cache="island")
    assert [entry["imported"] for entry in result["entries"]] == [True] * 5  # type: ignore[attr-defined]
    assert states(run("list", cache="island")[1])[0] == ("amd-chain", "fresh")
    code, result, _ = run("fetch", "--offline", "--need", "amd-chain/vcek:Milan", cache="island")
    assert (code, states(result)) == (0, [("amd-chain", "fresh")])
    code, result, _ = run("fetch", "--offline", str(quote), cache="island")
    assert (code, result["error"]["code"]) == (12, "collateral-stale")  # type: ignore[index]
    code, result, _ = run("fetch", "--offline", "--need", "amd-crl/vcek:Milan", cache="island")
    assert (code, result["error"]["code"]) == (12, "collateral-missing")  # type: ignore[index]


def test_a_pack_of_a_stranger(run: Run, tmp_path: Path) -> None:
    need, blob = milan_chain()
    piece = Piece(need=need, blobs=(blob,), fetched=datetime(2025, 6, 20, tzinfo=UTC))
    pack = tmp_path / "p"
    pack.write_bytes(Pack.of([piece], created=piece.fetched).encode())
    code, result, _ = run("import", str(pack), "--signer", "A" * 43)
    assert (code, result["error"]["code"]) == (10, "pack-unsigned")  # type: ignore[index]
    assert run("import", str(pack))[0] == 2, "to do without a signature has to be said"
    assert run("import", str(pack), "--unsigned", "--signer", "A" * 43)[0] == 2
    assert run("import", str(pack), "--unsigned")[0] == 0
    pack.write_bytes(pack.read_bytes()[:-1])
    code, result, _ = run("import", str(pack), "--unsigned")
    assert (code, result["error"]["code"]) == (65, "malformed-pack")  # type: ignore[index]


def test_platforms_by_name(run: Run, vendor: Vendor, hosts: tuple[str, str]) -> None:
    assert run("fetch", "--platform", "snp", "--product", "Milan", *hosts)[0] == 0
    assert vendor.counted == {"/vcek/v1/Milan/cert_chain": 1, "/vcek/v1/Milan/crl": 1}
    fmspc = intel("tdx").fmspc
    assert run("fetch", "--platform", "tdx", "--fmspc", fmspc.upper(), "--ca", "platform", *hosts)[0] == 0
    chip = ("--chip-id", "ab" * 64, "--tcb", "3.0.8.115")
    code, result, err = run("fetch", "--platform", "snp", "--product", "Milan", *chip, *hosts)
    assert (code, result["error"]["code"]) == (69, "collateral-not-found")  # type: ignore[index]
    assert "failed    amd-vcek" in err
    assert f"/vcek/v1/Milan/{'ab' * 64}?blSPL=3&teeSPL=0&snpSPL=8&ucodeSPL=115" in vendor.asked


def test_usage(run: Run, hosts: tuple[str, str], tmp_path: Path) -> None:
    for args in (
        (),
        ("--platform", "vax"),
        ("--platform", "snp"),
        ("--platform", "snp", "--product", "Milan", "--chip-id", "ab" * 64),
        ("--platform", "snp", "--product", "Milan", "--chip-id", "ab" * 64, "--tcb", "1.2"),
        ("--platform", "tdx"),
        ("--platform", "google-tdx"),
        ("--force", "--offline", "--need", "google-root/1"),
        (str(tmp_path / "none"),),
    ):
        assert run("fetch", *args)[0] == 2, args
    code, result, _ = run("fetch", "--need", "amd-magic/x")
    assert (code, result["error"]["code"]) == (65, "unknown-collateral")  # type: ignore[index]
    (tmp_path / "x").write_bytes(b"x")
    code, result, _ = run("fetch", str(tmp_path / "x"))
    assert (code, result["error"]["code"]) == (65, "unknown-evidence")  # type: ignore[index]
    (tmp_path / "hosts.yaml").write_text("amd_kds: http://kds.example\n")
    code, result, _ = run("fetch", "--need", "google-root/1", *hosts)
    assert (code, result["error"]["code"]) == (65, "malformed-document")  # type: ignore[index]
    code, result, _ = run("pack", str(tmp_path / "p"))
    assert (code, result["error"]["code"]) == (12, "collateral-missing")  # type: ignore[index]
    code, result, _ = run("pack", str(tmp_path / "p"), "--need", "google-root/1")
    assert (code, result["error"]["code"]) == (12, "collateral-missing")  # type: ignore[index]


def test_refresh(run: Run, vendor: Vendor, hosts: tuple[str, str], tmp_path: Path) -> None:
    assert run("refresh", *hosts)[1] == {"entries": []}
    assert run("fetch", "--platform", "snp", "--product", "Milan", *hosts)[0] == 0
    before = len(vendor.asked)
    assert [kind for kind, _ in states(run("refresh", *hosts)[1])] == ["amd-crl"], "it ended in 2026"
    assert len(vendor.asked) == before + 1
    assert len(states(run("refresh", "--all", *hosts)[1])) == 2
    assert Cache(tmp_path / "online").get(milan_crl()[0]) is not None


def test_for_people(
    vendor: Vendor, hosts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(tmp_path / "c")]
    assert main(["collateral", "list", *cache]) == 0
    assert capsys.readouterr().out == "the cache is empty\n"
    assert main(["collateral", "fetch", "--need", "amd-chain/vcek:Milan", *hosts, *cache]) == 0
    assert main(["collateral", "list", *cache]) == 0
    out, _ = capsys.readouterr()
    assert out == "fresh  for good                   amd-chain vcek:Milan\n" * 2
    assert main(["collateral", "pack", str(tmp_path / "p"), *cache]) == 0
    assert "NOT signed" in capsys.readouterr().out


def test_an_imported_pack_from_the_future_keeps_nothing_newer_out(run: Run, tmp_path: Path) -> None:
    forged = x509.CertificateRevocationListBuilder(
        issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ARK-Milan")]),
        last_update=datetime(2098, 1, 1, tzinfo=UTC),
        next_update=datetime(2099, 1, 1, tzinfo=UTC),
    ).sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    need = Need("amd-crl", "vcek:Milan")
    there = datetime(2098, 6, 1, tzinfo=UTC)
    piece = piece_of(need, [forged.public_bytes(Encoding.DER)], fetched=there)
    file = tmp_path / "future.pack"
    file.write_bytes(Pack.of([piece], created=there).encode())
    assert run("import", str(file), "--unsigned")[0] == 0
    cache = Cache(tmp_path / "online")
    now = datetime.now(UTC).replace(microsecond=0)
    assert cache.put(piece_of(need, [milan_crl()[1]], fetched=now))
