"""The fetcher against a real server that has every bad day a vendor can have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from tests.collateral.support import (
    FakeTime,
    Vendor,
    intel,
    milan_chain,
    milan_crl,
    milan_vcek,
    ocsp_response,
    quick_world,
    rim,
    rim_json,
    running,
    thim_json,
)

from sealwright.collateral.client import Fetcher
from sealwright.collateral.need import Need
from sealwright.collateral.pace import Pacer
from sealwright.collateral.record import Piece
from sealwright.collateral.sources import Hosts
from sealwright.collateral.surroundings import Patience, Progress, World
from sealwright.errors import SettingsError, UnavailableError

QUICK = Patience(request_s=2.0, connect_s=2.0)
CRL = Need("amd-crl", "vcek:Milan")


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    one = Vendor(answer=lambda request, body: Response(status_code=500))
    with running(one):
        yield one


async def fetch(
    vendor: Vendor, need: Need = CRL, *, patience: Patience = QUICK, world: World | None = None
) -> Piece:
    async with Fetcher(vendor.hosts, patience=patience, world=world or quick_world()[0]) as fetcher:
        return await fetcher.fetch(need)


async def refusal(vendor: Vendor, need: Need = CRL, **more: object) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        await fetch(vendor, need, **more)  # type: ignore[arg-type]
    return caught.value


def serving(vendor: Vendor, *answers: Response | Callable[[], Response]) -> None:
    """Answer with each in turn, and with the last one from then on."""
    left = list(answers)

    def answer(request: Request, body: bytes) -> Response:
        one = left.pop(0) if len(left) > 1 else left[0]
        return one if isinstance(one, Response) else one()

    vendor.answer = answer


async def test_every_vendor(vendor: Vendor) -> None:
    given = intel("tdx")
    rim_need, rim_blob = rim()
    vcek, vcek_blob = milan_vcek()
    answers = {
        f"/vcek/v1/Milan/{vcek.parts[1]}": Response(vcek_blob),
        "/vcek/v1/Milan/cert_chain": Response(milan_chain()[1]),
        "/vcek/v1/Milan/crl": Response(milan_crl()[1]),
        "/metadata/THIM/amd/certification": Response(thim_json()),
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
        f"/v1/rim/{rim_need.key}": Response(rim_json(rim_need.key, rim_blob)),
    }
    vendor.answer = lambda request, body: answers[request.url.path]
    needs = [
        vcek,
        milan_chain()[0],
        CRL,
        Need("azure-thim", "this-vm"),
        Need("intel-tcb-info", f"tdx:{given.fmspc}"),
        Need("intel-qe-identity", "tdx"),
        Need("intel-pck-crl", "platform"),
        Need("intel-root-crl", "root"),
        rim_need,
    ]
    pieces = [await fetch(vendor, need) for need in needs]
    assert [piece.need for piece in pieces] == needs
    assert all(headers["user-agent"].startswith("sealwright/") for headers in vendor.headers)
    assert vendor.headers[3]["metadata"] == "true"


async def test_ocsp_is_a_post(vendor: Vendor) -> None:
    vendor.answer = lambda request, body: Response(ocsp_response())
    error = await refusal(vendor, Need("nvidia-ocsp", f"{'0' * 96}:{'0' * 96}:1"))
    assert error.code == "collateral-bad-answer"  # about another certificate
    assert vendor.headers[0]["content-type"] == "application/ocsp-request"
    assert vendor.bodies[0].startswith(b"0")


@pytest.mark.parametrize("status", [404, 410])
async def test_what_a_vendor_does_not_have_is_not_asked_for_again(vendor: Vendor, status: int) -> None:
    serving(vendor, Response(status_code=status))
    assert (await refusal(vendor)).code == "collateral-not-found"
    assert len(vendor.asked) == 1


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 403, 407, 418])
async def test_other_statuses_are_refusals(vendor: Vendor, status: int) -> None:
    serving(vendor, Response(status_code=status))
    assert (await refusal(vendor)).code == "collateral-refused"
    assert len(vendor.asked) == 1


async def test_a_bad_minute_is_waited_out(vendor: Vendor) -> None:
    world, slept = quick_world()
    serving(vendor, Response(status_code=503), Response(status_code=500), Response(milan_crl()[1]))
    assert (await fetch(vendor, world=world)).blobs == (milan_crl()[1],)
    assert len(vendor.asked) == 3
    assert slept == sorted(slept), "it waits longer each time"


async def test_a_bad_hour_is_not(vendor: Vendor) -> None:
    serving(vendor, Response(status_code=502))
    error = await refusal(vendor)
    assert error.code == "collateral-unreachable"
    assert "HTTPS_PROXY" in str(error)
    assert len(vendor.asked) == QUICK.attempts


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_heeded(vendor: Vendor, form: str) -> None:
    world, slept = quick_world()
    when = {"seconds": "77", "date": "Fri, 20 Jun 2025 00:01:17 GMT"}[form]
    serving(vendor, Response(status_code=429, headers={"retry-after": when}), Response(milan_crl()[1]))
    await fetch(vendor, world=world)
    assert max(slept) == 77


@pytest.mark.parametrize("value", ["-5", "soon", "1e3", "999999999999", "\u00b2"])
async def test_nonsense_in_retry_after_is_passed_over(vendor: Vendor, value: str) -> None:
    world, slept = quick_world()
    limited = Response(status_code=429)
    limited.raw_headers.append((b"retry-after", value.encode("latin-1", "replace")))
    serving(vendor, limited, Response(milan_crl()[1]))
    await fetch(vendor, world=world)
    assert max(slept) < 10


async def test_who_asks_for_too_much_patience_is_left(vendor: Vendor) -> None:
    serving(vendor, Response(status_code=429, headers={"retry-after": "4000"}))
    error = await refusal(vendor)
    assert error.code == "collateral-rate-limited"
    assert "4000 s" in str(error)
    assert len(vendor.asked) == 1


async def test_a_hang_ends(vendor: Vendor) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"\x30"
        await asyncio.sleep(5)

    serving(vendor, lambda: StreamingResponse(never()))
    error = await refusal(vendor, patience=Patience(request_s=0.2, connect_s=1.0, attempts=2))
    assert error.code == "collateral-unreachable"
    assert len(vendor.asked) == 2


async def test_a_compressed_body_is_not_unpacked(vendor: Vendor) -> None:
    serving(vendor, Response(bytes(10), headers={"content-encoding": "gzip"}))
    assert (await refusal(vendor)).code == "collateral-bad-answer"
    assert vendor.headers[0]["accept-encoding"] == "identity"


async def test_wrong_content_is_said_to_be_so(vendor: Vendor) -> None:
    serving(vendor, Response(b"<html>please log in</html>"))
    error = await refusal(vendor)
    assert error.code == "collateral-bad-answer"
    assert "proxy" in str(error)


async def test_redirects_stay_with_their_origin(vendor: Vendor) -> None:
    serving(vendor, RedirectResponse("/mirror/crl", 302), Response(milan_crl()[1]))
    await fetch(vendor)
    assert vendor.asked[1] == "/mirror/crl"
    for target in (
        "https://kds.example/",
        "http://127.0.0.1:99999/",
        "http://[x/",
        vendor.url.replace("http://", "http://kds@x:"),
        "http://127.0.0.1:1/",
        "//kds.example/",
        "",
        vendor.url.replace("http:", "https:"),
    ):
        serving(vendor, Response(status_code=302, headers={"location": target}))
        assert (await refusal(vendor)).code == "collateral-refused", target
    serving(vendor, RedirectResponse("/again", 307))
    assert (await refusal(vendor)).code == "collateral-refused"


def _half_server(send: bytes) -> tuple[str, Callable[[], None]]:
    """Listen, send these bytes to whoever connects, and hang up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(65536)
                with contextlib.suppress(OSError):
                    peer.sendall(send)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", listener.close


