"""The driver: hands parts to Ray actors, and survives them.

It holds no rows and no results, only what parts are waiting, which worker has which, and numbers. A worker that dies
is replaced and its parts go to another; a part that fails by its own fault (input that can't be read, output that
can't be written) is not tried again, and the others finish.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import EngineBroken, PipelineError, WorkerError
from pipeline.job import ClusterOptions
from pipeline.plan import Part, Plan
from pipeline.worker import Counts, PartReport, Worker, WorkerSpec

PARTS_IN_FLIGHT = 2
POLL_SECONDS = 0.5
SCALE_SECONDS = 5.0
CALLS_AT_ONCE = PARTS_IN_FLIGHT + 2
"""Threads of an actor: its parts, and the questions that are answered meanwhile."""


@dataclass(slots=True)
class _Assignment:
    part: Part
    attempts: int = 0
    suspect: bool = False
    """It was in a worker that died, perhaps by another's fault: from then on it gets a worker to itself."""


@dataclass(slots=True)
class _Seat:
    """One worker, from the moment it was asked for."""

    actor: Any
    starting: Any
    """The pending answer of `start`; None once the worker is ready."""
    parts: dict[Any, _Assignment] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    asked: Any = None
    """The pending answer of `counts`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A part that was given up, and why."""

    part: Part
    reason: str


