"""A running enclave: its leases kept, its receipts handed over, its stop. The only part with a loop.

Spec: docs/spec/key-release.md (lease), docs/spec/receipt.md (journal).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime

from sealwright.crypto.canonical import parse_json
from sealwright.enclave.auth import authenticate
from sealwright.enclave.broker_client import BrokerClient, BrokerRefusal, Grant, Session
from sealwright.enclave.clock import EnclaveClock
from sealwright.enclave.identity import Identity
from sealwright.enclave.lease import TenantLease
from sealwright.enclave.listener import Listener
from sealwright.enclave.notes import Note
from sealwright.enclave.receipts import Journal, ReceiptIssuer
from sealwright.errors import RevokedError, SealwrightError, UnavailableError
from sealwright.evidence.envelope import MAX_ENVELOPE
from sealwright.protocol.attestation import AttestationBundle
from sealwright.protocol.enclave_config import EnclaveConfig
from sealwright.protocol.report_data import Purpose
from sealwright.transport.fields import Fields
from sealwright.transport.server import Caller, Gateway

TICK_S = 0.25
JOURNAL_PAUSES_S = (0.0, 1.0, 2.0, 5.0, 10.0)  # after so many failures in a row
DRAIN_S = 5.0  # how long a stop waits for answers to end, after their engines were killed
PROOFS_AT_ONCE = 2  # asked of the broker for callers; leases, receipts and quotes share the threads
FLUSH_S = 15.0  # how long the end waits for the broker to log what is left

OnStop = Callable[[str], Awaitable[None]]


class Enclave:
    """What an attested process is, apart from what runs in it."""

    def __init__(
        self,
        identity: Identity,
        brokers: Sequence[BrokerClient],
        clock: EnclaveClock,
        *,
        note: Note,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """Args: brokers: all of the config, in its order; uniform: in [0, 1), spreads renewals."""
        self.config: EnclaveConfig = identity.config
        self.clock = clock
        self.journal = Journal(identity.config.limits.receipt_backlog)
        self.stopped = ""  # the code, once no tenant is served any more
        self.gateway = Gateway([identity.keys.serving()], max_request=identity.config.limits.request_bytes)
        self._identity: Identity | None = identity
        self._issuer: ReceiptIssuer | None = ReceiptIssuer(
            identity.keys,
            config_digest=identity.config_digest,
            platform=identity.platform,
            journal=self.journal,
        )
        self._keyset_digest = identity.keys.digest
        self._brokers = list(brokers)
        self._note = note
        self._leases = {
            opening.tenant: TenantLease(opening.tenant, random=uniform) for opening in identity.openings
        }
        self._last_grant: Grant | None = None
        self._answering = 0
        self._proving = 0
        self._told: set[str] = set()
        self._renewal: asyncio.Task[None] | None = None
        self._handing = threading.Lock()

    # What serves asks

    @property
    def issuer(self) -> ReceiptIssuer:
        """What signs receipts.

        Raises:
            RevokedError: the enclave has stopped, and its keys are gone.
        """
        if self._issuer is None:
            raise RevokedError("this enclave has stopped", code=self.stopped, stage="lease")
        return self._issuer

    def grant(self, tenant: str, at: datetime) -> Grant:
        """Return the tenant's lease, in force at `at` (enclave time, now).

        Raises:
            RevokedError: with the code that stopped the tenant.
        """
        lease = self._leases.get(tenant)
        if lease is None:
            raise RevokedError("this enclave has no lease for the tenant", code="no-lease", stage="lease")
        return lease.check(at)

    def authenticate(self, headers: Fields) -> Caller:
        """Return the caller of a sealed request. Raises VerificationError."""
        grants = [lease.grant for lease in self._leases.values() if not lease.stopped]
        return authenticate(headers, [grant.callers for grant in grants])

    def in_force(self) -> list[str]:
        """Return the tenants whose lease is in force now, by enclave time."""
        now = self.clock.now()
        found = []
        for tenant, lease in self._leases.items():
            with contextlib.suppress(RevokedError):
                lease.check(now)
                found.append(tenant)
        return found

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Count an answer in the making, and keep room for its receipt.

        Raises:
            UnavailableError: `too-busy`, `receipt-backlog-full`.
        """
        if self._answering >= self.config.limits.concurrency:
            raise UnavailableError("as many answers as the config allows are in the making", code="too-busy")
        with self.journal.room():
            self._answering += 1
            try:
                yield
            finally:
                self._answering -= 1

    async def bundle(self, nonce: bytes, tenant: str) -> bytes:
        """Return the attestation bundle for a client's nonce (canonical JSON).

        Raises:
            RevokedError: the tenant has no lease here.
        """
        grant = self.grant(tenant, self.clock.now())
        if self._identity is None:
            raise RevokedError("this enclave has stopped", code=self.stopped, stage="lease")
        identity = self._identity
        evidence = await asyncio.to_thread(identity.evidence, Purpose.SERVE, nonce)
        return AttestationBundle(
            evidence=evidence,
            config=identity.config_bytes,
            keyset=identity.keys.keyset.encode(),
            broker_keys=_object(grant.broker_keys_envelope),
            lease=_object(grant.lease_envelope),
            ear=grant.ear,
        ).encode()

    async def proof(self, entry_hash: str) -> bytes | None:
        """Return the log proof of an entry from the broker, None if there is none yet.

        Raises:
            UnavailableError: `too-busy`: a caller with many questions must not keep leases from renewal.
        """
        if self._proving >= PROOFS_AT_ONCE:
            raise UnavailableError("other proofs are being asked for", code="too-busy")
        self._proving += 1
        try:
            return await asyncio.to_thread(self._brokers[0].proof, entry_hash)
        finally:
            self._proving -= 1

    # The first lease, before the loop

    def begin(self) -> tuple[Session, Mapping[str, Grant]]:
        """Attest and take a lease for each tenant; return the session, for releases, and the leases.

        Raises:
            SealwrightError: not reached, refused, or not genuine: there is nothing to serve.
        """
        session = self._attest()
        grants = {}
        try:
            for tenant, lease in self._leases.items():
                grants[tenant] = session.lease(tenant, answers=0)
                self._granted(lease, grants[tenant])
        except BaseException:
            session.close()
            raise
        return session, grants

    # The loop

    async def keep(self, on_stop: OnStop) -> None:
        """Keep leases until all have ended, then wipe; and hand receipts over all the while.

        Args:
            on_stop: ends what runs for a tenant, at once.
        """
        journal = asyncio.create_task(self._hand_over(), name="journal")
        listener = Listener(lambda: self._brokers[0], self._held, self._hurried)
        listener.start()
        try:
            while not self.stopped:
                await self._expire(on_stop)
                elapsed = self.clock.elapsed()
                renewing = self._renewal is not None and not self._renewal.done()
                if not renewing and any(lease.due(elapsed) for lease in self._leases.values()):
                    self._renewal = asyncio.create_task(asyncio.to_thread(self._renew), name="renewal")
                await asyncio.sleep(TICK_S)
            await journal
        finally:
            listener.stop()
            journal.cancel()

    async def flush(self) -> None:
        """At the end of the process: try for a while to get the last receipts logged."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                failures = 0
                while len(self.journal):
                    failures = 0 if await asyncio.to_thread(self._journal_once) else failures + 1
                    await asyncio.sleep(min(failures, 3))
        if len(self.journal):
            self._note("receipts-lost", count=len(self.journal))

    def _held(self) -> list[bytes]:
        """Return the ids of the leases in force."""
        grants = []
        for lease in self._leases.values():
            with contextlib.suppress(RevokedError):
                grants.append(lease.grant)
        return [grant.lease.lease_id for grant in grants]

    def _hurried(self, changed: Sequence[bytes]) -> None:
        """Ask anew for leases that a notice names."""
        elapsed = self.clock.elapsed()
        for lease in self._leases.values():
            with contextlib.suppress(RevokedError):
                if lease.grant.lease.lease_id in changed:
                    lease.hurry(elapsed)

    async def _expire(self, on_stop: OnStop) -> None:
        now = self.clock.now()
        for tenant, lease in self._leases.items():
            with contextlib.suppress(RevokedError):
                lease.check(now)
            if lease.in_grace(now):
                self._tell_once(f"{tenant}: grace", "lease-in-grace", tenant)
            if lease.stopped and tenant not in self._told:
                self._told.add(tenant)
                self._note("tenant-stopped", tenant=tenant, code=lease.stopped)
                await on_stop(tenant)
        if all(lease.stopped for lease in self._leases.values()):
            await self._wipe()

    def _tell_once(self, name: str, event: str, tenant: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._note(event, tenant=tenant)

    async def _wipe(self) -> None:
        """Let go of every private key; OpenSSL clears them as they are freed."""
        self.gateway.accepting = False
        codes = [lease.stopped for lease in self._leases.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._answering:
                    await asyncio.sleep(0.01)
        self.stopped = codes[0] if codes else "no-tenant"
        self._identity = self._issuer = None
        self.gateway.replace([])
        self._note("stopped", code=self.stopped)

    def _attest(self) -> Session:
        """Attest to the first broker that can be reached; it becomes the first to be asked."""
        if self._identity is None:
            raise RevokedError("this enclave has stopped", code=self.stopped, stage="lease")
        failure: UnavailableError | None = None
        for broker in tuple(self._brokers):
            try:
                session = broker.attest(self._identity)
            except UnavailableError as exc:
                failure = exc
                continue
            # In one step: other threads ask the first one meanwhile.
            self._brokers = [broker, *(one for one in self._brokers if one is not broker)]
            return session
        raise failure or UnavailableError("the config names no broker", code="broker-unreachable")

    def _renew(self) -> None:
        """In a thread: attest anew, and ask for every tenant's lease."""
        serving = [lease for lease in self._leases.values() if not lease.stopped]
        try:
            session = self._attest()
        except SealwrightError as exc:
            for lease in serving:
                self._not_granted(lease, exc)
            return
        try:
            for lease in serving:
                self._renew_one(session, lease)
        finally:
            session.close()

    def _renew_one(self, session: Session, lease: TenantLease) -> None:
        try:
            before = lease.grant.lease.lease_id
            self._granted(lease, session.lease(lease.tenant, answers=self.issuer.answers(before)))
        except SealwrightError as exc:
            self._not_granted(lease, exc)

    def _granted(self, lease: TenantLease, grant: Grant) -> None:
        lease.granted(grant)
        self._told.discard(f"{lease.tenant}: grace")
        self._last_grant = grant
        self._note("lease", tenant=lease.tenant, lease_id=grant.lease.lease_id.hex())

    def _not_granted(self, lease: TenantLease, exc: SealwrightError) -> None:
        self._note("lease-not-renewed", tenant=lease.tenant, code=exc.code)
        if isinstance(exc, BrokerRefusal):
            lease.refused(exc.code)
        else:
            # Not reached, or not the broker's own word: it can neither extend the lease nor end it.
            lease.unreachable(exc.code, self.clock.elapsed())

    async def _hand_over(self) -> None:
        failures = 0
        while not self.stopped or len(self.journal):
            if len(self.journal):
                failures = 0 if await asyncio.to_thread(self._journal_once) else failures + 1
            await asyncio.sleep(max(TICK_S, JOURNAL_PAUSES_S[min(failures, len(JOURNAL_PAUSES_S) - 1)]))

    def _journal_once(self) -> bool:
        # A stop leaves a thread in here while `flush` begins: both would forget the same receipts.
        with self._handing:
            return self._hand_over_batch()

    def _hand_over_batch(self) -> bool:
        batch = self.journal.batch()
        if not batch or self._last_grant is None:
            return True
        try:
            self._brokers[0].journal(batch, self._keyset_digest, self._last_grant.broker_keys.journal_key)
        except SealwrightError as exc:
            self._note("journal-waits", code=exc.code, count=len(self.journal))
            return False
        self.journal.logged(len(batch))
        return True


def _object(envelope: bytes) -> dict[str, object]:
    value: dict[str, object] = parse_json(envelope, limit=2 * MAX_ENVELOPE)
    return value
