"""What is counted while the rows go by: each measure reads some columns of a record batch and keeps little."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.histogram import Floats, Histogram

MOST_LABELS = 10_000
LONGEST_LABEL = 120
MOST_KINDS, KINDS_SHOWN = 200, 20
"""Kinds of errors that are told apart, and that are shown."""
EXAMPLES = 3
"""Rows shown for each kind of error."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A row's place: the number of its part among the committed ones, and its place in it."""

    part: int
    row: int


class Measure(Protocol):
    """Something counted over all rows."""

    @property
    def column(self) -> str:
        """The column it reads."""

    def add(self, array: pa.Array, first: Address) -> None:
        """Count the column's values in a record batch that begins with that row."""


@dataclass(slots=True)
class Numbers:
    """Numbers from a column, as histograms of themselves and of their logarithms."""

    column: str
    title: str
    values: Callable[[pa.Array], Floats]
    whole: bool = False
    """Whether they are whole numbers."""
    logarithmic: bool = False
    """Whether their kind asks for a logarithmic scale."""
    linear: Histogram = field(default_factory=Histogram)
    logs: Histogram = field(default_factory=Histogram)
    unbounded: int = 0
    """Values that are infinite or no numbers."""

    def add(self, array: pa.Array, first: Address) -> None:
        values = self.values(array)
        finite = values[np.isfinite(values)]
        self.unbounded += len(values) - len(finite)
        self.linear.add(finite)
        self.logs.add(np.log10(finite[finite > 0]))

    @property
    def is_log(self) -> bool:
        """Whether a logarithmic scale shows more: all are positive and reach over orders of magnitude."""
        if not self.linear.count or self.logs.count < self.linear.count:
            return False
        middle, high = 10 ** self.logs.quantile(0.5), 10 ** self.logs.quantile(0.99)
        low = 10 ** self.logs.quantile(0.01)
        return high > 20 * middle or (self.logarithmic and high > 4 * low)


@dataclass(slots=True)
class Labels:
    """How often each text stands in a column: labels, reasons, groups."""

    column: str
    title: str
    texts: Callable[[pa.Array], pa.Array]
    counts: Counter[str] = field(default_factory=Counter)
    others: int = 0
    """Of texts that are no longer told apart, since there were too many."""

    def add(self, array: pa.Array, first: Address) -> None:
        short = pc.utf8_slice_codeunits(self.texts(array).drop_null(), 0, LONGEST_LABEL)
        for each in short.value_counts():
            self.counts[each["values"].as_py()] += each["counts"].as_py()
        if len(self.counts) > 2 * MOST_LABELS:
            kept = Counter(dict(self.counts.most_common(MOST_LABELS)))
            self.others += self.counts.total() - kept.total()
            self.counts = kept


@dataclass(slots=True)
class Extremes:
    """The rows with the lowest and the highest values."""

    column: str
    values: Callable[[pa.Array], tuple[Floats, npt.NDArray[np.int64]]]
    """A record batch's values, and the rows that they are of."""
    most: int
    lowest: list[tuple[float, Address]] = field(default_factory=list)
    highest: list[tuple[float, Address]] = field(default_factory=list)

    def add(self, array: pa.Array, first: Address) -> None:
        values, rows = self.values(array)
        finite = np.isfinite(values)
        values, rows = values[finite], rows[finite]
        for sign, kept in ((1.0, self.lowest), (-1.0, self.highest)):
            order = np.argsort(sign * values, kind="stable")[: self.most]
            found = [(sign * float(values[i]), Address(first.part, first.row + int(rows[i]))) for i in order]
            kept[:] = sorted([*((sign * value, place) for value, place in kept), *found])[: self.most]
            kept[:] = [(sign * value, place) for value, place in kept]


@dataclass(slots=True)
class Kind:
    """Errors that say the same but for the numbers in them."""

    text: str
    count: int = 0
    examples: list[Address] = field(default_factory=list)


@dataclass(slots=True)
class Errors:
    """The rows with an error, by kind."""

    column: str
    kinds: dict[str, Kind] = field(default_factory=dict)

    def add(self, array: pa.Array, first: Address) -> None:
        rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
        texts = pc.utf8_slice_codeunits(array.drop_null(), 0, 2 * LONGEST_LABEL).to_pylist()
        for row, text in zip(rows, texts, strict=True):
            name = kind_of(text)
            if name not in self.kinds and len(self.kinds) >= MOST_KINDS:
                name = "errors of other kinds"
            kind = self.kinds.setdefault(name, Kind(name))
            kind.count += 1
            if len(kind.examples) < EXAMPLES:
                kind.examples.append(Address(first.part, first.row + int(row)))

    @property
    def shown(self) -> list[Kind]:
        """The most frequent kinds."""
        return sorted(self.kinds.values(), key=lambda kind: -kind.count)[:KINDS_SHOWN]


def kind_of(error: str) -> str:
    """An error without what differs from row to row."""
    return re.sub(r"\d+([.,]\d+)*", "N", error)[:LONGEST_LABEL]


@dataclass(slots=True)
class Directions:
    """How alike vectors are: the sum of all, each made one long."""

    column: str
    vectors: Callable[[pa.Array], Floats]
    """[rows, width]"""
    total: Floats | None = None
    count: int = 0

    def add(self, array: pa.Array, first: Address) -> None:
        vectors = self.vectors(array)
        norms = np.linalg.norm(vectors, axis=1)
        usable = np.isfinite(norms) & (norms > 0)
        total = (vectors[usable] / norms[usable, None]).sum(axis=0)
        self.total = total if self.total is None else self.total + total
        self.count += int(usable.sum())

    @property
    def mean_cosine(self) -> float | None:
        """The mean cosine of all pairs of two rows: |sum of unit vectors|^2 holds each pair twice and each row once."""
        if self.total is None or self.count < 2:
            return None
        return float((self.total @ self.total - self.count) / (self.count * (self.count - 1)))
