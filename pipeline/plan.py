"""From a job to the parts it is done in, and the fingerprint that names them.

The plan depends on the input and the options alone: never on timing, on the cluster's size or on what is done already.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa

from pipeline import __version__
from pipeline.errors import JobError
from pipeline.job import Job, Step
from pipeline.sources import Source, Split
from pipeline.tasks import Task

FORMAT = 2
"""Layout of the output folder; a run of another layout is another run."""


@dataclass(frozen=True, slots=True)
class Part:
    """A row range of a split: the unit that is computed, committed and resumed.

    `stop` may lie behind the end of a streamed split; the part then holds what rows there are.
    """

    name: str
    split: Split
    piece: int
    start: int
    stop: int
    set_aside: Mapping[int, str] = field(default_factory=dict)
    """Rows that no worker survives, by their place in the split, and why: they get their error and no call."""
    retry: bool = False
    """The part stands; its rows with an error are to be done again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides the result."""

    identity: dict[str, Any] = field(repr=False)
    """What is hashed to the fingerprint, key by key."""
    splits: Sequence[Split] = field(repr=False)
    rows_per_part: int
    limit: int | None
    input_columns: tuple[str, ...]
    """Columns to read: the kept ones, then those that only the tasks need."""
    schema: pa.Schema
    """Schema of every output file."""
    task_columns: tuple[Mapping[str, str], ...] = ()
    """Of each step the task's input name -> the column that holds it."""
    input_schema: pa.Schema | None = field(default=None, repr=False)
    """Of an incremental run what all files are alike in, those of other rounds too."""
    fingerprint: str = field(init=False)
    """SHA-256 over the identity, in hexadecimal."""

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "fingerprint", digest)

    @property
    def grows(self) -> bool:
        """Whether splits may be added behind those that there are; the fingerprint then tells of none."""
        return self.input_schema is not None

    @property
    def rows(self) -> int | None:
        """Rows in all; None where only reading can tell."""
        counts = [0 if split.retired else split.rows for split in self.splits if split.rows is not None]
        if len(counts) < len(self.splits):
            return None
        return sum(counts) if self.limit is None else min(sum(counts), self.limit)

    @property
    def num_parts(self) -> int | None:
        """Parts in all; None where only reading can tell."""
        return None if any(split.rows is None for split in self.splits) else sum(1 for _ in self.parts())

    def parts(self) -> Iterator[Part]:
        """The parts, in input order; of a streamed split its first, to which `following` adds."""
        return (part for part in self._cut() if not part.split.retired)

    def retired(self) -> Iterator[Part]:
        """The parts of retired splits: whatever is left of them is to go."""
        return (part for part in self._cut() if part.split.retired)

    def _cut(self) -> Iterator[Part]:
        prefix, index, left = self.fingerprint[:10], 0, self.limit
        for split in self.splits:
            if split.rows is None:
                yield self._streamed(split, 0)
                continue
            rows = split.rows if left is None else min(split.rows, left)
            for piece, start in enumerate(range(0, rows, self.rows_per_part)):
                stop = min(start + self.rows_per_part, rows)
                yield Part(f"part-{index:05d}-{prefix}.parquet", split, piece, start, stop)
                index += 1
            left = None if left is None else left - rows
        if index == 0 and self.rows == 0 and not self.grows:
            yield Part(f"part-00000-{prefix}.parquet", self.splits[0], 0, 0, 0)

    def following(self, part: Part, rows: int) -> Part | None:
        """The next part of a streamed split, when `part` turned out to hold `rows` rows; None after the last."""
        if part.split.rows is not None or rows < part.stop - part.start:
            return None
        return self._streamed(part.split, part.piece + 1)

    def _streamed(self, split: Split, piece: int) -> Part:
        name = f"part-{split.index:05d}-{piece:05d}-{self.fingerprint[:10]}.parquet"
        start = piece * self.rows_per_part
        return Part(name, split, piece, start, start + self.rows_per_part)

    def to_json(self) -> dict[str, Any]:
        """What `_pipeline/plan.json` holds."""
        return {
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "rows": self.rows,
            "parts": self.num_parts,
            "rows_per_part": self.rows_per_part,
            "splits": [asdict(split) for split in self.splits],
            "schema": self.schema.to_string(show_schema_metadata=False).splitlines(),
            **({} if self.input_schema is None else {"input_schema": _text(self.input_schema)}),
        }


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of the job, with its task and what identifies the weights it computes with and how they are held."""

    step: Step
    task: Task
    model: Mapping[str, Any]


def make_plan(job: Job, source: Source, steps: Sequence[PlannedStep]) -> Plan:
    """Plan `job` over the splits of `source`.

    Raises JobError for input that can't be read, and for columns that are missing, of a wrong type, or taken.
    """
    schema, splits, grows = source.schema(), source.splits(), job.output.mode == "incremental"
    kept = _kept_columns(job, schema)
    columns = tuple(_task_columns(each, schema) for each in steps)
    identity: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        **_tasks(steps, columns),
        "input": {
            **({} if job.steps else {"columns": columns[0]}),
            "limit": job.input.limit,
        },
        "output": {"columns": kept, "rows_per_part": job.rows_per_part, "prefix": job.output.prefix},
    }
    if grows:
        identity["output"]["mode"] = job.output.mode
    else:
        # A list: the order of the splits decides which rows a part holds.
        identity["input"]["splits"] = [{"name": each.name, "rows": each.rows, **each.identity} for each in splits]
    return Plan(
        identity=identity,
        splits=tuple(splits),
        rows_per_part=job.rows_per_part,
        limit=job.input.limit,
        input_columns=tuple(dict.fromkeys(chain(kept, *(each.values() for each in columns)))),
        schema=_output_schema(job, schema, kept, steps),
        task_columns=columns,
        input_schema=schema if grows else None,
    )


def _tasks(steps: Sequence[PlannedStep], columns: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The part of the identity that tells what is done with each row, and by which model."""
    told: dict[str, dict[str, Any]] = {
        each.step.name: {
            "task": each.step.task,
            each.step.task: each.step.options.model_dump(mode="json"),
            "model": each.model,
        }
        for each in steps
    }
    if "" in told:
        return told[""]
    for each, reads in zip(steps, columns, strict=True):
        told[each.step.name] |= {"columns": reads, "prefix": each.step.prefix}
    return {"steps": told, "order": list(told)}


