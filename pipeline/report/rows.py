"""A row as it is shown: its place, its texts, and its other values as facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.report.gather import Findings, StepFindings
from pipeline.report.measures import Address
from pipeline.report.texts import IN_BLOCKS, Block, blocks_of
from pipeline.report.values import LONGEST_FACT, Text, cut, written

LONGEST_ERROR = 400
MOST_FACTS = 12


@dataclass(frozen=True, slots=True)
class Fact:
    """A short value under its name."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One row."""

    place: str
    identity: Sequence[Fact]
    """What the input says of the row, besides its texts."""
    results: Sequence[Fact]
    blocks: Sequence[Block]
    error: str


def show(findings: Findings, step: StepFindings, place: Address) -> Shown:
    """A row as `step` saw it."""
    row = findings.rows[place]
    results = {short: row.get(column) for short, column in step.columns.items()}
    inputs = {name: row[column] for name, column in step.step.inputs.items() if column in row}
    read = {*step.step.inputs.values(), *(column for each in findings.steps for column in each.columns.values())}
    others = {name: row[name] for name in findings.kept if name not in read}
    error = row.get(findings.errors.column) if findings.errors else None
    return Shown(
        place=place_of(findings, place),
        identity=_facts(others),
        results=_facts({name: value for name, value in results.items() if name not in IN_BLOCKS}),
        blocks=blocks_of(step.step.task, inputs, results),
        error=cut(error.start, LONGEST_ERROR) if isinstance(error, Text) else "",
    )


def place_of(findings: Findings, place: Address) -> str:
    """Where the row stands in the input."""
    part = findings.totals.parts[place.part]
    name = PurePosixPath(part.source.rstrip("/")).name or part.source
    return f"{cut(name, LONGEST_FACT)}, row {part.start + place.row:,}"


def _facts(values: Mapping[str, Any]) -> list[Fact]:
    pairs = ((name, written(value)) for name, value in values.items())
    return [Fact(cut(name, LONGEST_FACT), value) for name, value in pairs if value][:MOST_FACTS]
