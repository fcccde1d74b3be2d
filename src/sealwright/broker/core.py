"""What the parts of a broker share: keys, state, time, randomness; and how a decision is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeVar, cast

from sealwright.appraisal.platform import Appraisal
from sealwright.appraisal.policy import PolicyBase
from sealwright.broker.backend import Backends, WrapContext
from sealwright.broker.rows import Changes, GenerationRow, KeyRow, ResourceRow, WrappedRow
from sealwright.broker.settings import BrokerSecrets
from sealwright.broker.state import State, View
from sealwright.crypto.hpke import Aead, Kdf, Kem
from sealwright.errors import AppraisalError, SealwrightError, UnavailableError
from sealwright.evidence.envelope import EvidenceEnvelope
from sealwright.protocol.keyset import HpkeKey
from sealwright.protocol.lease import BrokerKeys

BROKER_KEYS_LIFE = timedelta(hours=48)  # twice the longest lease
BROKER_KEYS_RENEW = timedelta(hours=12)
JOURNAL_KEY_ID = 1
T = TypeVar("T")
W = TypeVar("W", bound=WrappedRow)

# DESIGN section 10: where several hold, the first of these.
_GRAVEST = {code: rank for rank, code in enumerate((65, 10, 13, 12, 11))}


class Appraiser(Protocol):
    """See `sealwright.appraisal.evidence.appraise_evidence`."""

    def __call__(
        self,
        envelope: EvidenceEnvelope,
        rules: PolicyBase,
        /,
        *,
        expected_report_data: bytes,
        expected_device_nonce: bytes,
        at: datetime,
    ) -> Appraisal:
        """Return what `rules` say of evidence that was proved genuine."""
        ...


@dataclass(slots=True, kw_only=True)
class Core:
    """One broker's keys and state."""

    secrets: BrokerSecrets
    state: State
    backend: Backends
    appraise: Appraiser
    random: Callable[[int], bytes]
    _keys: tuple[BrokerKeys, bytes] | None = field(default=None, repr=False)
    _keys_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def broker_keys(self) -> bytes:
        """Return the broker's working keys, signed by its root (DSSE), good for 36 hours at least."""
        now = self.state.now()
        with self._keys_lock:
            if self._keys is None or now >= self._keys[0].not_before + BROKER_KEYS_RENEW:
                keys = self._make_keys(now)
                self._keys = (keys, keys.sign(self.secrets.root))
            return self._keys[1]

    def refuse(self, error: SealwrightError, **fields: object) -> None:
        """Log a refusal; when this returns, it may be answered.

        Raises:
            SealwrightError: `error` itself, where a change is unfinished because of it: nothing can be logged then.
        """
        with self.state.lock:
            try:
                ticket = self.state.decide(refusal(error, fields))
            except UnavailableError as exc:
                if exc.code == "state-uncertain":
                    raise error from exc
                raise
        self.state.ledger.settle(ticket)

    def _make_keys(self, now: datetime) -> BrokerKeys:
        journal = HpkeKey(
            key_id=JOURNAL_KEY_ID,
            kem=Kem.XWING,
            kdf=Kdf.HKDF_SHA256,
            aead=Aead.AES_256_GCM,
            public_key=self.secrets.journal.public.raw,
        )
        return BrokerKeys(
            release_key=self.secrets.release.public_key().public_bytes_raw(),
            ear_key=self.secrets.ear_public(),
            journal_key=journal,
            log_key=self.secrets.log_key,
            not_before=now,
            not_after=now + BROKER_KEYS_LIFE,
        )


@contextmanager
def decided(core: Core, action: str, said: dict[str, object]) -> Iterator[None]:
    """Log a refusal of what is done inside, with what was `said` until then, before it is raised.

    Of an unknown session nothing was decided: else anyone could fill the log with made-up cookies.
    """
    try:
        yield
    except SealwrightError as error:
        if error.code != "session-unknown":
            core.refuse(error, action=action, **said)
        raise


def gravest(errors: Iterable[SealwrightError]) -> SealwrightError:
    """Return the error to answer with where several hold (DESIGN section 10)."""
    return min(errors, key=lambda error: _GRAVEST.get(error.exit_code, len(_GRAVEST)))


def administered(core: Core, action: str, said: Mapping[str, object], work: Callable[[], T]) -> T:
    """Return what `work` returns; log its refusal, as the administrator's `action`, before that is raised."""
    try:
        return work()
    except SealwrightError as error:
        core.refuse(error, action=f"admin-{action}", **said)
        raise


def changed(
    core: Core, action: str, said: Mapping[str, object], work: Callable[[View], tuple[Changes, T]]
) -> T:
    """Change rows as `work` says, under the lock, with the administrator's `action` as a logged decision."""

    def change() -> T:
        with core.state.lock:
            view = core.state.view()
            changes, result = work(view)
            fields = {**said, "action": f"admin-{action}", "verdict": "grant"}
            core.state.change(view, changes, present(fields))
        return result

    return administered(core, action, said, change)


def wrapped_rows(view: View) -> list[WrappedRow]:
    """Return the rows with a wrapped key: keys of artefacts, and of guests' resources."""
    generations = view.all(GenerationRow, "generation")
    return [*view.all(KeyRow, "key"), *generations, *view.all(ResourceRow, "resource")]


def wrap_context(row: WrappedRow) -> WrapContext:
    """Return what the key of a row is wrapped for."""
    return WrapContext(
        kid=row.wrapped_as, tenant=row.tenant, policy_digest=row.policy.digest(), epoch=row.epoch
    )


def rewrapped(core: Core, row: W, fields: Mapping[str, object]) -> W:
    """Return `row` with other `fields`, its key wrapped for them by the active backend."""
    new = row.model_copy(update=fields)
    wrapped = core.backend.rewrap(row.wrapped, wrap_context(row), wrap_context(new))
    return cast("W", new.model_copy(update={"wrapped": wrapped}))


def refusal(error: SealwrightError, fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a decision to refuse."""
    reason = [*error.failures] if isinstance(error, AppraisalError) else [str(error)]
    said = {"verdict": "refuse", "code": error.code, "stage": error.stage, "reason": reason}
    return present({**fields, **said})


def present(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that are known, digests and ids as hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in fields.items()
        if value is not None
    }
