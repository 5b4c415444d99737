"""A histogram in one pass over values of any range: exact counts in a bounded number of bins.

Bins are as wide as a power of two, and only those that hold something are kept; when there are too many, each two
neighbours become one. So a value far from the others costs one bin and does not make the others' coarse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_BINS = 4096
FINEST = 30
"""The first bins are this many powers of two below the first values."""
FINEST_DRAWN = 10
"""Bars are at least this many powers of two below the values."""
TAIL = 0.01
"""Share of the values at each end that may be left out of the drawing where they stretch it too far."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Values from `start` up to `stop`, as they are drawn."""

    start: float
    stop: float
    count: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """The bars of a histogram, and how many values lie to the left and to the right of them."""

    bars: tuple[Bar, ...]
    below: int = 0
    above: int = 0


class Histogram:
    """Counts of finite values. `bins` are ascending whole multiples of `width`."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.low, self.high = math.inf, -math.inf
        self.width = 0.0
        self._bins = np.empty(0)
        self._counts = np.empty(0, np.int64)

    def add(self, values: Floats) -> None:
        """Count finite values."""
        if not len(values):
            return
        self.count += len(values)
        self.total += float(values.sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if not self.width:
            self.width = 2.0 ** (math.frexp(float(np.median(np.abs(values))) or 1.0)[1] - FINEST)
        self._fold(
            np.concatenate([self._bins, np.floor(values / self.width)]),
            np.concatenate([self._counts, np.ones(len(values), np.int64)]),
        )
        while len(self._bins) > MOST_BINS:
            self.width *= 2
            self._fold(np.floor(self._bins / 2), self._counts)

    def _fold(self, bins: Floats, counts: npt.NDArray[np.int64]) -> None:
        self._bins, places = np.unique(bins, return_inverse=True)
        self._counts = np.bincount(places, weights=counts).astype(np.int64)

    @property
    def mean(self) -> float:
        """The values' mean; NaN of none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The value that this share of all is below, to within a bin; NaN of none."""
        if not self.count:
            return math.nan
        place = np.searchsorted(np.cumsum(self._counts), share * self.count)
        value = self._bins[min(int(place), len(self._bins) - 1)] * self.width
        return float(np.clip(value, self.low, self.high))

    def drawn(self, most: int = 40, whole: bool = False) -> Drawn:
        """At most about `most` bars of equal width; `whole`: the values are whole numbers."""
        if not self.count:
            return Drawn(())
        low, high = self._range()
        finest = _finest(low, high)
        if 0 < high - low < finest:
            middle = (low + high) / 2
            return Drawn((Bar(middle - finest / 2, middle + finest / 2, self.count),))
        width = max(self.width, finest, 1.0 if whole else 0.0)
        while math.floor(high / width) - math.floor(low / width) >= most:
            width *= 2
        return self._bars(low, high, width, whole)

    def _bars(self, low: float, high: float, width: float, whole: bool) -> Drawn:
        first, last = math.floor(low / width), math.floor(high / width)
        if not whole and last > first and high == last * width:
            last -= 1  # the highest value closes the last bar instead of opening one of its own
        places = np.floor(self._bins * (self.width / width))
        places[places == last + 1] = last if high == (last + 1) * width else last + 1
        inside = (places >= first) & (places <= last)
        bar_of = (places[inside] - first).astype(np.int64)
        counts = np.bincount(bar_of, weights=self._counts[inside], minlength=last - first + 1)
        bars = tuple(Bar((first + i) * width, (first + i + 1) * width, int(each)) for i, each in enumerate(counts))
        below, above = (int(self._counts[side].sum()) for side in (places < first, places > last))
        return Drawn(bars, below, above)

    def _range(self) -> tuple[float, float]:
        """All values, or without the tails where these would leave the others no room."""
        low, high = self.quantile(TAIL), self.quantile(1 - TAIL)
        wide = high - low
        if wide < _finest(low, high):  # which has room for one bar alone
            return self.low, self.high
        return (low if low - self.low > wide else self.low, high if self.high - high > wide else self.high)

    def __iter__(self) -> Iterator[tuple[float, int]]:
        """Each bin's left edge and count, ascending."""
        return zip((self._bins * self.width).tolist(), self._counts.tolist(), strict=True)


def _finest(low: float, high: float) -> float:
    """The narrowest bar: labels of narrower ones would differ in their last digits only."""
    return float(2.0 ** (math.frexp(max(abs(low), abs(high)))[1] - FINEST_DRAWN))
