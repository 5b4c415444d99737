"""Finding the rows of a part that end their worker, by computing ever shorter ranges of its rows."""

from __future__ import annotations

from collections import deque

PIECES = 32
"""A range that ended its worker is cut into so many: each death costs the start of a worker, a range that passes next
to nothing, so three deaths lead from 10,000 rows to the one."""
BARREN = {"died": 8, "failed": 256}
"""So many rows found one after the other, and none that passed, are at fault no more than others would be."""
DEATHS = 2
"""How often a row alone must take its worker down: a single death may be anybody's fault."""


class RowSearch:
    """Goes through a part's rows in order. Somebody else computes `next`, keeps nothing, and says how it went.

    Rows are numbered as in their split.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.found: dict[int, str] = {}
        """The rows at fault, and why."""
        self._pending = deque(_cut(range(start, stop)))
        self._deaths = 0
        self._in_a_row = 0
        self.barren: str | None = None
        """Why rows are not looked for any more: they end one like the other."""

    @property
    def next(self) -> range | None:
        """The rows to compute now; None when all have passed or are found."""
        return self._pending[0] if self._pending else None

    def passed(self) -> None:
        """`next` was computed to its end."""
        self._pending.popleft()
        self._deaths = self._in_a_row = 0

    def failed(self, reason: str) -> None:
        """`next` raised an error, which it will raise again."""
        self._narrow(reason, BARREN["failed"])

    def died(self, reason: str) -> None:
        """`next` took its worker down."""
        self._deaths += 1
        if len(self._pending[0]) > 1 or self._deaths == DEATHS:
            self._narrow(reason, BARREN["died"])

    def _narrow(self, reason: str, most: int) -> None:
        rows = self._pending.popleft()
        self._deaths = 0
        if len(rows) == 1:
            self.found[rows.start] = reason
            self._in_a_row += 1
            if self._in_a_row == most:
                self.barren = f"{most} rows one after the other, from {rows.start - most + 1} on: {reason}"
        else:
            self._pending.extendleft(reversed(_cut(rows)))


def _cut(rows: range) -> list[range]:
    size = max(1, -(-len(rows) // PIECES))
    return [rows[start : start + size] for start in range(0, len(rows), size)]
