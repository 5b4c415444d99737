"""What people watch: a live line on a terminal, plain lines in a log, and the summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.figures import format_duration, format_figure
from pipeline.worker import Counts

LOG_SECONDS = 10.0


class Watch:
    """Shows rows, tokens a second, padding, time left and errors, on stderr."""

    def __init__(self, total: int | None, done: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total, self.before = total, done
        self.began = time.monotonic()
        self.first: tuple[float, Counts] | None = None
        self.counts = Counts()
        self._logged = 0.0
        self._workers = 0
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("rows", total=self.total, completed=self.before, figures="starting workers")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.first is not None:
            self._log_progress(self._figures(time.monotonic(), self._workers))

    def update(self, counts: Counts, workers: int) -> None:
        """Take in what all workers have done so far in this run."""
        now = time.monotonic()
        if self.first is None and workers:
            self.first = (now, counts)
        self.counts, self._workers = counts, workers
        figures = self._figures(now, workers)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.before + counts.rows, figures=figures)
        elif now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._log_progress(figures)

    def log(self, message: str) -> None:
        """One line, with the time of day where it goes to a log."""
        stamp = "" if self.console.is_terminal else time.strftime("%H:%M:%S ")
        self.console.print(f"{stamp}{message}", markup=False, highlight=False, soft_wrap=True)

    def _log_progress(self, figures: str) -> None:
        total = f" of {self.total:,}" if self.total is not None else ""
        self.log(f"{self.before + self.counts.rows:,}{total} rows, {figures}")

    def _figures(self, now: float, workers: int) -> str:
        if self.first is None:
            return "starting workers"
        seconds = max(now - self.first[0], 1e-9)
        counts = self.counts
        parts = [
            f"{counts.tokens / seconds:,.0f} tokens/s",
            f"padding {_share(counts.slots - counts.tokens, counts.slots)}",
        ]
        if self.total and counts.rows:
            left = self.total - self.before - counts.rows
            parts.append(f"{format_duration(left * seconds / counts.rows)} left")
        parts.append(f"{counts.errors:,} errors")
        parts.append(f"{workers} worker{'s' if workers != 1 else ''}")
        return ", ".join(parts)


def print_summary(figures: Mapping[str, float | int | str | None]) -> None:
    """The closing table, on stdout."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in figures.items():
        table.add_row(name, format_figure(value))
    Console(file=sys.stdout, highlight=False, soft_wrap=True).print(table)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
