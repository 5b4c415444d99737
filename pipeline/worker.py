"""The worker: holds one model for the whole run, and does the parts it is given.

Reading and tokenizing, computing, and writing are three threads a part, with bounded queues between them. Two parts
may be in a worker at once: the second is read and tokenized while the first computes, and computes while the first is
written. The device is one part's at a time, in the order they came; engines, which continue rows, take those of both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import __version__
from pipeline.batching import PackRunner, Runner
from pipeline.continuing import EngineRunner
from pipeline.errors import WorkerError
from pipeline.job import Job
from pipeline.overlap import Ahead
from pipeline.plan import Part, Plan
from pipeline.sources import Source
from pipeline.store import Footer, Store
from pipeline.tasks import Continuing, make_task
from pipeline.tasks.rows import ROW, RowResults, text_bytes

GROUP_ROWS = 4096
GROUP_PACKS = 32
BYTES_PER_TOKEN = 4
ENGINE_GROUP_BYTES = 2**21
"""Which beginnings rows share is decided group by group, so that no option of the cluster may have a say in it."""
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16_384}


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker needs to start, on whatever node."""

    job: Job
    plan: Plan
    source: Source
    store: Store
    model: str
    """Absolute folder, or Hub id."""
    revision: str | None
    """The resolved commit, so that every worker holds the same weights."""
    architecture: str
    """Name of the gpt2model class."""
    device: str
    dtype: str
    threads: int
    eos_token_id: tuple[int, ...] | None = None
    """The tokens that end a text, where the checkpoint's generation_config.json names them."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a worker has done since it started."""

    rows: int = 0
    errors: int = 0
    tokens: int = 0
    slots: int = 0
    """Places in the batches that held the tokens; the difference is padding."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.rows + other.rows,
            self.errors + other.errors,
            self.tokens + other.tokens,
            self.slots + other.slots,
        )


@dataclass(frozen=True, slots=True)
class PartReport:
    """What the driver is told of a committed part."""

    part: Part
    rows: int
    errors: int
    tokens: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Group:
    """A stretch of rows on its way through the stages."""

    rows: pa.Table
    prepared: Any
    tokens: int


class Worker:
    """A Ray actor's class; it knows nothing of Ray and runs as well without."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._rows = self._errors = 0

    def start(self) -> str:
        """Load tokenizer and model; returns the device's name. Raises WorkerError where this node can't."""
        import torch

        import gpt2model

        if self.spec.device == "cpu":
            torch.set_num_threads(1)
        elif not torch.cuda.is_available():
            raise WorkerError(
                "a worker was to compute on cuda, and the node it runs on has no CUDA device: "
                "give model.device=cpu, or cluster.gpus_per_worker for nodes that have one"
            )
        folder, revision = self.spec.model, self.spec.revision
        tokenizer = gpt2model.GPT2Tokenizer.from_pretrained(folder, revision=revision)
        self.model = getattr(gpt2model, self.spec.architecture).from_pretrained(
            folder,
            revision=revision,
            dtype=self.spec.dtype,
            quantization=self.spec.job.model.quantization_method,
            device=self.spec.device,
        )
        # Before there are threads: bitsandbytes' 8-bit layers rearrange themselves in their first call.
        self.model.base_model.forward_packed(gpt2model.pack([[0]]).to(self.model.device))
        self.task = make_task(self.spec.job, tokenizer, self.model.config, self.spec.eos_token_id)
        self.runner = self._runner()
        return str(torch.cuda.get_device_name()) if self.spec.device == "cuda" else f"cpu, {self.spec.threads} threads"

    def _runner(self) -> Runner:
        from pipeline.memory import cache_size

        spec, budget = self.spec, tokens_per_batch(self.spec.job, self.spec.device)
        if isinstance(self.task, Continuing) and self.task.by_engine:
            size = cache_size(spec.job, self.model.config, self.model.dtype, spec.device, spec.threads)
            made = (self.task.engine(self.model, size.sequences, size.tokens, budget) for _ in range(size.engines))
            return EngineRunner(list(made))
        return PackRunner(budget, spec.threads if spec.device == "cpu" else None)

    def process_id(self) -> int:
        """The operating system's number of this process."""
        return os.getpid()

    def counts(self) -> Counts:
        """What was done since the start; answers while parts are being done."""
        tokens = self.runner.tokens
        return Counts(self._rows, self._errors, tokens, tokens)

    def run(self, part: Part) -> PartReport:
        """Do `part` and commit it."""
        errors, tokens, figures = 0, 0, dict[str, float]()
        with (
            self.spec.store.stage(part, self.spec.plan.schema) as staged,
            closing(Ahead(self._computed(part), depth=2)) as stages,
        ):
            for group, computed in stages:
                result = self.task.finish(group.prepared, computed)
                staged.write(self._table(group.rows, result))
                errors += len(result.errors)
                tokens += group.tokens + int(result.figures.get("new_tokens", 0))
                for name, value in result.figures.items():
                    figures[name] = figures.get(name, 0.0) + value
                self._rows += group.rows.num_rows
                self._errors += len(result.errors)
            staged.commit(self._footer(part, staged.rows, errors, figures))
        return PartReport(part, staged.rows, errors, tokens, figures)

    def _prepared(self, part: Part) -> Iterator[_Group]:
        columns = self.spec.plan.input_columns
        batches = self.spec.source.read(part.split, part.start, part.stop, columns)
        names = self.spec.plan.identity["input"]["columns"]
        group_bytes = ENGINE_GROUP_BYTES
        if not isinstance(self.runner, EngineRunner):
            group_bytes = tokens_per_batch(self.spec.job, self.spec.device) * GROUP_PACKS * BYTES_PER_TOKEN
        first = row_number(part)
        for rows in cut_groups(batches, list(names.values()), group_bytes):
            numbers = pa.array(range(first, first + rows.num_rows))
            first += rows.num_rows
            read = [rows.column(column) for column in names.values()]
            inputs = pa.table([*read, numbers], names=[*names, ROW])
            prepared = self.task.prepare(inputs)
            yield _Group(rows, prepared, self.task.num_tokens(prepared))

    def _computed(self, part: Part) -> Iterator[tuple[_Group, Any]]:
        with closing(Ahead(self._prepared(part), depth=2)) as groups:
            yield from self.runner.each(groups, self._compute)

    def _compute(self, group: _Group) -> Any:
        return self.task.compute(self.model, group.prepared, self.runner)

    def _table(self, rows: pa.Table, result: RowResults) -> pa.Table:
        schema = self.spec.plan.schema
        kept = len(schema) - len(result.columns) - 1
        errors = pa.array([result.errors.get(row) for row in range(rows.num_rows)], pa.string())
        columns = [rows.column(index) for index in range(kept)]
        return pa.Table.from_arrays([*columns, *result.columns, errors], schema=schema)

    def _footer(self, part: Part, rows: int, errors: int, figures: Mapping[str, float]) -> Footer:
        return Footer(
            fingerprint=self.spec.plan.fingerprint,
            part=part.name,
            source=part.split.name,
            start=part.start,
            rows=rows,
            errors=errors,
            figures=figures,
            model=self.spec.job.model.path,
            revision=self.spec.revision,
            device=self.spec.device,
            dtype=self.spec.dtype,
            version=__version__,
        )


def row_number(part: Part) -> int:
    """The number of a part's first row: its place in its split, with the split's place among the splits above it."""
    return part.split.index * 2**40 + part.start


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
