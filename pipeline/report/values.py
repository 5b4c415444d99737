"""A row's values as plain, short Python values: what a report keeps of a cell, whatever is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from pipeline.figures import format_figure

LONGEST_TEXT = 20_000
"""Characters of a text that are looked at."""
MOST_ITEMS = 200
FIRST = 6
"""Items of a list that are written out."""
LONGEST_FACT = 80


@dataclass(frozen=True, slots=True)
class Text:
    """The beginning of a text, and how many characters it has in all."""

    start: str
    length: int


@dataclass(frozen=True, slots=True)
class Vector:
    """The first numbers of a vector."""

    width: int
    norm: float
    first: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"{', '.join(map(format_figure, self.first))}, … ({self.width} numbers of norm {format_figure(self.norm)})"
        )


def short_value(scalar: pa.Scalar) -> Any:
    """Of a text its beginning, of a list its first items, of a vector its norm; other values as they are.

    A text that is not valid UTF-8 has its bad bytes replaced.
    """
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if types.is_dictionary(kind):
        return short_value(scalar.value)
    if types.is_fixed_size_list(kind) and types.is_floating(kind.value_type):
        return _vector(scalar)
    if types.is_struct(kind):
        return {name: short_value(item) for name, item in scalar.items()}
    if _is_list(kind):
        return [short_value(item) for item in scalar.values[:MOST_ITEMS]]
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        text = bytes(scalar.as_buffer()).decode(errors="replace")
        return Text(text[:LONGEST_TEXT], len(text))
    if types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind):
        return scalar.as_py()
    return _other(scalar)


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _vector(scalar: pa.Scalar) -> Vector:
    numbers = np.asarray(scalar.values.cast(pa.float64()), np.float64)
    return Vector(len(numbers), float(np.linalg.norm(numbers)), tuple(numbers[:FIRST].tolist()))


def _other(scalar: pa.Scalar) -> Text:
    """Dates, bytes, maps and the like by how Python writes them."""
    try:
        told = str(scalar.as_py())
    except (ValueError, OverflowError):  # a date that Python has not
        told = repr(scalar)
    return Text(told[:LONGEST_TEXT], len(told))


def cut(text: str, longest: int) -> str:
    """A text's beginning, with a sign that there is more."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def written(value: Any) -> str:
    """A value in a few characters; nothing of nothing."""
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):  # as it stands: it may be an id
        return str(value)
    if isinstance(value, float):
        return format_figure(value) if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Text):
        return cut(value.start, LONGEST_FACT)
    if isinstance(value, Vector):
        return str(value)
    if isinstance(value, Mapping):
        if set(value) == {"label", "score"}:
            return f"{written(value['label'])} {written(value['score'])}"
        value = [f"{name} {written(each)}" for name, each in value.items()]
    items = [each if isinstance(each, str) else written(each) for each in value[:FIRST]]
    return cut(", ".join(items) + (", …" if len(value) > FIRST else ""), 2 * LONGEST_FACT)
