"""Incremental runs: what earlier rounds recorded of a growing input, and what a new round has to do.

`_pipeline/plan.json` holds the splits of all rounds in the order in which they came, and splits are only ever added to
it. So the parts of earlier rounds keep their names and rows, and the file is written before any part of a new split.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.errors import JobError, OutputRefused
from pipeline.identity import refuse_other_mode
from pipeline.job import InputOptions, Job
from pipeline.plan import Part, Plan
from pipeline.sources import Split
from pipeline.sources.growing import GrowingSource
from pipeline.sources.parquet import ParquetSource
from pipeline.store import Store

NAMED = 5
"""Files that are named where there may be many."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Where an output folder stood when it was looked at, and what has come of its input since."""

    source: GrowingSource
    recorded: tuple[Split, ...]
    redo: bool
    record: dict[str, Any] | None = field(repr=False)
    """`_pipeline/plan.json`, as it was read."""

    def stale(self, store: Store) -> bool:
        """Whether another round was begun since the folder was looked at."""
        return bool(store.read_record("plan.json") != self.record)

    def holds(self, plan: Plan) -> bool:
        """Whether the record tells of all splits of `plan` already."""
        return bool(self.record == json.loads(json.dumps(plan.to_json())))

    def before(self, plan: Plan) -> Plan:
        """`plan` without this round."""
        return replace(plan, splits=self.recorded)

    def since(self, plan: Plan) -> Plan:
        """The splits that are new in `plan`; what their parts are called does not follow from them."""
        return replace(plan, splits=plan.splits[len(self.recorded) :])

    @property
    def changed(self) -> list[str]:
        """Files that are not what they were when they were recorded."""
        return [self.recorded[index].name for index in self.source.compared.changed]

    @property
    def vanished(self) -> list[str]:
        """Files that were recorded and are not there any more."""
        return [self.recorded[index].name for index in self.source.compared.vanished]

    def told(self, plan: Plan, done: int) -> str:
        """What is new in `plan`, and how much of earlier rounds is `done`, in rows."""
        new, earlier = self.since(plan), replace(plan, splits=plan.splits[: len(self.recorded)])
        files = _count(sum(not split.retired for split in earlier.splits), "file")
        share = "" if done == earlier.rows else f"{done:,} of {earlier.rows:,} rows of "
        return f"{_count(len(new.splits), 'new file')}, {_count(new.rows or 0, 'row')}; {share}{files} done before"

    def figures(self, plan: Plan) -> dict[str, int]:
        """What the summary of the round says of files."""
        kept = {"changed files, rows kept": 0 if self.redo else len(self.changed)}
        kept["vanished files, rows kept"] = len(self.vanished)
        return {"new files": len(self.since(plan).splits), **{name: count for name, count in kept.items() if count}}

    def notes(self) -> Iterator[str]:
        """A line for what happened to files of earlier rounds."""
        if self.changed:
            what = "done again instead of the earlier rows" if self.redo else "the rows that were done stay"
            yield f"{_count(len(self.changed), 'file')} changed since, {what}: {_names(self.changed)}"
        if self.vanished:
            yield (
                f"{_count(len(self.vanished), 'file')} gone since, the rows that were done stay: "
                f"{_names(self.vanished)}"
            )

    def readable(self, parts: Iterable[Part], tell: Callable[[str], None]) -> Iterator[Part]:
        """Those of `parts` whose rows can be read again. Raises JobError naming the files where there are none."""
        parts = list(parts)
        left = [part for part in parts if self.source.readable(part.split)]
        lost = list(dict.fromkeys(part.split.name for part in parts if not self.source.readable(part.split)))
        if lost:
            what = f"rows with an error of {_names(lost)} can't be done again, since the input changed or is gone"
            if not left:
                raise JobError(f"{what}: put it back as it was")
            tell(what)
        return iter(left)


def look(job: Job, store: Store, refuse: bool = True) -> Growth:
    """Compare the input with what the output folder tells of it; writes nothing.

    `refuse`: raise JobError for files that changed or vanished, unless the job says what to do then. Raises
    OutputRefused for a folder of another mode.
    """
    record = store.read_record("plan.json")
    if record is not None:
        refuse_other_mode(store.folder.uri, record.get("identity", {}), job.output.mode)
    recorded, schema = _recorded(store, record)
    names = job.input.parquet
    assert names is not None
    redo = job.input.changed == "redo"
    source = GrowingSource(ParquetSource(names, may_be_empty=True), recorded, schema, redo)
    growth = Growth(source, recorded, redo, record)
    if not source.splits():
        raise JobError(f"input.parquet {names}: no file is there, nor was one before: name where the files will be")
    if refuse:
        _refuse(growth, job.input)
    return growth


def _recorded(store: Store, record: dict[str, Any] | None) -> tuple[tuple[Split, ...], pa.Schema | None]:
    """The splits of earlier rounds, and what they are alike in."""
    if record is None:
        return (), None
    try:
        splits = tuple(Split(**each) for each in record["splits"])
        schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(record["input_schema"])))
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        place = store.records.child("plan.json").uri
        raise OutputRefused(f"{place} can't be read ({error!r}): give a new output.path") from error
    return splits, schema


def _refuse(growth: Growth, options: InputOptions) -> None:
    if growth.changed and options.changed == "refuse":
        raise JobError(
            f"input.parquet: {_count(len(growth.changed), 'file')} changed since earlier rounds: "
            f"{_names(growth.changed)}: put back what was there, or give input.changed=keep (the rows that were done "
            "stay) or input.changed=redo (they are removed, and the file is done again)"
        )
    if growth.vanished and options.vanished == "refuse":
        raise JobError(
            f"input.parquet: {_count(len(growth.vanished), 'file')} of earlier rounds gone: {_names(growth.vanished)}: "
            "put back what was there, or give input.vanished=keep (the rows that were done stay)"
        )
    for old, new in _moved(growth):
        raise JobError(
            f"input.parquet: {new} has the name, size and time of {old}, which was done and is gone: files are known "
            "by their full names, so its rows would be done twice; move it back, or leave it out"
        )


def _moved(growth: Growth) -> Iterator[tuple[str, str]]:
    """Vanished files that seem to be among the new ones, and where."""
    gone = {_trace(growth.recorded[index]): growth.recorded[index].name for index in growth.source.compared.vanished}
    for split in growth.source.splits()[len(growth.recorded) :]:
        if None not in split.identity.values() and _trace(split) in gone:
            yield gone[_trace(split)], split.name


def _trace(split: Split) -> tuple[object, ...]:
    """What a file keeps when it is moved."""
    return (split.name.rpartition("/")[2], split.rows, *sorted(split.identity.items()))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _names(names: list[str]) -> str:
    more = f" (and {len(names) - NAMED} more)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
