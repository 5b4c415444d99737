"""The worker: holds its models for the whole run, and does the parts it is given.

Reading and tokenizing, computing, and writing are three threads a part, with bounded queues between them. Two parts
may be in a worker at once: the second is read and tokenized while the first computes, and computes while the first is
written. The device is one part's at a time, in the order they came; engines, which continue rows, take those of both.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import __version__
from pipeline.batching import PackRunner, Runner
from pipeline.continuing import EngineRunner
from pipeline.errors import PartAbandoned, WorkerError
from pipeline.footer import Footer
from pipeline.index import Counted
from pipeline.job import Job
from pipeline.mending import StandingPart
from pipeline.messages import Counts, PartReport, WorkerSpec
from pipeline.overlap import Ahead
from pipeline.plan import Part
from pipeline.remarks import of_this_process
from pipeline.steps import load_steps, side_by_side, told_of, without_rows
from pipeline.tasks import Continuing, by_engine
from pipeline.tasks.rows import ROW, RowResults, text_bytes

GROUP_ROWS = 4096
GROUP_PACKS = 32
BYTES_PER_TOKEN = 4
ENGINE_GROUP_BYTES = 2**21
"""Which beginnings rows share is decided group by group, so that no option of the cluster may have a say in it."""
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16_384}


@dataclass(frozen=True, slots=True)
class _Group:
    """A stretch of rows on its way through the stages."""

    rows: pa.Table
    """As read, and last their numbers."""
    prepared: Sequence[Any]
    """What each step's task made of them."""
    tokens: int
    set_aside: Mapping[int, str]
    """Rows of the group that are not computed, and why."""
    spared: Sequence[Collection[int]]
    """Of each step the rows that it has done already."""
    computed: Mapping[int, Any] = field(default_factory=dict)
    """By step, as far as they have come."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps that are computed by the same means."""

    runner: Runner
    places: Sequence[int]
    """Of the steps."""


@dataclass(slots=True)
class _Sums:
    """What the groups of a part add up to."""

    errors: int = 0
    tokens: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, errors: int, tokens: int, figures: Mapping[str, float]) -> None:
        self.errors += errors
        self.tokens += tokens
        self.figures = added(self.figures, figures)


