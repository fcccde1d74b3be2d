"""Vendors that answer as the real ones do, on this machine, with their real bytes; and time that tests move."""

from __future__ import annotations

import base64
import heapq
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.vector_files import vector

from sealwright.collateral.need import Need
from sealwright.collateral.sources import Hosts
from sealwright.collateral.surroundings import World
from sealwright.endorsement.x509 import load_certificate, pem_blocks


def milan_vcek() -> tuple[Need, bytes]:
    """Return a real VCEK, and its name."""
    blob = vector("sev-snp/trustee/test-vcek.der")
    return vcek_need(blob, "Milan"), blob


def vcek_need(blob: bytes, product: str, *, levels: int = 4) -> Need:
    """Return the name of a VCEK, read from it with code of the tests' own."""
    prefix = "1.3.6.1.4.1.3704.1"
    values = {
        extension.oid.dotted_string: extension.value.value  # type: ignore[attr-defined]
        for extension in load_certificate(blob, serial_zero=True).extensions
    }
    spl = [values[f"{prefix}.3.{number}"] for number in (1, 2, 3, 8, 9)[:levels]]
    numbers = [str(int.from_bytes(one[2:], "big")) for one in spl]
    return Need("amd-vcek", ":".join([product, values[f"{prefix}.4"].hex(), *numbers]))


def milan_chain() -> tuple[Need, bytes]:
    """Return AMD's chain of Milan."""
    return Need("amd-chain", "vcek:Milan"), vector("sev-snp/virtee-sev/cert_chain_milan")


def milan_crl() -> tuple[Need, bytes]:
    """Return AMD's CRL of Milan: 2025-05-06 to 2026-05-12."""
    found = pem_blocks(vector("sev-snp/openpcc/sev_certificates.txt"))
    crls = [der for label, der in found if label == "X509 CRL"]
    return Need("amd-crl", "vcek:Milan"), crls[1]


def thim_json() -> bytes:
    """Return what Azure's metadata service answers."""
    return vector("sev-snp/ms-sidecar/uvm_host_amd_certificate.json")


@dataclass(frozen=True)
class Intel:
    """Collateral of one quote, as the service sends it."""

    fmspc: str
    tcb_info: bytes
    tcb_info_chain: str  # URL-encoded
    identity: bytes
    identity_chain: str
    pck_crl: bytes
    pck_crl_chain: str
    root_crl: bytes


def intel(tee: str) -> Intel:
    """Return real collateral, issued 2025-06-19, until 2025-07-19 (root CRL: 2026-04-03)."""
    said = json.loads(vector(f"{tee}/dcap-qvl/{tee}_quote_collateral.json"))
    document = '{{"{}":{},"signature":"{}"}}'.format
    return Intel(
        fmspc=json.loads(said["tcb_info"])["fmspc"].lower(),
        tcb_info=document("tcbInfo", said["tcb_info"], said["tcb_info_signature"]).encode(),
        tcb_info_chain=quote(said["tcb_info_issuer_chain"]),
        identity=document("enclaveIdentity", said["qe_identity"], said["qe_identity_signature"]).encode(),
        identity_chain=quote(said["qe_identity_issuer_chain"]),
        pck_crl=bytes.fromhex(said["pck_crl"]),
        pck_crl_chain=quote(said["pck_crl_issuer_chain"]),
        root_crl=bytes.fromhex(said["root_ca_crl"]),
    )


def rim() -> tuple[Need, bytes]:
    """Return a driver's RIM."""
    name = "NV_GPU_DRIVER_GH100_550.90.07"
    return Need("nvidia-rim", name), vector(f"nvidia/go-nvattest/testdata__rim__{name}.xml")


def rim_json(name: str, blob: bytes) -> bytes:
    """Return the RIM service's answer."""
    return json.dumps({"id": name, "rim": base64.b64encode(blob).decode(), "rim_format": "TCG"}).encode()


def ocsp_response() -> bytes:
    """Return a real OCSP response about an intermediate: 2025-08-21, for a day."""
    name = "testdata__ocsp__test_gpu_certificate_l3_base64encoded_ocsp_response.dat"
    return base64.b64decode(vector(f"nvidia/go-nvattest/{name}"))


@dataclass
class Vendor:
    """A server whose answers a test sets, and which remembers what it was asked."""

    answer: Callable[[Request, bytes], Response]
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def counted(self) -> Counter[str]:
        """How often each path was asked."""
        return Counter(self.asked)

    @property
    def hosts(self) -> Hosts:
        """Every vendor is this one."""
        names = set(Hosts.model_fields) - {"service", "intel_pccs"}
        return Hosts(**dict.fromkeys(names, self.url))


@contextmanager
def running(vendor: Vendor | Starlette) -> Iterator[str]:
    """Run a server in a thread until the block ends; return its URL."""
    app = vendor if isinstance(vendor, Starlette) else _app(vendor)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    if isinstance(vendor, Vendor):
        vendor.url = url
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join()


def _app(vendor: Vendor) -> Starlette:
    async def any_path(request: Request) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        vendor.asked.append(request.url.path + query)
        vendor.bodies.append(await request.body())
        vendor.headers.append(dict(request.headers))
        return vendor.answer(request, vendor.bodies[-1])

    return Starlette(routes=[Route("/{path:path}", any_path, methods=["GET", "POST"])])


class FakeTime:
    """A clock that goes on only when a test says so, from the time the vectors are meant for."""

    def __init__(self, start: datetime = datetime(2025, 6, 20, tzinfo=UTC)) -> None:
        self.start, self.seconds = start, 0.0
        self._sleepers: list[tuple[float, int, anyio.Event]] = []
        self._count = 0

    def clock(self) -> float:
        """Return monotonic seconds."""
        return self.seconds

    def now(self) -> datetime:
        """Return the time."""
        return self.start + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        """Sleep until a test has moved the clock so far."""
        event = anyio.Event()
        self._count += 1
        heapq.heappush(self._sleepers, (self.seconds + seconds, self._count, event))
        await event.wait()

    async def run(self, done: Callable[[], bool], *, longest_s: float = 100_000) -> None:
        """Move the clock from one sleeper to the next until `done`."""
        while not done():
            for _ in range(50):
                await anyio.sleep(0)
            await anyio.sleep(0.002)
            if done():
                return
            if self._sleepers:
                at, _, event = heapq.heappop(self._sleepers)
                assert at <= longest_s, "it takes too long"
                self.seconds = max(self.seconds, at)
                event.set()

    def world(self) -> World:
        """Return it as fetchers and services take it."""
        return World(clock=self.clock, sleep=self.sleep, now=self.now, random=lambda: 0.5)


def quick_world(now: datetime = datetime(2025, 6, 20, tzinfo=UTC)) -> tuple[World, list[float]]:
    """Return a world where sleeping takes no time, and what was slept."""
    slept: list[float] = []
    clock = [0.0]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds
        await anyio.sleep(0)

    return World(clock=lambda: clock[0], sleep=sleep, now=lambda: now, random=lambda: 1.0), slept
