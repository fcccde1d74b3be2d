"""Metrics: what Prometheus' own parser reads, bounded and without secrets."""

from __future__ import annotations

import socket

import httpx2
import pytest
from tests.broker.support import Enclave, Kbs, World

from sealwright.broker import serve
from sealwright.broker.metrics import MAX_SERIES, Counter, Histogram, Metrics, word
from sealwright.broker.service import Running

parser = pytest.importorskip("prometheus_client.parser")


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def decisions(text: str, **labels: str) -> float:
    want = tuple(sorted(labels.items()))
    return samples(text).get(("sealwright_broker_decisions_total", want), 0.0)


async def test_a_release_and_a_refusal_are_counted(
    world: World, running: Running, kbs: Kbs, enclave: Enclave, dek: bytes
) -> None:
    got = await kbs.leased(enclave)
    assert await kbs.released(enclave, got) == dek
    other = enclave.with_config(engine={"name": "llama.cpp", "context_tokens": 512, "slots": 1, "threads": 1})
    nonce = await kbs.auth()
    refused = await kbs.http.post(
        "/kbs/v0/attest", json=enclave.attest_body(nonce, evidence=other.evidence(kbs.nonce))
    )
    text = running.metrics.text()
    assert decisions(text, action="release", verdict="grant", stage="none", code="none") == 1
    assert decisions(text, action="lease", verdict="grant", stage="none", code="none") == 1
    code = refused.json()["code"]
    assert [value for (name, labels), value in samples(text).items()
            if name == "sealwright_broker_decisions_total" and ("code", code) in labels and ("verdict", "refuse") in labels] == [1.0]  # fmt: skip
    found = samples(text)
    assert found["sealwright_broker_leases", ()] == 1
    assert found["sealwright_broker_keys_active", ()] == 1
    assert found["sealwright_broker_up", ()] == 1
    assert found["sealwright_broker_log_entries", ()] == running.core.state.ledger.size
    assert found["sealwright_broker_clock_seconds", ()] == world.clock.now.timestamp()
    assert found["sealwright_broker_holder_age_seconds", ()] >= 0
    route = "GET /kbs/v0/resource/{repository}/{kind}/{tag}"
    assert found["sealwright_broker_request_seconds_count", (("route", route),)] == 1
    for secret in (dek.hex(), "acme", "k1", kbs.http.cookies["kbs-session-id"]):
        assert secret not in text


async def test_a_state_that_cannot_be_read_is_down_and_still_scraped(world: World, running: Running) -> None:
    world.clock.forward(days=-1)
    assert samples(running.metrics.text())["sealwright_broker_up", ()] == 0


async def test_made_up_paths_and_methods_make_no_series(running: Running, kbs: Kbs) -> None:
    for at in range(300):
        await kbs.http.request(f"M{at}", f"/nowhere/{at}")
        await kbs.http.get(f"/kbs/v0/resource/t{at}/key/k{at}")
    routes = {
        dict(labels).get("route") for name, labels in samples(running.metrics.text()) if "requests" in name
    }
    assert routes == {"other", "GET /kbs/v0/resource/{repository}/{kind}/{tag}"}


def test_ten_thousand_labels_make_a_bounded_number_of_series() -> None:
    metrics = Metrics()
    for at in range(10_000):
        metrics.decided(
            {"action": f"a{at}", "verdict": "refuse", "stage": f"s{at}", "code": f"c{at}", "tenant": f"t{at}"}
        )
        metrics.answered(f"GET /{at}", 200 + at, f"c{at}", 0.001)
        metrics.events.add(f"e{at}")
    text = metrics.text()
    found = samples(text)
    for name in ("sealwright_broker_decisions_total", "sealwright_broker_requests_total", "sealwright_broker_events_total",
                 "sealwright_broker_request_seconds_count"):  # fmt: skip
        values = [value for (series, _), value in found.items() if series == name]
        assert len(values) == MAX_SERIES
        assert sum(values) == 10_000  # nothing is lost
    assert "t9999" not in text


@pytest.mark.parametrize("hostile", ['a"} 1\nfake 2', "ä", "", "x" * 97, "\n", None, 3, "a\\b"])
def test_no_value_breaks_out_of_its_label(hostile: object) -> None:
    assert word(hostile) == "other"
    counter = Counter("n_total", "text", ("label",))
    counter.add(hostile)
    assert samples("\n".join(counter.lines()) + "\n") == {("n_total", (("label", "other"),)): 1.0}


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram("h", "text", "route", (0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 9.0):
        histogram.add("r", seconds)
    found = samples("\n".join(histogram.lines()) + "\n")
    buckets = {dict(labels)["le"]: value for (name, labels), value in found.items() if name == "h_bucket"}
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert found["h_count", (("route", "r"),)] == 4
    assert found["h_sum", (("route", "r"),)] == pytest.approx(9.65)


def test_metrics_have_an_address_of_their_own(running: Running) -> None:
    sock = serve.bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    with serve.metrics_served(running.metrics, sock):
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        answer = httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=10, trust_env=False)
        assert answer.status_code == 200
        assert samples(answer.text)["sealwright_broker_up", ()] == 1
        for path in ("/", "/healthz", "/kbs/v0/auth", "/sealwright/v1/admin/status"):
            assert (
                httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=10, trust_env=False).status_code == 404
            )


async def test_the_public_address_has_no_metrics(kbs: Kbs) -> None:
    assert (await kbs.http.get("/metrics")).status_code == 404
