"""A broker put together from its directory: opened, made, served."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp

from sealwright.appraisal.platform import Appraisal
from sealwright.appraisal.policy import PolicyBase
from sealwright.broker.admin import Admin
from sealwright.broker.admin_routes import admin_routes
from sealwright.broker.backend_admin import BackendAdmin, open_backends, start_backends
from sealwright.broker.clock import Clock, SteadyClock, utc_now
from sealwright.broker.core import Appraiser, Core
from sealwright.broker.data import DataKeys
from sealwright.broker.data_routes import data_routes
from sealwright.broker.erasure import erase_again
from sealwright.broker.erasure_routes import erasure_routes
from sealwright.broker.gauges import Gauges
from sealwright.broker.guest import Guests
from sealwright.broker.guest_routes import guest_routes
from sealwright.broker.holders import FileHolder, Holders, parse_witness
from sealwright.broker.http import Guard, Journalist, RateLimit
from sealwright.broker.journal import Journal
from sealwright.broker.ledger import Ledger
from sealwright.broker.life import Life
from sealwright.broker.life_routes import life_routes
from sealwright.broker.metrics import Metrics
from sealwright.broker.notices import Notices, notice_routes
from sealwright.broker.openapi import openapi_route
from sealwright.broker.resources import Resources
from sealwright.broker.routes import kbs_routes, public_routes
from sealwright.broker.rows import BrokerRow
from sealwright.broker.session import Broker
from sealwright.broker.sessions import Sessions
from sealwright.broker.settings import BrokerSecrets, Layout, make_directory
from sealwright.broker.site import check_site, promote
from sealwright.broker.state import State
from sealwright.broker.storage import Shared, open_storage
from sealwright.broker.supply import Supply, SupplySettings
from sealwright.collateral.cache import Cache
from sealwright.errors import CollateralError, SettingsError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.tlog.policy import LogPolicy
from sealwright.tlog.tiles import Fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A broker that is open."""

    core: Core
    broker: Broker
    guests: Guests
    admin: Admin
    life: Life
    resources: Resources
    backends: BackendAdmin
    journal: Journal
    data: DataKeys
    fetch: Fetch
    metrics: Metrics
    supply: Callable[[Callable[..., None]], Supply] | None = (
        None  # of a log; None: collateral comes with evidence
    )

    more: Sequence[BaseRoute] = ()  # routes of layers above, such as `sealwright.training.routes`

    def app(
        self, *, log: Callable[..., None] | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> ASGIApp:
        """Return the ASGI application; its lifespan is that of what fetches collateral.

        Raises:
            SettingsError: `malformed-collateral-settings`.
        """
        told = Journalist() if log is None else log
        supply = None if self.supply is None else self.supply(told)
        routes = [
            openapi_route(),
            *guest_routes(self.resources, self.core.secrets),
            *kbs_routes(self.broker, self.guests, self.core, supply),
            *public_routes(self.core, self.journal, self.fetch, monotonic=monotonic),
            *notice_routes(Notices(self.core)),
            *admin_routes(self.admin, self.backends, self.core.secrets),
            *life_routes(self.life, self.core),
            *erasure_routes(self.core),
            *data_routes(self.data, self.core),
            *([] if supply is None else supply.routes()),
            *self.more,
        ]
        lifespan = None if supply is None else lambda _: supply.running()
        router = Router(routes=routes, lifespan=lifespan)
        return Guard(router, rate=RateLimit(monotonic), log=told, count=self.metrics.answered)


def init_broker(
    root: Path,
    *,
    origin: str | None = None,
    holder: Path | None = None,
    witnesses: Sequence[str] = (),
    clock: Clock = utc_now,
    shared: Shared | None = None,
) -> BrokerSecrets:
    """Make a broker's directory, its keys, its log and the first decision in it.

    Args:
        shared: the database of several replicas, empty but for its tables.

    Raises:
        SettingsError: `broker-exists`.
    """
    layout = Layout(root=root)
    make_directory(layout, origin=origin, at=clock())
    with open_broker(
        root, holder=holder, witnesses=witnesses, clock=clock, create=True, shared=shared
    ) as running:
        core = running.core
        with core.state.lock:
            row = BrokerRow(
                root=core.secrets.root_public, log_key=core.secrets.log_key, created=core.state.now()
            )
            said = {"action": "init", "verdict": "grant"}
            core.state.change(core.state.view(), {("broker", "self"): row.encode()}, said)
        return core.secrets


@contextmanager
def open_broker(
    root: Path,
    *,
    holder: Path | None = None,
    witnesses: Sequence[str] = (),
    holders_needed: int | None = None,
    new_holder: bool = False,
    clock: Clock | None = None,
    random: Callable[[int], bytes] = os.urandom,
    appraise: Appraiser | None = None,
    collateral: Path | None = None,
    supply: SupplySettings | None = None,
    create: bool = False,
    begin: int = 0,
    backends: Path | None = None,
    approve: Sequence[str] = (),
    shared: Shared | None = None,
    site: str | None = None,
    promotion: bytes | None = None,
    metrics: Metrics | None = None,
    observers: Sequence[Callable[[Mapping[str, object]], None]] = (),
) -> Iterator[Running]:
    """Open a broker's directory, checked against its log and, if given, the holder file.

    Args:
        holder: file kept elsewhere with the highest checkpoint.
        witnesses: VKEY@URL, others that hold it.
        holders_needed: how many of all these must hold a checkpoint before an answer; default: all.
        new_holder: begin holders that hold nothing yet.
        clock: in place of the machine's, which is compared with CLOCK_BOOTTIME and the witnesses' times.
        collateral: a cache of `sealwright collateral`; None: only what comes with evidence counts.
        supply: whether and how the cache is filled from here; default: it is not.
        create: start an empty log.
        begin: its epoch, where it goes on with the rows of another log.
        backends: settings of key backends; None: `backends.json` of the directory, if there is one.
        approve: backends whose settings were changed on purpose.
        shared: the database of several replicas; it wants a holder. None: all lies in the directory.
        site: where this is, if the state says which site writes.
        promotion: approvers' statement that this site writes from now on.
        metrics: what counts; default: counts of its own.
        observers: told of each decision once it is on its way into the log; they must not wait or raise.

    Raises:
        SettingsError: keys are missing or exposed. VerificationError, CollateralError:
            docs/spec/broker-state.md, Checking rows.
    """
    if shared is not None and holder is None and not witnesses:
        raise SettingsError(
            "whoever runs the database could show each replica another past: name a --witness or --holder",
            code="holder-required",
        )
    layout = Layout(root=root)
    secrets = BrokerSecrets.load(layout)
    cache = None if collateral is None else Cache(collateral)
    with ExitStack() as stack:
        storage = stack.enter_context(open_storage(layout, secrets, shared, random=random, create=create))
        policy = LogPolicy.of_key(secrets.log_key)
        witnessing = [parse_witness(text) for text in witnesses]
        files = [] if holder is None else [FileHolder(holder, policy)]
        holders = Holders([*files, *witnessing], need=holders_needed)
        stack.callback(holders.close)
        clock = clock or SteadyClock([witness.time for witness in witnessing])
        ledger = Ledger(
            storage.log,
            storage.fetch,
            policy=policy,
            openings=storage.openings,
            random=random,
            holders=holders,
            new_holder=new_holder,
            seen=storage.store.head().checkpoint,
            check_time=clock,
        )
        state = State(storage.store, ledger, clock=clock, begin=begin)
        ring = open_backends(layout, backends, random)
        stack.callback(ring.close)
        core = Core(
            secrets=secrets,
            state=state,
            backend=ring,
            appraise=appraise or _appraiser(cache),
            random=random,
        )
        if not create:
            _check_identity(core)
            if promotion is not None:
                promote(state, secrets.root_public, site, promotion)
            check_site(state, site)
            erase_again(state)
        metrics = Metrics() if metrics is None else metrics
        metrics.look_with(Gauges(core))
        state.observers += [metrics.decided, *observers]
        sessions, admin = Sessions(random, keeper=storage.sessions), Admin(core)
        yield Running(
            core=core,
            broker=Broker(core, sessions),
            guests=Guests(core, sessions),
            admin=admin,
            life=Life(core, admin),
            resources=Resources(core, admin),
            backends=start_backends(core, backends or layout.backends, approve),
            journal=Journal(core),
            data=DataKeys(core),
            fetch=storage.fetch,
            metrics=metrics,
            supply=None if cache is None else partial(Supply, cache, supply or SupplySettings()),
        )


def _appraiser(cache: Cache | None) -> Appraiser:
    from sealwright.appraisal.evidence import appraise_evidence
    from sealwright.broker.collateral import cached_collateral
    from sealwright.client.rego_process import evaluate_apart
    from sealwright.verify.context import WorkCache

    appraise = partial(appraise_evidence, work=WorkCache(), rego=evaluate_apart)
    if cache is None:
        return appraise

    def with_collateral(envelope: EvidenceEnvelope, rules: PolicyBase, /, **given: Any) -> Appraisal:
        return appraise(envelope, rules, collateral=cached_collateral(cache, envelope), **given)

    return with_collateral


def _check_identity(core: Core) -> None:
    row = core.state.view().get(BrokerRow, "broker", "self")
    if row is None or (row.root, row.log_key) != (core.secrets.root_public, core.secrets.log_key):
        raise CollateralError(
            "the keys are not those this state was made with", code="broker-keys-foreign", stage="settings"
        )