@pytest.mark.parametrize(
    "send",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 866\r\n\r\n0\x82",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=["hangs up", "not HTTP", "truncated body", "endless header"],
)
async def test_broken_connections(send: bytes) -> None:
    url, close = _half_server(send)
    with pytest.raises(UnavailableError) as caught:
        async with Fetcher(Hosts(amd_kds=url), patience=QUICK, world=quick_world()[0]) as fetcher:
            await fetcher.fetch(CRL)
    close()
    assert caught.value.code == "collateral-unreachable"


async def test_a_huge_body_is_not_read_to_its_end() -> None:
    body = bytes(64 * 1024 * 1024)
    url, close = _half_server(b"HTTP/1.1 200 OK\r\n\r\n" + body)
    with pytest.raises(UnavailableError) as caught:
        async with Fetcher(Hosts(amd_kds=url), patience=QUICK, world=quick_world()[0]) as fetcher:
            await fetcher.fetch(CRL)
    close()
    assert caught.value.code == "collateral-bad-answer"
    assert "more than" in str(caught.value)


async def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with Fetcher(Hosts(amd_kds=f"http://127.0.0.1:{port}"), world=quick_world()[0]) as fetcher:
        with pytest.raises(UnavailableError) as caught:
            await fetcher.fetch(CRL)
    assert caught.value.code == "collateral-unreachable"


