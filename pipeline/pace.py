"""How far a command is and how fast it goes: the figures of the live line, the logs, the records and the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.messages import Counts


@dataclass(frozen=True, slots=True)
class Pace:
    """One moment of a command; rates are over the time since its first worker was ready, None before."""

    rows: int = 0
    """In the output, those of parts that aren't committed yet included; of retry-errors those done again."""
    rows_total: int | None = None
    """Rows that it ends with; None where only reading can tell."""
    errors: int = 0
    """Rows with an error that this command met."""
    tokens: int = 0
    """Computed by this command."""
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    workers: int = 0
    """Those that are ready."""


def pace_of(counts: Counts, before: int, total: int | None, seconds: float | None, workers: int) -> Pace:
    """The pace of a command that did `counts` in `seconds`, after `before` of `total` rows were done already."""
    rate = counts.rows / seconds if seconds else None
    rows = before + counts.rows
    return Pace(
        rows=rows,
        rows_total=total,
        errors=counts.errors,
        tokens=counts.tokens,
        rows_per_second=rate,
        tokens_per_second=counts.tokens / seconds if seconds else None,
        seconds_left=max(total - rows, 0) / rate if rate and total is not None else None,
        workers=workers,
    )