def _text(schema: pa.Schema) -> str:
    """As text whatever types it has, and to be read again."""
    return base64.b64encode(schema.serialize()).decode()


def _kept_columns(job: Job, schema: pa.Schema) -> list[str]:
    if job.output.columns is None:
        return list(schema.names)
    for name in job.output.columns:
        if name not in schema.names:
            raise JobError(f"output.columns names {name!r}, which the input lacks; it has {', '.join(schema.names)}")
    return list(dict.fromkeys(job.output.columns))


def _task_columns(planned: PlannedStep, schema: pa.Schema) -> dict[str, str]:
    """The task's input name -> the column that holds it."""
    step, task = planned.step, planned.task
    key = step.columns_key
    for name in step.columns:
        if name not in task.inputs:
            raise JobError(f"{key} names {name!r}, which {step.task} does not read; it reads {', '.join(task.inputs)}")
    found = {}
    for name, holds in task.inputs.items():
        column = step.columns.get(name, name)
        if column not in schema.names:
            raise JobError(
                f"{key}: {step.task} reads {name} from column {column!r}, which the input lacks; "
                f"it has {', '.join(schema.names)}: say {key}.{name}=…"
            )
        if not holds.accepts(schema.field(column).type):
            raise JobError(
                f"{key}: {step.task} reads {name} from column {column!r}, which holds "
                f"{schema.field(column).type} and not {holds.value}: name a column that holds {holds.value} by "
                f"{key}.{name}=…"
            )
        found[name] = column
    return found


def _output_schema(job: Job, schema: pa.Schema, kept: Sequence[str], steps: Sequence[PlannedStep]) -> pa.Schema:
    results = [field.with_name(each.step.prefix + field.name) for each in steps for field in each.task.fields]
    results.append(pa.field(job.output.prefix + "error", pa.string()))
    names = [each.name for each in results]
    if taken := sorted(set(kept) & set(names)):
        writer = job.task or "the job"
        raise JobError(
            f"the input has a column {taken[0]!r} already, which {writer} writes: "
            f"give output.prefix={job.task or 'new'}_ (or any other), or leave the column out of output.columns"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise JobError(f"two results are called {twice[0]!r}: give one step another prefix (steps.NAME.prefix)")
    # Metadata of the input (pandas indexes, Hub features) describes another table than the one written here.
    carried = [schema.field(name).remove_metadata() for name in kept]
    return pa.schema([*carried, *results])
