"""What driver and worker say to each other: what a worker is to do, what it has done, what became of a part."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.index import Counted, Stamp
from pipeline.job import Job
from pipeline.plan import Part
from pipeline.sources import Source
from pipeline.steps import StepSpec
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker needs to start, on whatever node."""

    job: Job
    fingerprint: str
    schema: pa.Schema
    """Of every output file."""
    read_columns: tuple[str, ...]
    """Columns to read: the kept ones, then those that only the task needs."""
    source: Source
    store: Store
    device: str
    threads: int
    steps: tuple[StepSpec, ...]
    """What is done with every row, one after the other."""

    @property
    def task_columns(self) -> list[str]:
        """Columns that the tasks read, each once for a step that reads it and for no other."""
        if len(self.steps) == 1:
            return list(self.steps[0].columns.values())
        return list(dict.fromkeys(column for step in self.steps for column in step.columns.values()))


@dataclass(frozen=True, slots=True)
class Counts:
    """What a worker has done since it started. Rows that were only tried are in tokens and beats, and not in rows."""

    rows: int = 0
    errors: int = 0
    tokens: int = 0
    slots: int = 0
    """Places in the batches that held the tokens; the difference is padding."""
    beats: int = 0
    """Grows with whatever is read, computed or written: what tells slow work from none."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.rows + other.rows,
            self.errors + other.errors,
            self.tokens + other.tokens,
            self.slots + other.slots,
            self.beats + other.beats,
        )


@dataclass(frozen=True, slots=True)
class PartReport:
    """What the driver is told of a committed part."""

    part: Part
    counted: Counted
    tokens: int
    """Computed for it."""
    stamp: Stamp | None = None
    """Of its file; None where the store tells no times."""
    remarks: tuple[str, ...] = ()
    """What the worker's model has warned of so far."""
