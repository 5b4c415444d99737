"""What a run tells Ray's own metrics, which a node offers to Prometheus under `/metrics`, as `ray_pipeline_…`.

Ray hands them on every ten seconds and when a command ends, where a node was started with `ray[default]` installed;
elsewhere they go nowhere. That they can't be told never fails a run.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from ray.util.metrics import Counter, Gauge

from pipeline.identity import tasks_of
from pipeline.messages import Counts
from pipeline.pace import Pace
from pipeline.plan import Plan

TAGS = ("task", "run", "output")
COUNTERS = {
    "rows": "Rows computed by this command, those of attempts that came to nothing included",
    "errors": "Of those rows, the ones with an error",
    "tokens": "Tokens computed by this command",
    "parts": "Parts committed by this command",
}
GAUGES = {
    "workers": "Workers that are ready",
    "rows_per_second": "Rows computed a second since the first worker was ready",
    "tokens_per_second": "Tokens computed a second since the first worker was ready",
    "seconds_left": "Time left at this pace",
}


class Metrics:
    """The metrics of one command, which live inside its `with` block.

    Counters begin at zero with the command, and count its work, not what was done before; gauges end at zero.
    """

    def __init__(self, plan: Plan, output: str, warn: Callable[[str, str], None]) -> None:
        self._tags = {"task": str(tasks_of(plan.identity)), "run": plan.fingerprint[:10], "output": output}
        self._warn = warn
        self._told = dict.fromkeys(COUNTERS, 0)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._parts = 0
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guarded(lambda: self._set(Pace(rows_per_second=0.0, tokens_per_second=0.0, seconds_left=0.0)))

    def committed(self) -> None:
        """Count a part that was put in place."""
        self._parts += 1

    def update(self, counts: Counts, pace: Pace) -> None:
        """Tell how the command gets on."""
        self._guarded(lambda: self._tell(counts, pace))

    def _guarded(self, tell: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            tell()
        except Exception as error:  # Ray's, for which no run is to fail
            self._broken = True
            self._warn(f"no more metrics: {type(error).__name__}: {error}; the run goes on", "metrics_lost")

    def _tell(self, counts: Counts, pace: Pace) -> None:
        if not self._counters:
            self._counters = {name: Counter(f"pipeline_{name}", told, TAGS) for name, told in COUNTERS.items()}
            self._gauges = {name: Gauge(f"pipeline_{name}", told, TAGS) for name, told in GAUGES.items()}
        done = {"rows": counts.rows, "errors": counts.errors, "tokens": counts.tokens, "parts": self._parts}
        for name, value in done.items():
            if value > self._told[name]:  # Ray refuses to add nothing
                self._counters[name].inc(value - self._told[name], self._tags)
                self._told[name] = value
        self._set(pace)

    def _set(self, pace: Pace) -> None:
        for name, gauge in self._gauges.items():
            gauge.set(getattr(pace, name), self._tags)
