"""Usage statements: what is counted, what a licensor can check offline, and every way that a file does not hold."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.broker.support import NOW, Enclave, Kbs, Lines, World
from tests.broker.test_admin import Live, listening
from tests.broker.test_journal import batch, post, receipt

from sealwright.broker.service import Running
from sealwright.cli import main
from sealwright.client.admin import AdminClient
from sealwright.client.usage import check_usage, fetch_usage
from sealwright.crypto.canonical import canonical
from sealwright.errors import FormatError, MessageFormatError, SealwrightError
from sealwright.protocol.usage import SHOWN, Tally, UsageStatement, month_of
from sealwright.protocol.use import Use
from sealwright.tlog.policy import LogPolicy

MONTH = "2026-06"


@pytest.fixture
def live(world: World, running: Running) -> Iterator[Live]:
    lines = Lines()
    token = (world.root / "admin-token").read_text().strip()
    with listening(running, lines) as url:
        yield Live(world, running, url, token, lines)


async def used(world: World, running: Running) -> None:
    """Two enclaves of one tenant, renewals that overlap, receipts, refusals; and another tenant."""
    world.add_key(running)
    world.add_key(running, "other", "k2")
    first, second = Enclave.make(world, running), Enclave.make(world, running)
    other = Enclave.make(world, running, {"other": ["k2"]})
    kbs = Kbs(running)
    got = await kbs.leased(first)
    await kbs.resource()
    made = [receipt(first, got)[0] for _ in range(3)]
    await post(kbs, batch(got.broker_keys, first.keyset.digest(), *made))
    world.clock.forward(seconds=300)
    await Kbs(running).leased(first, answers=3)  # 600 s from here: 900 s in all
    kbs = Kbs(running)
    await kbs.leased(second)
    running.broker.resource(kbs.http.cookies["kbs-session-id"], "acme", "k1", Use(rows=7))
    assert (await kbs.resource("k9")).status_code == 401
    theirs = Kbs(running)
    await theirs.leased(other, "other")
    await theirs.resource("k2", "other")


def fetched(live: Live, tenant: str = "acme", kid: str | None = None) -> bytes:
    with AdminClient(live.url, live.token) as client:
        return b"".join(fetch_usage(client, tenant, MONTH, kid))


def checked(live: Live, raw: bytes) -> UsageStatement:
    log = LogPolicy.of_key(live.world.log_key)
    return check_usage(io.BytesIO(raw), root=live.world.broker_root, log=log)


async def test_a_month_is_counted_and_checked_offline(world: World, running: Running, live: Live) -> None:
    await used(world, running)
    raw = fetched(live)
    said = checked(live, raw)
    assert (said.releases, said.rows, said.leases, said.answers) == (2, 7, 3, 3)
    assert said.lease_seconds == 900 + 600
    assert (said.tenant, said.kid, said.log_key) == ("acme", None, world.log_key)
    assert running.admin.decisions(1)[0]["action"] == "admin-usage"
    assert checked(live, fetched(live, kid="k1")).releases == 2
    none = checked(live, fetched(live, kid="k2"))
    assert (none.releases, none.leases, none.lease_seconds) == (0, 0, 0)
    assert checked(live, fetched(live, tenant="other")).releases == 1
    # Nothing is opened but what is counted with.
    items = [json.loads(line) for line in raw.splitlines()[1:]]
    assert all(set(item["fields"]) <= set(SHOWN) for item in items)
    assert b"evidence_digest" in raw  # named, as a commitment
    assert b"other" not in raw


async def test_a_statement_of_many_pages(
    world: World, running: Running, live: Live, monkeypatch: Any
) -> None:
    from sealwright.broker import usage

    monkeypatch.setattr(usage, "PAGE", 2)
    await used(world, running)
    assert checked(live, fetched(live)).leases == 3


def resigned(live: Live, raw: bytes, **changes: Any) -> bytes:
    """Return a file whose statement says something else, signed by the broker all the same."""
    head, *items = raw.splitlines(keepends=True)
    said = json.loads(head)
    statement = UsageStatement.unverified(canonical(said["statement"])).model_copy(update=changes)
    said["statement"] = json.loads(statement.sign(live.running.core.secrets.release))
    return b"".join([canonical(said) + b"\n", *items])


def altered(raw: bytes, alter: Callable[[list[bytes]], None]) -> bytes:
    lines = raw.splitlines(keepends=True)
    alter(lines)
    return b"".join(lines)


def edited(line: bytes, edit: Callable[[Any], None]) -> bytes:
    value = json.loads(line)
    edit(value)
    return canonical(value) + b"\n"


def drop(lines: list[bytes]) -> None:
    del lines[2]


def double(lines: list[bytes]) -> None:
    lines.insert(2, lines[2])


def swap(lines: list[bytes]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def other_value(lines: list[bytes]) -> None:
    lines[1] = edited(lines[1], lambda item: item["fields"]["tenant"].update(value="ImFjbWUyIg"))


def other_leaf(lines: list[bytes]) -> None:
    lines[1] = edited(lines[1], lambda item: item["leaves"][0].update(leaf="00" * 32))


def other_place(lines: list[bytes]) -> None:
    first, second = json.loads(lines[1]), json.loads(lines[2])
    lines[1] = edited(lines[1], lambda item: item.update(proof=second["proof"]))
    assert first["proof"] != second["proof"]


def more_answers(lines: list[bytes]) -> None:
    lines[1] = edited(lines[1], lambda item: item.update(answers=item["answers"] + 1))


def hidden(lines: list[bytes]) -> None:
    lines[1] = edited(lines[1], lambda item: item["fields"].pop("verdict"))


TAMPERED = [
    (drop, "usage-mismatch"),
    (double, "usage-mismatch"),
    (swap, "usage-mismatch"),
    (other_value, "field-mismatch"),
    (other_leaf, "bad-inclusion-proof"),
    (other_place, "bad-inclusion-proof"),
    (more_answers, "usage-mismatch"),
    (hidden, "usage-mismatch"),
]


@pytest.mark.parametrize(("alter", "code"), TAMPERED, ids=[case[0].__name__ for case in TAMPERED])
async def test_a_file_that_was_altered_is_refused(
    alter: Callable[[list[bytes]], None], code: str, world: World, running: Running, live: Live
) -> None:
    await used(world, running)
    with pytest.raises(SealwrightError) as caught:
        checked(live, altered(fetched(live), alter))
    assert caught.value.code == code
    assert caught.value.exit_code == 10


async def test_a_broker_that_sums_wrongly_is_found_out(world: World, running: Running, live: Live) -> None:
    await used(world, running)
    raw = fetched(live)
    for changes in (
        {"releases": 1},
        {"rows": 0},
        {"leases": 9},
        {"lease_seconds": 1},
        {"answers": 0},
        {"tenant": "other"},
        {"kid": "k2"},
        {"month": "2026-05"},
        {"counted": bytes(32)},
        {"log_size": 1},
    ):
        with pytest.raises(SealwrightError) as caught:
            checked(live, resigned(live, raw, **changes))
        assert (caught.value.code, caught.value.stage) == ("usage-mismatch", "usage")


async def test_another_root_or_log_is_refused(
    world: World, running: Running, live: Live, tmp_path: Path
) -> None:
    await used(world, running)
    raw, log = fetched(live), LogPolicy.of_key(world.log_key)
    other = World(tmp_path / "other")
    with pytest.raises(SealwrightError) as caught:
        check_usage(io.BytesIO(raw), root=other.broker_root, log=log)
    assert caught.value.exit_code == 10
    with pytest.raises(SealwrightError) as caught:
        check_usage(io.BytesIO(raw), root=world.broker_root, log=LogPolicy.of_key(other.log_key))
    assert caught.value.exit_code == 10
    signature = edited(
        raw.splitlines()[0], lambda head: head["statement"]["signatures"][0].update(sig="A" * 88)
    )
    with pytest.raises(SealwrightError):
        checked(live, signature + b"".join(raw.splitlines(keepends=True)[1:]))


@given(st.binary(max_size=200))
def test_what_is_no_usage_file_is_refused(raw: bytes) -> None:
    log = LogPolicy.of_key(
        "sealwright/4004ada248e49439+59b6737c+AXaJ0HMHCRlrcaI9bY8H1QFcgSdcsuFqQEJjf6vK4824"
    )
    with pytest.raises(FormatError):
        check_usage(io.BytesIO(raw), root=bytes(32), log=log)


@pytest.mark.parametrize("month", ["2026-13", "2026-6", "2026", "2026-00", "26-06", "2026-06-01", "٢٠٢٦-06"])
async def test_a_month_out_of_form_is_refused(month: str, live: Live) -> None:
    with pytest.raises(MessageFormatError) as caught:
        month_of(month)
    assert caught.value.code == "malformed-month"
    with AdminClient(live.url, live.token) as client, pytest.raises(SealwrightError):
        client.ask("GET", f"/usage/acme/{month}")


def lease(at: datetime, seconds: int, keyset: str = "a") -> dict[str, Any]:
    from sealwright.crypto.encoding import rfc3339

    said = {"verdict": "grant", "action": "lease", "tenant": "acme", "keyset_digest": keyset, "kids": ["k1"]}
    return said | {"at": rfc3339(at), "not_after": rfc3339(at + timedelta(seconds=seconds))}


def test_leases_at_the_edges_of_a_month_count_for_their_part() -> None:
    start, end = month_of(MONTH)
    assert (start, end) == (datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC))
    before, after = lease(start - timedelta(seconds=40), 100), lease(end - timedelta(seconds=30), 100)
    tally = Tally("acme", None, MONTH)
    for number, said in enumerate((before, after)):
        assert tally.concerns(said)
        tally.add(number, bytes(32), said, 1)
    assert (tally.lease_seconds, tally.leases, tally.answers) == (60 + 30, 1, 2)
    assert not tally.concerns(lease(start - timedelta(seconds=100), 100))
    assert not tally.concerns(lease(end, 100))
    assert not tally.concerns({**after, "verdict": "refuse"})
    assert not tally.concerns({**after, "tenant": "acme2"})


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 100), st.sampled_from("ab")), max_size=30))
def test_lease_seconds_are_the_seconds_in_which_one_was_held(spans: list[tuple[int, int, str]]) -> None:
    tally = Tally("acme", None, MONTH)
    for start, length, keyset in spans:
        tally.add(0, bytes(32), lease(NOW + timedelta(seconds=start), length, keyset), 0)
    held = {(keyset, second) for start, length, keyset in spans for second in range(start, start + length)}
    assert tally.lease_seconds == len(held)


async def test_usage_by_command(
    world: World, running: Running, live: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sealwright.crypto.encoding import b64url

    await used(world, running)
    out = tmp_path / "acme.usage"
    admin = ["--broker", live.url, "--token-file", str(world.root / "admin-token")]
    assert main(["broker", "usage", "acme", MONTH, "--out", str(out), *admin, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decisions"] == 5
    check = ["broker", "usage-check", str(out), "--broker-root", b64url(world.broker_root)]
    assert main([*check, "--log-key", world.log_key]) == 0
    assert "lease_seconds  1500" in capsys.readouterr().out
    out.write_bytes(altered(out.read_bytes(), drop))
    assert main([*check, "--log-key", world.log_key, "--json"]) == 10
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage-mismatch"
