"""The driver: hands parts to Ray actors, and survives them.

It holds no rows and no results, only what parts are waiting, which worker has which, and numbers. A worker that dies
or hangs is replaced and its parts go to another. A part that keeps ending its worker is searched for the row that does
it (search.py), which is set aside. A part whose input can't be read is given up, and the others finish; output that
can't be written ends the run.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.assignment import Assignment
from pipeline.deaths import Death, death_of
from pipeline.errors import PipelineError, StoreError, WorkerBroken, WorkerError
from pipeline.job import ClusterOptions
from pipeline.messages import Counts, PartReport, WorkerSpec
from pipeline.plan import Part, Plan
from pipeline.worker import Worker

PARTS_IN_FLIGHT = 2
POLL_SECONDS = 0.5
SCALE_SECONDS = 5.0
MOST_DOUBLINGS = 5
"""Of SCALE_SECONDS, once for every start that failed since one went well."""
WRITE_SECONDS = 30.0
"""What a stopped run waits for parts that are being committed."""
CALLS_AT_ONCE = PARTS_IN_FLIGHT + 2
"""Threads of an actor: its parts, and the questions that are answered meanwhile."""
EVENTS_KEPT = 20
DEATHS_IN_A_ROW = 20
"""So many workers that died since anything was done, and a search whose rows all end alike, are no row's fault."""
STOP_SECONDS = 5.0
"""What a stopped run waits for its workers to say what they are committing."""


