"""What people watch: a live line on a terminal, plain lines in a log, and the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline import log
from pipeline.figures import format_duration, format_figure
from pipeline.messages import Counts
from pipeline.pace import Pace, pace_of

LOG_SECONDS = 10.0
Figures = Mapping[str, float | int | str | None]


class Watch:
    """Shows rows, tokens a second, padding, time left and errors, on stderr."""

    def __init__(self, total: int | None, done: int, console: Console | None = None) -> None:
        self.console = console or log.console()
        self.total, self.before = total, done
        self.counts = Counts()
        self.pace = Pace(done, total)
        self._first: float | None = None
        """Monotonic seconds when the first worker was ready."""
        self._logged = 0.0
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
        elif self._first is not None:
            self._log_progress()

    def update(self, counts: Counts, workers: int) -> Pace:
        """Take in what all workers have done so far in this run; returns how it gets on."""
        now = time.monotonic()
        if self._first is None and workers:
            self._first = now
        seconds = None if self._first is None else max(now - self._first, 1e-9)
        self.counts, self.pace = counts, pace_of(counts, self.before, self.total, seconds, workers)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.pace.rows, figures=self._figures())
        elif now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._log_progress()
        return self.pace

    def log(self, message: str, event: str = "note", level: str = "info", **figures: Any) -> None:
        """One line, with the time of day where it goes to a log; `log.tell` says what of it is told as JSON."""
        if log.as_json():
            log.tell(message, event, level, **figures)
            return
        stamp = "" if self.console.is_terminal else time.strftime("%H:%M:%S ")
        self.console.print(f"{stamp}{message}", markup=False, highlight=False, soft_wrap=True)

    def warn(self, message: str, event: str) -> None:
        """One line on what should not happen often."""
        self.log(message, event, "warning")

    def _log_progress(self) -> None:
        total = f" of {self.total:,}" if self.total is not None else ""
        self.log(f"{self.pace.rows:,}{total} rows, {self._figures()}", "progress", **asdict(self.pace))

    def _figures(self) -> str:
        pace, slots = self.pace, self.counts.slots
        if pace.tokens_per_second is None:
            return "starting workers"
        parts = [f"{pace.tokens_per_second:,.0f} tokens/s", f"padding {_share(slots - pace.tokens, slots)}"]
        if pace.seconds_left is not None:
            parts.append(f"{format_duration(pace.seconds_left)} left")
        parts.append(f"{pace.errors:,} errors")
        parts.append(f"{pace.workers} worker{'s' if pace.workers != 1 else ''}")
        return ", ".join(parts)


def tell_summary(figures: Figures, exit_code: int) -> None:
    """How a run ended: the closing table on stdout, or one object beside the others where those are told."""
    if log.as_json():
        rows = f"{figures['rows']} rows, {figures['rows with an error']} with an error"
        log.tell(f"finished: {rows}", "finished", summary=figures, exit_code=exit_code)
    else:
        print_summary(figures)


def print_summary(figures: Figures) -> None:
    """The closing table, on stdout."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {format_figure(value)}")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
