"""From an output folder to all that the report says of its rows, in two passes of bounded memory.

The first reads the result columns alone, batch by batch, into the measures; the second reads the few rows that are
shown, each from its own row group.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from pipeline.footer import Footer
from pipeline.report.columns import measures_of
from pipeline.report.folder import Committed, Folder
from pipeline.report.measures import Address, Errors, Measure
from pipeline.report.steps import Step, error_column, result_columns, steps_of
from pipeline.report.values import short_value

BATCH = 8192
SHOWN_BATCH = 128
SAMPLES, ENDS = 10, 8
"""Random rows, and rows at each end, of a report of one step; of several steps each shows fewer."""
SEED = 0
MOST_STEPS = 12
MOST_NAMED = 50
"""Models, devices and the like that are told apart."""


@dataclass(frozen=True, slots=True)
class Range:
    """A part's rows, and when it was written; of a run there may be very many."""

    source: str
    start: int
    rows: int
    modified: float
    """Unix seconds; 0 where the store does not tell."""


@dataclass(slots=True)
class Totals:
    """What the parts' footers say together."""

    rows: int = 0
    errors: int = 0
    bytes: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Of model, revision, device, dtype and version: value -> parts."""
    parts: list[Range] = field(default_factory=list)

    def add(self, part: Committed, footer: Footer) -> None:
        """Count a part."""
        self.rows += footer.rows
        self.errors += footer.errors
        self.bytes += part.size
        self.parts.append(Range(sys.intern(footer.source), footer.start, footer.rows, part.modified))
        for name, value in footer.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value
        for fact in ("model", "revision", "device", "dtype", "version"):
            value, seen = getattr(footer, fact), self.facts[fact]
            if value is not None and (value in seen or len(seen) < MOST_NAMED):
                seen[str(value)] += 1


@dataclass(slots=True)
class StepFindings:
    """What was counted of a step, and its results by short name."""

    step: Step
    columns: Mapping[str, str]
    measures: Sequence[Measure]


@dataclass(slots=True)
class Findings:
    """All that the report says of the rows."""

    folder: Folder
    totals: Totals
    schema: pa.Schema | None
    """Of the output; None while no part is committed."""
    steps: list[StepFindings]
    left_out: list[Step]
    """Steps of which nothing was counted, since there are too many."""
    errors: Errors | None
    kept: list[str]
    """The input's columns in the output."""
    samples: list[Address] = field(default_factory=list)
    rows: Mapping[Address, Mapping[str, Any]] = field(default_factory=dict)
    """The rows that are shown."""

    def places(self) -> set[Address]:
        """Where those rows are."""
        found = set(self.samples)
        for measure in (measure for step in self.steps for measure in step.measures):
            for ends in (getattr(measure, "lowest", ()), getattr(measure, "highest", ())):
                found.update(place for _, place in ends)
        for kind in self.errors.shown if self.errors else ():
            found.update(kind.examples)
        return found


def gather(folder: Folder) -> Findings:
    """Read the folder's parts. Raises StoreError for one that can't be read."""
    findings: Findings | None = None
    totals = Totals()
    for number, part in enumerate(_told(folder.parts)):
        with folder.opened(part) as file:
            totals.add(part, folder.footer(part, file))
            findings = findings or _begin(folder, totals, file.schema_arrow)
            _count(file, number, _measures(findings))
    if findings is None:
        return Findings(folder, totals, None, [], [], None, [])
    findings.samples = _samples(totals)
    findings.rows = _rows(folder, findings)
    return findings


def _told(parts: Sequence[Committed]) -> Iterable[Committed]:
    """The parts, with a bar on a terminal."""
    console = Console(stderr=True)
    return track(parts, "reading parts", console=console, transient=True, disable=not sys.stderr.isatty())


def _begin(folder: Folder, totals: Totals, schema: pa.Schema) -> Findings:
    steps = steps_of(folder.job, folder.plan)
    kept = [name for name in folder.kept or () if name in schema.names]
    drawn = steps[:MOST_STEPS]
    errors = error_column(schema.names, folder.job, kept)
    names = [name for name in schema.names if name != errors]
    found = []
    for step in drawn:
        columns = result_columns(step, steps, names, kept)
        found.append(StepFindings(step, columns, measures_of(step, columns, schema, share(ENDS, len(drawn)))))
    return Findings(folder, totals, schema, found, steps[MOST_STEPS:], Errors(errors) if errors else None, kept)


def share(most: int, steps: int) -> int:
    """How many of `most` rows each of so many steps shows."""
    return max(most // max(steps, 1), 2)


def _measures(findings: Findings) -> list[Measure]:
    errors: list[Measure] = [findings.errors] if findings.errors else []
    return [*(measure for step in findings.steps for measure in step.measures), *errors]


def _count(file: pq.ParquetFile, part: int, measures: Sequence[Measure]) -> None:
    columns = list(dict.fromkeys(measure.column for measure in measures))
    row = 0
    for batch in file.iter_batches(BATCH, columns=columns):
        for measure in measures:
            measure.add(batch.column(measure.column), Address(part, row))
        row += batch.num_rows


def _samples(totals: Totals) -> list[Address]:
    """Rows drawn from all, the same in every report of the same parts."""
    drawn = sorted(random.Random(SEED).sample(range(totals.rows), min(SAMPLES, totals.rows)))
    found, before = list[Address](), 0
    for number, part in enumerate(totals.parts):
        found += [Address(number, row - before) for row in drawn if before <= row < before + part.rows]
        before += part.rows
    return found


def _rows(folder: Folder, findings: Findings) -> dict[Address, Mapping[str, Any]]:
    by_part = defaultdict(list)
    for place in sorted(findings.places()):
        by_part[place.part].append(place.row)
    found = {}
    for part, rows in by_part.items():
        with folder.opened(folder.parts[part]) as file:
            for row, values in _read_rows(file, rows):
                found[Address(part, row)] = values
    return found


def _read_rows(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """These rows, ascending; of a part no more is read than the row groups that they are in."""
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        wanted = [row for row in rows if start <= row < stop]
        at = start
        for batch in file.iter_batches(SHOWN_BATCH, row_groups=[group]) if wanted else ():
            for row in (row for row in wanted if at <= row < at + batch.num_rows):
                yield row, {name: short_value(batch.column(name)[row - at]) for name in batch.schema.names}
            at += batch.num_rows
        start = stop
