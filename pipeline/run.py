"""What `pipeline run` does: prepare, open the folder, connect to Ray, drive, count, sum up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from types import FrameType
from typing import Any

import yaml

from pipeline.cluster import connected
from pipeline.driver import Driver
from pipeline.errors import Interrupted, JobError, PipelineError, WorkerError
from pipeline.index import Counted
from pipeline.job import Job, TaskSections
from pipeline.lease import Lease
from pipeline.locations import redact_all
from pipeline.messages import PartReport
from pipeline.metrics import Metrics
from pipeline.plan import Part
from pipeline.preflight import Prepared, named_cluster, prepare
from pipeline.progress import Watch
from pipeline.records import Recorder, Tally
from pipeline.steps import summarize
from pipeline.worker import Worker

MOST_FAILURES_TOLD = 5
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Failed = Mapping[str, tuple[Part, Counted]]
"""Committed parts that have rows with an error, by name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    rows: int
    errors: int
    summary: Mapping[str, float | int | str | None]

    @property
    def exit_code(self) -> int:
        """0: every row done; 3: some rows carry an error."""
        return 3 if self.errors else 0


def run_job(job: Job, debug: bool = False, worker_class: type[Worker] = Worker, retry: bool = False) -> Outcome:
    """Run `job`, or go on with it; `retry`: do the rows again that carry an error, and no others.

    Raises PipelineError; its `exit_code` is the command's.
    """
    prepared = prepare(job)
    store = prepared.store
    known = store.opened(prepared.plan)
    if retry and not known:
        raise JobError(f"output.path {store.folder.uri} holds no run whose rows could be done again: run the job first")
    store.create()
    with Lease(store) as lease:
        if prepared.growth is not None and prepared.growth.stale(store):
            prepared = prepare(job)
        store.clear_staging()
        outcome = _run(prepared.as_recorded() if retry else prepared, lease, debug, worker_class, retry)
        store.clear_staging()
    return outcome


def _run(prepared: Prepared, lease: Lease, debug: bool, worker_class: type[Worker], retry: bool) -> Outcome:
    plan, store, tally, stop = prepared.plan, prepared.store, Tally(), _StopRequest()
    with Recorder(store, plan, tally, retry) as recorder:
        lease.check()
        write_job(prepared)
        store.remove(plan.retired())
        left, failed = _resume(prepared, tally, recorder, retry)
        waiting = _failed_only(left, failed) if retry else left
        before = Counted(tally.rows, tally.errors, {})
        with Watch(*((before.errors, 0) if retry else (plan.rows, before.rows))) as watch:
            line = f"{plan.fingerprint[:10]}: {_told(prepared, tally.rows)}; output in {store.folder.uri}"
            watch.log(line, "started", run=plan.fingerprint, output=store.folder.uri, **asdict(watch.pace))
            if prepared.growth is not None and retry:
                waiting = prepared.growth.readable(waiting, lambda line: watch.warn(line, "rows_left"))
            elif prepared.growth is not None:
                for note in prepared.growth.notes():
                    watch.warn(note, "input_changed")
            first, driver = next(waiting, None), None
            if first is not None:
                watchers = (watch, recorder, lease, stop)
                driver = _drive(prepared, chain([first], waiting), failed, tally, watchers, debug, worker_class)
        _refuse_failures(driver)
        store.remove(plan.retired())  # once more: a worker of a killed driver may have been about to commit one
        if plan.rows is not None and tally.rows != plan.rows:
            raise PipelineError(f"{tally.rows} rows are in the output and {plan.rows} in the input: this is a defect")
        summary = _summary(prepared, tally, before.errors if retry else tally.rows - before.rows, driver)
        store.write_record("summary.json", summary)
        return Outcome(tally.rows, tally.errors, summary)


def write_job(prepared: Prepared) -> None:
    """The records of a new run or round. Looks again: another may have begun, and ended, before the lease was had."""
    growth = prepared.growth
    if prepared.store.opened(prepared.plan) and (growth is None or growth.holds(prepared.plan)):
        return
    job = yaml.safe_dump(resolved_job(prepared.job), sort_keys=False, allow_unicode=True)
    prepared.store.write_record("job.yaml", job)
    if growth is not None:
        prepared.store.delete_record("summary.json")  # of the round before: what is there then is no finished run
    prepared.store.write_record("plan.json", prepared.plan.to_json())


def _told(prepared: Prepared, done: int) -> str:
    return f"{done:,} rows done before" if prepared.growth is None else prepared.growth.told(prepared.plan, done)


def _resume(prepared: Prepared, tally: Tally, recorder: Recorder, retry: bool) -> tuple[Iterator[Part], Failed]:
    """Count what is committed; gives what is left to do, in input order, and to `retry` the parts with errors."""
    plan, standing = prepared.plan, prepared.store.listing()
    failed, after = dict[str, tuple[Part, Counted]](), dict[str, Part]()
    for part, counted in prepared.store.committed(plan, standing, recorder.learnt):
        tally.add(counted)
        after.pop(part.name, None)
        if retry and counted.errors:
            failed[part.name] = (part, counted)
        following = plan.following(part, counted.rows)
        if following is not None:
            after[following.name] = following
    recorder.resumed()
    return chain((part for part in plan.parts() if part.name not in standing), after.values()), failed


