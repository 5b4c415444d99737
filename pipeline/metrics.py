"""What a run tells Ray's own metrics, which a node offers to Prometheus under `/metrics`, as `ray_pipeline_…`.

They leave the driver's node, by Ray, about every ten seconds, where `ray[default]` is installed and Ray was started
with it; elsewhere they go nowhere. What can't be counted never fails a run.
"""

from __future__ import annotations

from collections.abc import Callable

from ray.util.metrics import Counter, Gauge

from pipeline.pace import Pace
from pipeline.plan import Plan
from pipeline.worker import Counts

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
    """The metrics of one command. Counters begin at zero with it: they count its work, not what was done before."""

    def __init__(self, plan: Plan, output: str, warn: Callable[[str, str], None]) -> None:
        self._tags = {"task": str(plan.identity.get("task")), "run": plan.fingerprint[:10], "output": output}
        self._warn = warn
        self._told = dict.fromkeys(COUNTERS, 0)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._parts = 0
        self._broken = False

    def committed(self) -> None:
        """Count a part that was put in place."""
        self._parts += 1

    def update(self, counts: Counts, pace: Pace) -> None:
        """Tell how the command gets on."""
        if self._broken:
            return
        try:
            self._tell(counts, pace)
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
        for name, gauge in self._gauges.items():
            gauge.set(getattr(pace, name), self._tags)