def _tls(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for localhost; return it as a CA file, and a server's context."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    pem = folder / "ca.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, private)
    return pem, context


async def test_tls_is_verified_against_the_ca_file_or_the_systems(tmp_path: Path) -> None:
    pem, context = _tls(tmp_path)
    body = milan_crl()[1]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    hosts = Hosts(amd_kds=f"https://localhost:{server.sockets[0].getsockname()[1]}")
    one = Patience(attempts=1)
    async with Fetcher(hosts, ca_file=pem, patience=one) as fetcher:
        assert (await fetcher.fetch(CRL)).blobs == (body,)
    async with Fetcher(hosts, patience=one) as fetcher:
        with pytest.raises(UnavailableError) as caught:
            await fetcher.fetch(CRL)
    assert caught.value.code == "collateral-unreachable"
    by_address = Hosts(amd_kds=hosts.amd_kds.replace("localhost", "127.0.0.1"))
    async with Fetcher(by_address, ca_file=pem, patience=one) as fetcher:
        with pytest.raises(UnavailableError):
            await fetcher.fetch(CRL)  # a certificate of another name
    server.close()
    with pytest.raises(SettingsError) as bad:
        Fetcher(hosts, ca_file=tmp_path / "key.pem")
    assert bad.value.code == "malformed-collateral-settings"


async def test_a_proxy_is_used_but_not_for_the_machines_own_metadata(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    vendor.answer = lambda request, body: Response(
        milan_crl()[1] if "crl" in request.url.path else thim_json()
    )
    nowhere = Hosts(amd_kds="http://127.0.0.1:1", azure_imds=vendor.url)
    async with Fetcher(nowhere, proxy=vendor.url, patience=QUICK, world=quick_world()[0]) as fetcher:
        await fetcher.fetch(CRL)
        assert vendor.headers[0]["host"] == "127.0.0.1:1"
        await fetcher.fetch(Need("azure-thim", "this-vm"))
    assert vendor.headers[1]["host"] in vendor.url


async def test_progress_is_told() -> None:
    told: list[Progress] = []
    answers = iter([httpx2.Response(503), httpx2.Response(200, content=milan_crl()[1])])
    async with Fetcher(
        transport=httpx2.MockTransport(lambda request: next(answers)),
        world=quick_world()[0],
        progress=told.append,
    ) as fetcher:
        await fetcher.fetch(CRL)
    assert [event.event for event in told] == ["asking", "retrying", "asking", "got"]
    assert "kdsintf.amd.com answered 503" in told[1].text


async def test_requests_of_one_lane_are_spaced_in_the_order_they_came() -> None:
    time = FakeTime()
    pacer = Pacer(time.clock, time.sleep, {"slow": 10.0})
    starts: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await pacer.turn("slow", longest_s=1000)
        starts.append((number, time.seconds))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(one, number)
        await time.run(lambda: len(starts) == 3)
        assert pacer.expected_s("slow") > 10
        pacer.hold("slow", 300)
        await time.run(lambda: len(starts) == 5)
    assert [number for number, _ in starts] == list(range(5))
    assert [at for _, at in starts] == [0, 10, 20, 320, 330]


async def test_a_queue_that_is_too_long_is_not_joined() -> None:
    time = FakeTime()
    pacer = Pacer(time.clock, time.sleep, {"slow": 10.0})
    await pacer.turn("slow", longest_s=5)
    with pytest.raises(UnavailableError) as caught:
        await pacer.turn("slow", longest_s=5)
    assert caught.value.code == "collateral-rate-limited"
    await pacer.turn("other", longest_s=0)
