"""Openings erased on request: the entry stays in the log, and nobody can say again what it meant.

Spec: docs/spec/broker-state.md, Erasure.
"""

from __future__ import annotations

from sealwright.broker.core import Core, changed
from sealwright.broker.rows import Changes, ErasureRow
from sealwright.broker.state import State, View
from sealwright.errors import AppraisalError, AppraisalFailure


class Erasure:
    """Erases openings, as logged decisions."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def erase(self, commitments: list[bytes]) -> int:
        """Make entries unreadable for good; return how many openings were there.

        Raises:
            AppraisalError: `opening-unknown`: one of them is not there; nothing was erased.
        """
        core, state = self._core, self._core.state
        names = [commitment.hex() for commitment in commitments]

        def work(view: View) -> tuple[Changes, int]:
            missing = [one for one in commitments if not state.ledger.opens(one)]
            if missing:
                text = f"nothing opens {missing[0].hex()} here"
                raise AppraisalError([AppraisalFailure(text, code="opening-unknown")], stage="admin")
            row = ErasureRow(commitments=commitments, at=state.now())
            return {("erased", str(view.epoch + 1)): row.encode()}, len(commitments)

        count = changed(core, "erase", {"commitments": names}, work)
        state.ledger.erase(commitments)
        return count


def erased_commitments(view: View) -> frozenset[bytes]:
    """Return what was erased on purpose."""
    return frozenset(one for row in view.all(ErasureRow, "erased") for one in row.commitments)


def erase_again(state: State) -> None:
    """Erase what was to be erased: a crash came between, or a backup brought it back."""
    with state.lock:
        state.ledger.erase(erased_commitments(state.view()))