class Worker:
    """A Ray actor's class; it knows nothing of Ray and runs as well without."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._rows = self._errors = self._beats = 0
        self._committing: set[str] = set()
        self._stopped = False
        self._changing = threading.Lock()
        self._remarks = of_this_process()

    def start(self) -> str:
        """Load tokenizer and model; returns the device's name. Raises WorkerError where this node can't."""
        import torch

        if self.spec.device == "cpu":
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            raise WorkerError(
                "a worker was to compute on cuda, and the node it runs on has no CUDA device: "
                "give model.device=cpu, or cluster.gpus_per_worker for nodes that have one"
            )
        self.steps = load_steps(self.spec.steps, self.spec.device)
        self.stages = self._stages()
        return str(torch.cuda.get_device_name()) if self.spec.device == "cuda" else f"cpu, {self.spec.threads} threads"

    def _stages(self) -> list[Stage]:
        """The steps that make packs come together, then each that has engines of its own."""
        spec, budget = self.spec, tokens_per_batch(self.spec.job, self.spec.device)
        engines = {place: step.task for place, step in enumerate(self.steps) if by_engine(step.task)}
        packs = [place for place in range(len(self.steps)) if place not in engines]
        stages = [Stage(PackRunner(budget, spec.threads if spec.device == "cpu" else None), packs)] if packs else []
        for place, task in engines.items():
            stages.append(Stage(self._engines(task, self.steps[place].model, budget, len(engines)), [place]))
        return stages

    def _engines(self, task: Continuing, model: Any, budget: int, among: int) -> EngineRunner:
        from pipeline.memory import cache_size

        spec = self.spec
        model.prepack(head=True)
        size = cache_size(spec.job, model.config, model.dtype, spec.device, spec.threads, among)
        graphs = None if spec.job.cluster.cuda_graphs else False
        return EngineRunner(
            [task.engine(model, size.sequences, size.tokens, budget, graphs) for _ in range(size.engines)]
        )

    def process_id(self) -> int:
        """The operating system's number of this process."""
        return os.getpid()

    def counts(self) -> Counts:
        """What was done since the start; answers while parts are being done."""
        tokens = sum(stage.runner.tokens for stage in self.stages)
        return Counts(self._rows, self._errors, tokens, tokens, self._beats + tokens)

    def stop(self) -> set[str]:
        """Commit no further part; returns the names of those that are being committed."""
        with self._changing:
            self._stopped = True
            return set(self._committing)

    def run(self, part: Part) -> PartReport:
        """Do `part` and commit it. Raises PartAbandoned after `stop`."""
        sums = _Sums()
        with self.spec.store.stage(part, self.spec.schema) as staged, closing(self._results(part, sums)) as tables:
            for table in tables:
                staged.write(table)
            with self._commits(part):
                stamp = staged.commit(self._footer(part, staged.rows, sums.errors, sums.figures))
        counted = Counted(staged.rows, sums.errors, sums.figures)
        return PartReport(part, counted, sums.tokens, stamp, self._remarks.so_far())

    def retry(self, part: Part) -> PartReport:
        """Do those rows of a committed part again that carry an error, and put its file in place anew."""
        sums, standing = _Sums(), self._standing(part)
        with closing(self._results(part, sums, standing)) as tables:
            fresh = list(tables)
        figures = added(standing.footer.figures, sums.figures)
        with self.spec.store.stage(part, self.spec.schema) as staged:
            for table in standing.mended(fresh):
                staged.write(table)
                self._beats += 1
            with self._commits(part):
                stamp = staged.commit(self._footer(part, staged.rows, sums.errors, figures))
        counted = Counted(staged.rows, sums.errors, figures)
        return PartReport(part, counted, sums.tokens, stamp, self._remarks.so_far())

    def probe(self, part: Part) -> None:
        """Compute the rows of `part` and keep nothing: all that counts is whether it ends well."""
        only = self._standing(part) if part.retry else None
        with closing(self._results(part, _Sums(), only, kept=False)) as tables:
            for _ in tables:
                continue

    def _standing(self, part: Part) -> StandingPart:
        widths = {step.name: len(step.task.fields) for step in self.steps}
        return StandingPart(self.spec.store, part, self.spec.schema, widths)

    @contextmanager
    def _commits(self, part: Part) -> Iterator[None]:
        """Inside, `part` is being committed; not entered any more once the worker was stopped."""
        with self._changing:
            if self._stopped:
                raise PartAbandoned(f"{part.name} is not committed, since the run is being stopped")
            self._committing.add(part.name)
        try:
            yield
        finally:
            with self._changing:
                self._committing.discard(part.name)

    def _results(
        self, part: Part, sums: _Sums, only: StandingPart | None = None, kept: bool = True
    ) -> Generator[pa.Table]:
        """The output rows of `part`, group by group, added up in `sums`; of `only` what failed there, where given.

        `kept`: whether they count as done.
        """
        with closing(Ahead(self._computed(part, only), depth=2)) as stages:
            for group in stages:
                results = [
                    without_rows(step.task.finish(group.prepared[place], group.computed[place]), group.spared[place])
                    for place, step in enumerate(self.steps)
                ]
                tokens = group.tokens + sum(int(each.figures.get("new_tokens", 0)) for each in results)
                result = side_by_side([step.name for step in self.steps], results)
                errors = {**result.errors, **self._set_aside(group)}
                yield self._table(group.rows, result, errors)
                sums.add(len(errors), tokens, result.figures)
                self._rows += kept * group.rows.num_rows
                self._errors += kept * len(errors)
                self._beats += 1

    def _prepared(self, part: Part, only: StandingPart | None = None) -> Iterator[_Group]:
        spec = self.spec
        group_bytes = ENGINE_GROUP_BYTES
        if not any(isinstance(stage.runner, EngineRunner) for stage in self.stages):
            group_bytes = tokens_per_batch(spec.job, spec.device) * GROUP_PACKS * BYTES_PER_TOKEN
        for rows in cut_groups(self._numbered(part, only), spec.task_columns, group_bytes):
            numbers = [number - number_of(part, 0) for number in rows.column(rows.num_columns - 1).to_pylist()]
            set_aside = {place: part.set_aside[row] for place, row in enumerate(numbers) if row in part.set_aside}
            spared = [_places(numbers, only.sound[step.name] if only else ()) for step in self.steps]
            prepared = [self._prepare(rows, place, {*set_aside, *spared[place]}) for place in range(len(self.steps))]
            tokens = sum(step.task.num_tokens(each) for step, each in zip(self.steps, prepared, strict=True))
            yield _Group(rows, prepared, tokens, set_aside, spared)

    def _set_aside(self, group: _Group) -> dict[int, str]:
        """The errors of rows that are set aside; of those where only some steps are done again, told of these."""
        names = [step.name for step in self.steps]
        told = {}
        for row, why in group.set_aside.items():
            failed = [name for name, spared in zip(names, group.spared, strict=True) if row not in spared]
            told[row] = told_of(why, failed, names)
        return told

    def _prepare(self, rows: pa.Table, place: int, left_out: Collection[int]) -> Any:
        """What the task of the step at `place` makes of `rows`; those that are left out are nulls to it."""
        columns = self.spec.steps[place].columns
        read = [_without(rows.column(column), left_out) for column in columns.values()]
        return self.steps[place].task.prepare(pa.table([*read, rows.column(rows.num_columns - 1)], [*columns, ROW]))

    def _numbered(self, part: Part, only: StandingPart | None) -> Iterator[pa.RecordBatch]:
        """The rows of `part`, each with its number behind its columns; of `only` those that failed, where given."""
        first = part.start
        for batch in self.spec.source.read(part.split, part.start, part.stop, self.spec.read_columns):
            self._beats += 1
            numbers = number_of(part, first) + np.arange(batch.num_rows)
            numbered = batch.append_column(ROW, pa.array(numbers))
            if only is None:
                yield numbered
            else:
                failed = only.failed
                wanted = failed[bisect_left(failed, first) : bisect_left(failed, first + batch.num_rows)]
                yield from (numbered.slice(row - first, 1) for row in wanted)
            first += batch.num_rows

    def _computed(self, part: Part, only: StandingPart | None = None) -> Iterator[_Group]:
        with closing(Ahead(self._prepared(part, only), depth=2)) as groups, ExitStack() as opened:
            through: Iterator[_Group] = iter(groups)
            for stage in self.stages:
                # Closed here, since an error keeps what it passed through alive, and with it the device's lock.
                through = opened.enter_context(closing(self._through(stage, through)))
            yield from through

    def _through(self, stage: Stage, groups: Iterator[_Group]) -> Generator[_Group]:
        """The groups with what is computed in `stage`."""
        with closing(stage.runner.each(groups, partial(self._compute, stage))) as pairs:
            for group, computed in pairs:
                yield replace(group, computed={**group.computed, **computed})

    def _compute(self, stage: Stage, group: _Group) -> dict[int, Any]:
        steps = [(place, self.steps[place]) for place in stage.places]
        return {place: step.task.compute(step.model, group.prepared[place], stage.runner) for place, step in steps}

    def _table(self, rows: pa.Table, result: RowResults, errors: Mapping[int, str]) -> pa.Table:
        schema = self.spec.schema
        kept = len(schema) - len(result.columns) - 1
        reasons = pa.array([errors.get(row) for row in range(rows.num_rows)], pa.string())
        columns = [rows.column(index) for index in range(kept)]
        return pa.Table.from_arrays([*columns, *result.columns, reasons], schema=schema)

    def _footer(self, part: Part, rows: int, errors: int, figures: Mapping[str, float]) -> Footer:
        steps = self.spec.steps
        return Footer(
            fingerprint=self.spec.fingerprint,
            part=part.name,
            source=part.split.name,
            start=part.start,
            rows=rows,
            errors=errors,
            figures=figures,
            model=", ".join(dict.fromkeys(each.step.model.path for each in steps)),
            revision=", ".join(dict.fromkeys(each.revision for each in steps if each.revision)) or None,
            device=self.spec.device,
            dtype=", ".join(dict.fromkeys(each.dtype for each in steps)),
            version=__version__,
        )