def _failed_only(left: Iterator[Part], failed: Failed) -> Iterator[Part]:
    missing = next(left, None)
    if missing is not None:
        raise JobError(
            f"{missing.name} is not committed yet, and perhaps more: finish the job by `pipeline run` first, "
            "then its rows with an error can be done again"
        )
    return (replace(part, retry=True) for part, _ in failed.values())


def _drive(
    prepared: Prepared,
    waiting: Iterable[Part],
    failed: Failed,
    tally: Tally,
    watchers: tuple[Watch, Recorder, Lease, _StopRequest],
    debug: bool,
    worker_class: type[Worker],
) -> Driver:
    watch, recorder, lease, stop = watchers
    metrics = Metrics(prepared.plan, prepared.store.folder.uri, watch.warn)

    def tick(driver: Driver) -> None:
        driver.stopping |= stop.asked
        lease.check()
        pace = watch.update(driver.counts, driver.workers)
        recorder.update(driver, pace.seconds_left)
        metrics.update(driver.counts, pace)

    def done(report: PartReport) -> None:
        if report.part.retry:
            tally.remove(failed[report.part.name][1])
        tally.add(report.counted)
        recorder.learnt(report.part.name, report.stamp, report.counted)
        metrics.committed()

    with stop.listening(), connected(prepared.job.cluster, debug), metrics:
        stop.listen()  # only now: Ray takes SIGTERM for itself when it starts
        driver = Driver(prepared.spec, prepared.plan, waiting, prepared.num_gpus, tick, done, watch.warn, worker_class)
        _look_for_room(driver, named_cluster(prepared.job), watch)
        with stop.at_once():
            driver.run()
    stop.check()
    return driver


def _look_for_room(driver: Driver, elsewhere: bool, watch: Watch) -> None:
    """Raise WorkerError where no worker will ever find room; of a cluster, which may grow, it is told."""
    if driver.room():
        return
    takes = ", ".join(_amount(name, amount) for name, amount in driver.needs.items())
    remedy = "give less cluster.cpus_per_worker, gpus_per_worker, memory_per_worker or resources"
    if not elsewhere:
        raise WorkerError(f"a worker takes {takes}, which Ray has not here: {remedy}, or name a cluster.address")
    watch.warn(f"a worker takes {takes}, which no node has now: waiting for one that has; or {remedy}", "waiting")


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:g} GiB of memory" if name == "memory" else f"{amount:g} {name}"


def _refuse_failures(driver: Driver | None) -> None:
    if driver is None or not driver.failures:
        return
    told = [
        f"{each.part.name} ({each.part.split.name}, rows {each.part.start} to {each.part.stop}): {each.reason}"
        for each in driver.failures[:MOST_FAILURES_TOLD]
    ]
    count = len(driver.failures)
    more = f"\n(and {count - len(told)} more)" if count > len(told) else ""
    others = "the run was stopped there" if driver.stopping else "all others are committed"
    raise PipelineError(
        f"{count} part{'s' if count > 1 else ''} failed; {others}, and the same command goes on:\n"
        + "\n".join(told)
        + more
    )


def _summary(prepared: Prepared, tally: Tally, rows: int, driver: Driver | None) -> dict[str, float | int | str | None]:
    seconds = driver.ended - driver.began if driver else 0.0
    return {
        "rows": tally.rows,
        "rows with an error": tally.errors,
        **summarize({each.step.name: each.task for each in prepared.steps}, tally.figures),
        **({} if prepared.growth is None else prepared.growth.figures(prepared.plan)),
        "rows done by this command": rows,
        "seconds of work": round(seconds, 2),
        "tokens a second": round(driver.tokens / seconds, 1) if driver and seconds else None,
        "device": driver.device if driver else None,
        "output": prepared.store.folder.uri,
    }


def resolved_job(job: Job) -> dict[str, Any]:
    """The job with every default, and without secrets, nor options of tasks that it does not do."""
    content: dict[str, Any] = redact_all(job.model_dump(mode="json"))
    sections = TaskSections.model_fields.keys()
    if not job.steps:
        return {**_without(content, {*sections, "steps"}), **{name: content[name] for name in sections}}
    steps = {}
    for step in job.all_steps:
        told = content["steps"][step.name]
        told["prefix"] = step.prefix.removeprefix(job.output.prefix)
        steps[step.name] = {**_without(told, sections), step.task: told[step.task]}
    return {**_without(content, {*sections, "task", "steps"}), "steps": steps}


def _without(content: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


class _StopRequest:
    """Ctrl-C or SIGTERM, kept until the driver asks.

    A handler that raised would do so inside Ray's own calls, which do not expect it; a second signal does, while the
    driver works.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._raises = False

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._signal is not None:
            raise Interrupted(
                f"stopped by {self._signal.name}; what was committed stays: the same command goes on from there"
            )

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a second signal raises Interrupted."""
        self._raises = True
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped at once by a second signal; what was committed stays: the same command goes on from there"
            ) from None
        finally:
            self._raises = False

    def listen(self) -> None:
        """Keep the two signals from now on; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around `listen`: afterwards the two signals do as before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)
        elif self._raises:
            raise KeyboardInterrupt