@dataclass(slots=True)
class _Seat:
    """One worker, from the moment it was asked for."""

    actor: Any
    starting: Any
    """The pending answer of `start`; None once the worker is ready."""
    parts: dict[Any, Assignment] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    asked: Any = None
    """The pending answer of `counts`."""
    moved: float = 0.0
    """Monotonic seconds when the worker was last seen to do something, or was given something to do."""


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
        plan: Plan,
        waiting: Iterable[Part],
        num_gpus: float,
        tick: Callable[[Driver], None],
        done: Callable[[PartReport], None],
        tell: Callable[[str, str], None],
        worker_class: type[Worker] = Worker,
    ) -> None:
        self.plan = plan
        self.cluster: ClusterOptions = spec.job.cluster
        self.tick, self.done, self.tell = tick, done, tell
        self.events: deque[tuple[float, str]] = deque(maxlen=EVENTS_KEPT)
        """What happened last beside the work, each with its Unix time."""
        self.needs = _needs(self.cluster, spec.threads, num_gpus)
        self.failures: list[Failure] = []
        self.device = ""
        self.tokens = 0
        self.began = self.ended = 0.0
        """Monotonic seconds: the first worker is ready, the last part is committed."""
        self.stopping = False
        """Set by `tick`, or when the output can't be written: what is being committed is let end, and nothing else."""
        self._spec = ray.put(spec)
        self._actor_class = ray.remote(worker_class)
        self._source: Iterator[Part] = iter(waiting)
        self._waiting: deque[Assignment] = deque()
        self._seats: list[_Seat] = []
        self._gone = Counts()
        self._remarks: set[str] = set()
        self._failed_starts = 0
        self._deaths = 0
        """Since anything was done."""
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
        """Do all parts, or until `stopping`. Raises WorkerError where workers cannot start or live."""
        try:
            while not self.stopping and (self._refill() or any(seat.parts for seat in self._seats)):
                self._scale()
                self._feed()
                for answer in self._answers():
                    self._take(answer)
                self._replace_hung()
                self.tick(self)
            if self.stopping:
                self._end_writes()
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
            self._waiting.append(Assignment(part))
        return bool(self._waiting)

    def _scale(self) -> None:
        """Ask for as many workers as the cluster has room for, between min and max, and no more than there is work."""
        now = time.monotonic()
        if self._seats and now - self._scaled < SCALE_SECONDS * 2 ** min(self._failed_starts, MOST_DOUBLINGS):
            return
        self._scaled = now
        asked = self.cluster.workers
        wanted = asked.max if asked.max is not None else max(asked.min, self.room())
        work = len(self._waiting) + sum(len(seat.parts) for seat in self._seats)
        for _ in range(min(wanted, work) - len(self._seats)):
            self._seats.append(self._hire())

    def room(self) -> int:
        """Workers that the cluster, as it is now, has resources for."""
        return room_on([node["Resources"] for node in ray.nodes() if node["Alive"]], self.needs)

    def _hire(self) -> _Seat:
        needs = dict(self.needs)
        actor = self._actor_class.options(
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU", 0),
            memory=needs.pop("memory", None),
            resources=needs,
            scheduling_strategy=self.cluster.placement.upper(),
            max_concurrency=CALLS_AT_ONCE,
            max_restarts=0,
        ).remote(self._spec)
        return _Seat(actor, actor.start.remote())

    def _feed(self) -> None:
        for load in range(PARTS_IN_FLIGHT):
            for seat in self._seats:
                if seat.starting is None and len(seat.parts) == load and self._fits(seat):
                    self._hand(seat, self._waiting.popleft())
        for seat in self._seats:
            if seat.starting is None and seat.asked is None:
                seat.asked = seat.actor.counts.remote()

    def _fits(self, seat: _Seat) -> bool:
        """Whether the next part may go to `seat`: a suspect neither joins another part nor is joined."""
        if not self._waiting:
            return False
        return not seat.parts or not any(each.suspect for each in [self._waiting[0], *seat.parts.values()])

    def _hand(self, seat: _Seat, assignment: Assignment) -> None:
        """Give a worker a part to do, or rows of it to try."""
        if assignment.probing:
            method = seat.actor.probe
        else:
            method = seat.actor.retry if assignment.part.retry else seat.actor.run
        seat.parts[method.remote(assignment.call)] = assignment
        seat.moved = time.monotonic()

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
                counts = ray.get(answer)
            except RayError as error:
                if not seat.parts:  # else the part's own answer tells of the death
                    self._died(seat, death_of(error))
                continue
            if counts.beats != seat.counts.beats:
                seat.moved = time.monotonic()
            seat.counts = counts

    def _last_counts(self) -> None:
        ready = [seat for seat in self._seats if seat.starting is None]
        asked = {seat.actor.counts.remote(): seat for seat in ready}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS) if asked else ([], [])
        for answer in answered:
            with contextlib.suppress(RayError):  # a worker that dies after its last part has nothing to add
                asked[answer].counts = ray.get(answer)

    def _replace_hung(self) -> None:
        """Replace workers that have something to do and were not seen to do anything for a long time."""
        heartbeat, now = self.cluster.heartbeat, time.monotonic()
        for seat in list(self._seats):
            if heartbeat is not None and seat.parts and now - seat.moved > heartbeat:
                self._died(seat, Death(f"it did nothing for {heartbeat:g} s (cluster.heartbeat)"))

    def _take(self, answer: Any) -> None:
        seat = next((seat for seat in self._seats if answer == seat.starting or answer in seat.parts), None)
        if seat is None:
            return  # its worker died, and its part was handed on
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            self._raised(seat, answer, error)
        except RayError as error:
            self._died(seat, death_of(error))
        else:
            if answer == seat.starting:
                seat.starting, self.device, self._failed_starts = None, result, 0
                self.began = self.began or time.monotonic()
                return
            self._deaths = 0
            assignment = seat.parts.pop(answer)
            if assignment.probing:
                assignment.passed()
                self._hand(seat, assignment)
            else:
                self._finished(seat, assignment.part, result)

    def _finished(self, seat: _Seat, part: Part, report: PartReport) -> None:
        self._committed(report)
        for row, why in part.set_aside.items():
            self._note(f"{part.split.name}, row {row} is set aside: {why}", "row_set_aside")
        following = None if part.retry else self.plan.following(part, report.counted.rows)
        if following is not None:
            # To the same worker, where the shard stands open at this very row.
            self._hand(seat, Assignment(following))

    def _raised(self, seat: _Seat, answer: Any, error: RayTaskError) -> None:
        """The worker lives and says no: of a start that ends the run.

        Of a part it ends the part, where it is the input's or the output's fault; else some row is at fault.
        """
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, WorkerBroken):
            self._died(seat, Death(str(cause)))
            return
        reason = str(cause) if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {cause}"
        if answer == seat.starting:
            if not self.began:
                raise WorkerError(f"a worker could not start: {reason}") from error
            self._died(seat, Death(f"it could not start: {reason}"))  # its node's fault: others have started
            return
        assignment = seat.parts.pop(answer)
        if isinstance(cause, PipelineError):
            self.failures.append(Failure(assignment.part, reason))
            # What can't be written now can't be in a minute: whatever else is computed would be for nothing.
            self.stopping |= isinstance(cause, StoreError)
            return
        assignment.raised(reason)
        self._give_up(assignment) if assignment.given_up else self._hand(seat, assignment)

    def _died(self, seat: _Seat, death: Death) -> None:
        """A worker is gone, or as good as gone: another gets its parts."""
        ray.kill(seat.actor)
        self._seats.remove(seat)
        self._gone += seat.counts
        if seat.starting is None:
            self._scaled = 0.0
        self._count_death(seat, death)
        alone = len(seat.parts) == 1
        for assignment in reversed(seat.parts.values()):
            if not death.innocent:
                assignment.died(death.reason, alone, self.cluster.attempts)
            self._give_up(assignment, death) if assignment.given_up else self._waiting.appendleft(assignment)

    def _note(self, message: str, event: str) -> None:
        self.events.append((time.time(), message))
        self.tell(message, event)

    def _give_up(self, assignment: Assignment, death: Death | None = None) -> None:
        if death is not None and self._deaths >= DEATHS_IN_A_ROW:
            raise WorkerError(
                f"{self._deaths} workers died and nothing was done meanwhile, so no single row is at fault. "
                f"The last: {death.reason}. Look at the nodes' memory and drivers; the same command goes on from here"
            )
        self.failures.append(Failure(assignment.part, str(assignment.given_up)))

    def _count_death(self, seat: _Seat, death: Death) -> None:
        """Raise WorkerError where workers die whatever they are given."""
        had = f", and goes on with its {len(seat.parts)} parts" if seat.parts else ""
        self._note(f"a worker is gone: {death.reason}. Another takes its place{had}", "worker_lost")
        if death.innocent:
            return
        self._deaths += 1
        if seat.starting is None:
            return
        self._failed_starts += 1
        if self._failed_starts >= self.cluster.attempts and not self.workers:
            raise WorkerError(
                f"{self.cluster.attempts} workers in a row died while loading the model; "
                f"the node may lack the memory for it. The last: {death.reason}"
            )

    def _end_writes(self) -> None:
        """Let parts that are being committed end, take in those that are, and start nothing."""
        asked = [seat.actor.stop.remote() for seat in self._seats if seat.starting is None]
        names = set[str]()
        for answer in ray.wait(asked, num_returns=len(asked), timeout=STOP_SECONDS)[0] if asked else []:
            with contextlib.suppress(RayError):
                names |= ray.get(answer)
        until = time.monotonic() + WRITE_SECONDS
        while True:
            parts = [answer for seat in self._seats for answer in seat.parts]
            for answer in ray.wait(parts, num_returns=len(parts), timeout=POLL_SECONDS)[0] if parts else []:
                self._take_write(answer)
            left = [each for seat in self._seats for each in seat.parts.values() if each.part.name in names]
            if not any(not each.probing for each in left) or time.monotonic() > until:
                return

    def _take_write(self, answer: Any) -> None:
        seat = next(seat for seat in self._seats if answer in seat.parts)
        probing = seat.parts.pop(answer).probing
        with contextlib.suppress(RayError):  # what is not committed is done by the next command
            report = ray.get(answer)
            if not probing:
                self._committed(report)

    def _committed(self, report: PartReport) -> None:
        self.tokens += report.tokens
        self.ended = time.monotonic()
        self.done(report)
        for remark in report.remarks:
            if remark not in self._remarks:
                self._remarks.add(remark)
                self._note(f"a worker warns: {remark}", "worker_warning")


def room_on(nodes: Iterable[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Workers that nodes with these resources can hold: each of them takes all that it needs of one node."""
    return sum(min(int(held.get(name, 0) / amount) for name, amount in needs.items()) for held in nodes)


def _needs(cluster: ClusterOptions, cpus: int, gpus: float) -> dict[str, float]:
    """What one worker takes of Ray's resources, by their names."""
    memory = 0 if cluster.memory_per_worker is None else int(cluster.memory_per_worker * 2**30)
    needs = {"CPU": cpus, "GPU": gpus, "memory": memory, **cluster.resources}
    return {name: amount for name, amount in needs.items() if amount}