def number_of(part: Part, row: int) -> int:
    """The number of a row of `part`: its place in its split, with the split's place among the splits above it."""
    return part.split.index * 2**40 + row


def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Figures that are summed over rows, of both."""
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in dict.fromkeys([*one, *other])}


def _places(numbers: Sequence[int], rows: Collection[int]) -> set[int]:
    """Where `rows` stand among `numbers`."""
    return {place for place, number in enumerate(numbers) if number in rows}


def _without(column: pa.ChunkedArray, places: Collection[int]) -> pa.ChunkedArray:
    """`column` with null at `places`: a row that is set aside is a null to its task."""
    # By slices: neither `take` nor `if_else` knows every type of text.
    chunks, start = list[pa.Array](), 0
    for place in sorted(places):
        chunks += [*column.slice(start, place - start).chunks, pa.nulls(1, column.type)]
        start = place + 1
    return pa.chunked_array([*chunks, *column.slice(start).chunks], column.type)


def tokens_per_batch(job: Job, device: str) -> int:
    """The token budget of one call of the model."""
    asked = job.cluster.tokens_per_batch
    return TOKENS_PER_BATCH[device] if asked == "auto" else asked


def cut_groups(batches: Iterator[pa.RecordBatch], columns: list[str], group_bytes: int) -> Iterator[pa.Table]:
    """Neighbouring rows in tables of about `group_bytes` of text, and at most GROUP_ROWS.

    Where the cuts fall follows from the rows alone, and not from how the batches came: so a part has the same groups,
    the same packs and the same values whenever it is done.
    """
    held: list[pa.RecordBatch] = []
    rows, size = 0, 0
    for batch in batches:
        sizes = sum((text_bytes(batch.column(name)) for name in columns), np.zeros(batch.num_rows, np.int64))
        start = 0
        for row, row_bytes in enumerate(sizes.tolist()):
            rows, size = rows + 1, size + row_bytes
            if size >= group_bytes or rows == GROUP_ROWS:
                held.append(batch.slice(start, row + 1 - start))
                yield pa.Table.from_batches(held)
                held, rows, size, start = [], 0, 0, row + 1
        if start < batch.num_rows:
            held.append(batch.slice(start))
    if held:
        yield pa.Table.from_batches(held)
