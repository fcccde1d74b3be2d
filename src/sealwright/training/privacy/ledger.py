"""What was spent of a privacy budget: recorded before anything is released. Spec: docs/spec/privacy.md, Ledger."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from sealwright.collateral.files import read_bytes, replace_file
from sealwright.errors import (
    AppraisalError,
    AppraisalFailure,
    FormatError,
    UnavailableError,
    VerificationError,
)
from sealwright.training.privacy.entries import (
    MAX_ENTRIES,
    Budget,
    Entry,
    LedgerState,
    Spent,
    decimal_up,
    empty_ledger,
    malformed,
)
from sealwright.training.privacy.spec import NoisePlan, unfit

MAX_LEDGER = 1 << 20  # bytes


class PrivacyLedger:
    """A file that says what was spent. Every change is on disk before the call returns.

    Who can write the file can set it back: pass `pinned`, the head that the caller kept elsewhere (in its last
    receipt, in the log, under the TEE's sealed counter). Several processes may charge it at the same time.

    Args:
        path: of the file; there after the first charge.
        budget: what may be spent.
        pinned: head of the state that is expected, or None at the very first.

    Raises:
        VerificationError: `ledger-rollback`: the state is not the pinned one nor one that was made from it.
        MessageFormatError: `ledger-malformed`.
    """

    def __init__(self, path: Path, budget: Budget, *, pinned: bytes | None) -> None:
        """See the class."""
        self._path, self._budget = path, budget
        with _locked(path):
            state = self._read()
        check_not_rolled_back(state, pinned)
        self._seen = state

    @property
    def state(self) -> LedgerState:
        """What this object last read or wrote. Pin its `head`."""
        return self._seen

    def epsilon(self) -> float:
        """Return ε spent so far, at the budget's δ."""
        return self._epsilon(self._seen)

    def charge(self, entry: Entry) -> Spent:
        """Record an entry, then return what is spent. Call it before the result of the round is released.

        A round whose release fails after this stays charged: safe, and not given back.

        Raises:
            AppraisalError: `dp-budget-spent`: nothing was recorded.
            VerificationError: `ledger-rollback`: the file was set back since it was last seen here.
            MessageFormatError: `ledger-malformed`.
        """
        with _locked(self._path):
            state = self._read()
            if not _extends(state, self._seen):
                raise _rollback()
            new = self._next(state, entry)
            self._check_budget(new)
            replace_file(self._path, new.encode())
            _sync_folder(self._path.parent)
            self._seen = new
        return self.spent()

    def charge_round(self, plan: NoisePlan, *, round_number: int, roster: int, survivors: int) -> Spent:
        """Record one round of secure aggregation, with the noise that its survivors brought.

        Args:
            roster: workers that were asked; those beyond `survivors` dropped out.

        Raises:
            SettingsError: `dp-plan`: too few survivors, or a budget other than the plan's.
            As `charge`.
        """
        wanted, given = plan.privacy, self._budget
        if (wanted.epsilon, wanted.delta) != (given.epsilon, given.delta):
            raise unfit("the privacy specification has another budget than the ledger")
        return self.charge(round_entry(plan, round_number=round_number, roster=roster, survivors=survivors))

    def spent(self) -> Spent:
        """Return the record for a receipt."""
        state, entries = self._seen, self._seen.entries
        return Spent(
            budget=self._budget.digest(),
            ledger=state.head,
            epsilon=decimal_up(self._epsilon(state), places=6),
            delta=self._budget.delta,
            budget_epsilon=self._budget.epsilon,
            rounds=sum(entry.rounds for entry in entries),
            dropouts=sum(entry.dropouts for entry in entries),
            mechanisms=sorted({entry.mechanism for entry in entries}),
            sampling_rates=sorted({entry.sampling_rate for entry in entries}),
            unit=self._budget.unit,
        )

    def _next(self, state: LedgerState, entry: Entry) -> LedgerState:
        if (entry.mechanism == "dp-sgd") != (self._budget.unit == "sample"):
            raise malformed("dp-sgd spends a budget of samples, noise in sums one of workers")
        if state.entries and entry.first_round <= _last_round(state.entries[-1]):
            raise VerificationError(
                f"round {entry.first_round} was charged before", code="ledger-round", stage="ledger"
            )
        if len(state.entries) >= MAX_ENTRIES:
            raise malformed(f"more than {MAX_ENTRIES} entries: charge several steps in one")
        return state.with_entry(entry)

    def _check_budget(self, state: LedgerState) -> None:
        spent = self._epsilon(state)
        if not spent <= float(self._budget.epsilon):
            text = f"this round would bring epsilon to {spent:.4f}, over the budget of {self._budget.epsilon}"
            raise AppraisalError([AppraisalFailure(text, code="dp-budget-spent")], stage="dp")

    def _epsilon(self, state: LedgerState) -> float:
        return state.cost().epsilon(float(self._budget.delta)) if state.entries else 0.0

    def _read(self) -> LedgerState:
        raw = read_bytes(self._path, MAX_LEDGER)
        if raw is None:
            if self._path.exists():
                raise malformed("the ledger is no file, or too large")
            return empty_ledger(self._budget)
        try:
            state = LedgerState.parse(raw)
        except FormatError as exc:
            raise malformed(str(exc)) from None
        if state.budget != self._budget.digest():
            raise malformed("the ledger is of another budget")
        if state.sequence != len(state.entries) or state.heads()[-1] != state.head:
            raise malformed("the ledger's entries do not lead to its head")
        return state


def round_entry(plan: NoisePlan, *, round_number: int, roster: int, survivors: int) -> Entry:
    """Return the entry of one round. See `PrivacyLedger.charge_round`."""
    if survivors > roster:
        raise ValueError("more survivors than the roster has")
    return Entry(
        mechanism=plan.privacy.mechanism,
        first_round=round_number,
        rounds=1,
        sampling="none",
        sampling_rate="1",
        rho=decimal_up(plan.rho(survivors), places=14),
        dropouts=roster - survivors,
    )


def check_not_rolled_back(state: LedgerState, pinned: bytes | None) -> None:
    """Refuse a state that is neither the pinned one nor made from it.

    Args:
        pinned: head (32 bytes) of a state of this ledger; None where no charge was ever made.

    Raises:
        VerificationError: `ledger-rollback`.
    """
    if pinned is None:
        if state.entries:
            raise _rollback()
    elif pinned not in state.heads():
        raise _rollback()


def _extends(state: LedgerState, seen: LedgerState) -> bool:
    return state.entries[: len(seen.entries)] == seen.entries


def _last_round(entry: Entry) -> int:
    return entry.first_round + entry.rounds - 1


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process and thread at a time: a lock on a file beside it, which the system drops when we die."""
    try:
        handle = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise UnavailableError(
            f"the folder of the ledger cannot be written: {exc.strerror}",
            code="ledger-unavailable",
            stage="ledger",
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rollback() -> VerificationError:
    return VerificationError(
        "the privacy ledger was set back: an older state would let the budget be spent twice",
        code="ledger-rollback",
        stage="ledger",
    )
