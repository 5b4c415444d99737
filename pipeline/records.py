"""What a run writes down of itself while it goes on: `_pipeline/progress.json`, and the index of its parts.

Both are for others to read (`pipeline status`, the next resume). That one can't be written never fails the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from pipeline.errors import Interrupted, LeaseHeld, PipelineError
from pipeline.index import Counted, Entry, Stamp
from pipeline.index_files import add_to_index, join_index
from pipeline.plan import Plan
from pipeline.store import Store

if TYPE_CHECKING:
    from pipeline.driver import Driver
    from pipeline.messages import Counts

PROGRESS = "progress.json"
LOCAL_SECONDS, REMOTE_SECONDS = 5.0, 15.0
"""Between two writes of the progress, on a disk and on an object store."""
INDEX_SECONDS, INDEX_PARTS = 300.0, 2000
"""What is committed goes into the index after so long, or so many."""
MOST_EVENTS = 20


@dataclass(slots=True)
class Tally:
    """Rows, errors and the task's figures, over every committed part."""

    rows: int = 0
    errors: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, counted: Counted) -> None:
        """Count a part."""
        self._count(counted, 1)

    def remove(self, counted: Counted) -> None:
        """Count a part no more, since another takes its place."""
        self._count(counted, -1)

    def _count(self, counted: Counted, times: int) -> None:
        self.rows += times * counted.rows
        self.errors += times * counted.errors
        for name, value in counted.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + times * value


class Recorder:
    """Writes in a thread of its own, so that a slow store holds nobody up; what isn't written in time is left out."""

    def __init__(self, store: Store, plan: Plan, tally: Tally, retry: bool = False) -> None:
        """`retry`: rows that are counted already are done again."""
        self.store, self.plan, self.tally, self.retry = store, plan, tally, retry
        self.every = LOCAL_SECONDS if store.folder.local else REMOTE_SECONDS
        self.content: dict[str, Any] = {
            "state": "running",
            "reason": None,
            "fingerprint": plan.fingerprint,
            "started": time.time(),
            "rows_total": plan.rows,
        }
        self._before = (0, 0)
        self._fresh: dict[str, Entry] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._writing: Future[None] | None = None
        self._written = 0.0
        self._indexed = time.monotonic()

    def __enter__(self) -> Self:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, LeaseHeld):  # else the folder is another driver's
            interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
            state = "finished" if error is None else "interrupted" if interrupted else "failed"
            self.content |= {"state": state, "reason": None if error is None else str(error) or type(error).__name__}
            self.content |= {"rows": self.tally.rows, "errors": self.tally.errors, "workers": 0}
            self._write(index=True)
        self._pool.shutdown()

    def learnt(self, name: str, stamp: Stamp | None, counted: Counted) -> None:
        """Take note of a part that stands in the folder, and that the index does not know."""
        if stamp is not None:
            self._fresh[name] = Entry(stamp, counted)
        if len(self._fresh) >= INDEX_PARTS and self.idle:
            self._write(index=True)

    def resumed(self) -> None:
        """All that was committed before is counted."""
        self._pool.submit(self._join_index)
        self._before = (self.tally.rows, self.tally.errors)
        self.content |= {"rows": self.tally.rows, "errors": self.tally.errors}

    def update(self, driver: Driver, seconds_left: float | None = None) -> None:
        """Write down what the driver says, where the last time is long enough ago and has come to its end."""
        counts = driver.counts
        rows, errors = (self.tally.rows, self.tally.errors) if self.retry else self._so_far(counts)
        seconds = time.monotonic() - driver.began if driver.began else 0.0
        self.content |= {
            "rows": rows,
            "errors": errors,
            "tokens": counts.tokens,
            "rows_a_second": counts.rows / seconds if seconds else None,
            "tokens_a_second": counts.tokens / seconds if seconds else None,
            "seconds_left": seconds_left,
            "workers": driver.workers,
            "events": list(getattr(driver, "events", ()))[-MOST_EVENTS:],
        }
        now = time.monotonic()
        if now - self._written >= self.every and self.idle:
            self._write(index=now - self._indexed >= INDEX_SECONDS)

    @property
    def idle(self) -> bool:
        """Whether all that was to be written down is."""
        return self._writing is None or self._writing.done()

    def _so_far(self, counts: Counts) -> tuple[int, int]:
        """Rows and errors, those of parts that aren't committed included."""
        total = self.plan.rows
        rows = self._before[0] + counts.rows  # those of attempts that came to nothing included
        return rows if total is None else min(rows, total), self._before[1] + counts.errors

    def _write(self, index: bool = False) -> None:
        self._written = time.monotonic()
        fresh: dict[str, Entry] = {}
        if index:
            self._indexed = self._written
            fresh, self._fresh = self._fresh, {}
        self._writing = self._pool.submit(self._put, {**self.content, "updated": time.time()}, fresh)

    def _put(self, content: Mapping[str, Any], fresh: Mapping[str, Entry]) -> None:
        with contextlib.suppress(OSError, PipelineError, pa.ArrowException):
            self.store.write_record(PROGRESS, content)
        with contextlib.suppress(OSError, PipelineError, pa.ArrowException):
            if fresh:
                add_to_index(self.store, self.plan, fresh)

    def _join_index(self) -> None:
        with contextlib.suppress(OSError, PipelineError, pa.ArrowException):
            join_index(self.store, self.plan)