class Driver:
    """Runs the parts that are not committed yet. `tick` is called about twice a second with the driver itself."""

    def __init__(
        self,
        spec: WorkerSpec,
        waiting: Iterable[Part],
        num_gpus: float,
        tick: Callable[[Driver], None],
        done: Callable[[PartReport], None],
        worker_class: type[Worker] = Worker,
    ) -> None:
        self.plan: Plan = spec.plan
        self.cluster: ClusterOptions = spec.job.cluster
        self.spec, self.tick, self.done = spec, tick, done
        self.num_gpus, self.num_cpus = num_gpus, spec.threads
        self.failures: list[Failure] = []
        self.device = ""
        self.tokens = 0
        self.began = self.ended = 0.0
        """Monotonic seconds: the first worker is ready, the last part is committed."""
        self._actor_class = ray.remote(worker_class)
        self._source: Iterator[Part] = iter(waiting)
        self._waiting: deque[_Assignment] = deque()
        self._seats: list[_Seat] = []
        self._gone = Counts()
        self._failed_starts = 0
        self._scaled = 0.0

    @property
    def counts(self) -> Counts:
        """What all workers did, those that died included."""
        return sum((seat.counts for seat in self._seats), self._gone)

    @property
    def workers(self) -> int:
        """Workers that are ready."""
        return sum(seat.starting is None for seat in self._seats)

    def run(self) -> None:
        """Do all parts. Raises WorkerError where workers cannot start."""
        try:
            while self._refill() or any(seat.parts for seat in self._seats):
                self._scale()
                self._feed()
                for answer in self._answers():
                    self._take(answer)
                self.tick(self)
            self._last_counts()
            self.tick(self)
        finally:
            for seat in self._seats:
                ray.kill(seat.actor)

    def _refill(self) -> bool:
        """Keep a few assignments at hand, so that a plan of any size costs no memory; False when none is left."""
        while len(self._waiting) <= PARTS_IN_FLIGHT * len(self._seats):
            part = next(self._source, None)
            if part is None:
                break
            self._waiting.append(_Assignment(part))
        return bool(self._waiting)

    def _scale(self) -> None:
        """Ask for as many workers as the cluster has room for, between min and max, and no more than there is work."""
        now = time.monotonic()
        if self._seats and now - self._scaled < SCALE_SECONDS:
            return
        self._scaled = now
        asked = self.cluster.workers
        wanted = asked.max if asked.max is not None else max(asked.min, self.room())
        work = len(self._waiting) + sum(len(seat.parts) for seat in self._seats)
        for _ in range(min(wanted, work) - len(self._seats)):
            self._seats.append(self._hire())

    def room(self) -> int:
        """Workers that the cluster, as it is now, has resources for."""
        resources = ray.cluster_resources()
        by_cpu = int(resources.get("CPU", 0) // self.num_cpus)
        return by_cpu if not self.num_gpus else min(by_cpu, int(resources.get("GPU", 0) / self.num_gpus))

    def _hire(self) -> _Seat:
        actor = self._actor_class.options(
            num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_concurrency=CALLS_AT_ONCE, max_restarts=0
        ).remote(self.spec)
        return _Seat(actor, actor.start.remote())

    def _feed(self) -> None:
        for load in range(PARTS_IN_FLIGHT):
            for seat in self._seats:
                if seat.starting is None and len(seat.parts) == load and self._fits(seat):
                    assignment = self._waiting.popleft()
                    seat.parts[seat.actor.run.remote(assignment.part)] = assignment
        for seat in self._seats:
            if seat.starting is None and seat.asked is None:
                seat.asked = seat.actor.counts.remote()

    def _fits(self, seat: _Seat) -> bool:
        """Whether the next part may go to `seat`: a suspect neither joins another part nor is joined."""
        if not self._waiting:
            return False
        return not seat.parts or not any(each.suspect for each in [self._waiting[0], *seat.parts.values()])

    def _answers(self) -> list[Any]:
        pending = [answer for seat in self._seats for answer in [seat.starting, *seat.parts] if answer is not None]
        self._collect_counts()
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0) if pending else ([], [])
        if not ready and pending:
            ready, _ = ray.wait(pending, num_returns=1, timeout=POLL_SECONDS)
        return list(ready)

    def _collect_counts(self) -> None:
        asked = {seat.asked: seat for seat in self._seats if seat.asked is not None}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0) if asked else ([], [])
        for answer in ready:
            seat, asked[answer].asked = asked[answer], None
            try:
                seat.counts = ray.get(answer)
            except RayError as error:
                if not seat.parts:  # else the part's own answer tells of the death
                    self._died(seat, error)

    def _last_counts(self) -> None:
        ready = [seat for seat in self._seats if seat.starting is None]
        asked = {seat.actor.counts.remote(): seat for seat in ready}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS) if asked else ([], [])
        for answer in answered:
            with contextlib.suppress(RayError):  # a worker that dies after its last part has nothing to add
                asked[answer].counts = ray.get(answer)

    def _take(self, answer: Any) -> None:
        seat = next((seat for seat in self._seats if answer == seat.starting or answer in seat.parts), None)
        if seat is None:
            return  # its worker died, and its part was handed on
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            self._failed(seat, answer, error)
        except RayError as error:
            self._died(seat, error)
        else:
            if answer == seat.starting:
                seat.starting, self.device, self._failed_starts = None, result, 0
                self.began = self.began or time.monotonic()
            else:
                self._finished(seat, seat.parts.pop(answer).part, result)

    def _finished(self, seat: _Seat, part: Part, report: PartReport) -> None:
        self.tokens += report.tokens
        self.ended = time.monotonic()
        self.done(report)
        following = self.plan.following(part, report.rows)
        if following is not None:
            # To the same worker, where the shard stands open at this very row.
            seat.parts[seat.actor.run.remote(following)] = _Assignment(following)

    def _failed(self, seat: _Seat, answer: Any, error: RayTaskError) -> None:
        """The worker lives and says no: of a start that ends the run, of a part it ends the part.

        One whose engine is broken is as good as dead.
        """
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, EngineBroken):
            ray.kill(seat.actor)
            self._died(seat, cause)
            return
        reason = str(cause) if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {cause}"
        if answer == seat.starting:
            raise WorkerError(f"a worker could not start: {reason}") from error
        self.failures.append(Failure(seat.parts.pop(answer).part, reason))

    def _died(self, seat: _Seat, error: Exception) -> None:
        self._seats.remove(seat)
        self._gone += seat.counts
        self._scaled = 0.0
        if seat.starting is not None:
            self._failed_starts += 1
            if self._failed_starts == self.cluster.attempts:
                raise WorkerError(
                    f"{self.cluster.attempts} workers in a row died while loading the model; "
                    f"the node may lack the memory for it. Ray says: {_first_line(error)}"
                ) from error
        alone = len(seat.parts) == 1
        for assignment in reversed(seat.parts.values()):
            assignment.suspect = True
            assignment.attempts += alone
            if assignment.attempts < self.cluster.attempts:
                self._waiting.appendleft(assignment)
            else:
                reason = f"took its worker down {assignment.attempts} times; the last time it was: {_first_line(error)}"
                self.failures.append(Failure(assignment.part, reason))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])
