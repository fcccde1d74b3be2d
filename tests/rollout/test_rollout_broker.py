"""What a rollout needs of a broker: decisions by pages with their openings, and the limit of a canary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.rollout.support import NEW, Site

from sealwright.broker.service import Running
from sealwright.crypto.canonical import canonical
from sealwright.crypto.document import validated
from sealwright.protocol.commitment import Leaf, Openings, commitment_root, field_leaf


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(root=tmp_path)
    made.make_key()
    return made


@pytest.fixture
def running(site: Site) -> Iterator[Running]:
    with site.world.open() as running:
        for number in range(5):
            running.admin.add_caller("acme", f"caller{number}")
        yield running


def test_pages_hold_every_decision_once(running: Running) -> None:
    whole = running.admin.decisions(200)
    paged: list[dict[str, object]] = []
    before: int | None = None
    while page := running.admin.decisions(2, before=before):
        paged += page
        before = int(str(page[-1]["index"]))
    assert paged == whole
    assert len(whole) > 6
    assert running.admin.decisions(2, before=0) == []


def test_openings_open_the_commitment_of_their_decision(running: Running) -> None:
    for one in running.admin.decisions(200, openings=True):
        openings = validated(Openings, one["openings"])
        leaves = tuple(
            Leaf(name=name, leaf=field_leaf(openings.record_id, name, openings.fields[name]))
            for name in sorted(openings.fields)
        )
        assert commitment_root(leaves).hex() == one["commitment"]
        assert openings.fields["action"].value == canonical(one["action"])


@pytest.mark.parametrize(("query", "status"), [("before=3", 200), ("before=-1", 400), ("before=x", 400)])
def test_the_route_reads_its_query_strictly(site: Site, running: Running, query: str, status: int) -> None:
    app = running.app(log=lambda event, **fields: None)
    token = {"authorization": f"Bearer {site.token.read_text().strip()}"}
    with TestClient(app) as client:
        answer = client.get(f"/sealwright/v1/admin/decisions?limit=2&openings=1&{query}", headers=token)
    assert answer.status_code == status
    if status == 200:
        assert all(one["index"] < 3 and "openings" in one for one in answer.json()["decisions"])


@pytest.mark.parametrize(
    "canary", [{"code": [], "leases": 1}, {"code": [NEW.hex()], "leases": 0}, {"leases": 1}]
)
def test_a_canary_out_of_form_is_refused(site: Site, canary: dict[str, object]) -> None:
    from sealwright.errors import SettingsError

    with pytest.raises(SettingsError):
        site.policy(2, [NEW], canary=canary)


def test_a_policy_without_a_canary_keeps_its_digest(site: Site) -> None:
    from sealwright.appraisal.policy import KeyPolicy

    assert "canary" not in KeyPolicy.load(site.policies["current"]).to_json()
