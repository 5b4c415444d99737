"""What tasks read from rows and what they give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

ROW = "pipeline:row"
"""Name of the column that numbers a group's rows by their place in their source."""


class Holds(Enum):
    """What a column that a task reads holds."""

    TEXT = "text"
    TEXTS = "lists of text"
    VALUE = "text, numbers or booleans"
    WHOLE = "whole numbers"

    def accepts(self, kind: pa.DataType) -> bool:
        """Whether a column of this type does."""
        if self is Holds.TEXTS:
            return _is_list(kind) and _is_text(kind.value_type)
        if self is Holds.WHOLE:
            return bool(pa.types.is_integer(kind))
        return _is_text(kind) or (self is Holds.VALUE and _is_scalar(kind))


@dataclass(frozen=True, slots=True)
class RowTexts:
    """The texts of a group of rows: of those that can be processed, and why the others can't."""

    count: int
    """Rows in the group."""
    rows: Sequence[int]
    """The rows that can be processed."""
    values: Sequence[tuple[Any, ...]]
    """What they hold, one entry for each input: a string, a list of them, or a whole number, which may be None."""
    errors: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class RowResults:
    """What a task gives back for a group of rows: one column a field, in the rows' order."""

    columns: Sequence[pa.Array]
    errors: Mapping[int, str]
    figures: Mapping[str, float]
    """Numbers that add up over groups and parts."""


def read_texts(rows: pa.Table, inputs: Mapping[str, Holds]) -> RowTexts:
    """The input columns as Python strings; a null, or text that is not valid UTF-8, becomes that row's error.

    Numbers and booleans are written as Python writes them. A whole number may be null.
    """
    errors: dict[int, str] = {}
    columns: list[Sequence[Any]] = []
    for name, holds in inputs.items():
        column = rows.column(name)
        if holds is Holds.WHOLE:
            columns.append(column.to_pylist())
        else:
            read = _decoded_lists if holds is Holds.TEXTS else _decoded if _is_text(column.type) else _written
            columns.append(read(column, name, errors))
    good = [row for row in range(rows.num_rows) if row not in errors]
    values = list(zip(*([column[row] for row in good] for column in columns), strict=True))
    return RowTexts(rows.num_rows, good, values, errors)


def text_bytes(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each text, or of all texts of each list; 0 for null, and for what is no text."""
    if _is_scalar(column.type):
        return np.zeros(len(column), np.int64)
    if not _is_list(column.type):
        return numbers(pc.binary_length(as_binary(column)))
    lengths = numbers(pc.list_value_length(column))
    ends = np.concatenate([[0], np.cumsum(text_bytes(pc.list_flatten(column)))])
    stops = np.cumsum(lengths)
    found: npt.NDArray[np.int64] = ends[stops] - ends[stops - lengths]
    return found


def as_binary(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Any kind of text column as plain bytes, which Arrow hands out without decoding them."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return column.cast(pa.large_string()).cast(pa.large_binary())


def numbers(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Numbers of a column, 0 for null."""
    found: npt.NDArray[np.int64] = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def list_column(
    values: pa.Array, counts: npt.NDArray[np.int64], missing: npt.NDArray[np.bool_], kind: pa.DataType
) -> pa.Array:
    """A column of lists: `counts[row]` of the values for each row, null where `missing` (which must count 0)."""
    assert not counts[missing].any()
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    offsets = pa.array(ends, mask=np.append(missing, False))
    return pa.ListArray.from_arrays(offsets, values.cast(kind.value_type), type=kind)


def _is_text(kind: pa.DataType) -> bool:
    """Strings: plain, large, view, or dictionary-encoded (not views, which Arrow can't decode there)."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type) and not pa.types.is_string_view(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _decoded(column: pa.ChunkedArray, name: str, errors: dict[int, str]) -> list[str]:
    return [
        _text(value, lambda why, row=row: errors.setdefault(row, f"{name} {why}"))  # type: ignore[misc]
        for row, value in enumerate(as_binary(column).to_pylist())
    ]


def _written(column: pa.ChunkedArray, name: str, errors: dict[int, str]) -> list[str]:
    values = column.to_pylist()
    errors.update({row: f"{name} is null" for row, value in enumerate(values) if value is None and row not in errors})
    return ["" if value is None else str(value) for value in values]


def _decoded_lists(column: pa.ChunkedArray, name: str, errors: dict[int, str]) -> list[list[str]]:
    flat = as_binary(pc.list_flatten(column)).to_pylist()
    stops = np.cumsum(numbers(pc.list_value_length(column))).tolist()
    lists, start = [], 0
    for row, (stop, given) in enumerate(zip(stops, column.is_valid().to_pylist(), strict=True)):
        if not given:
            errors.setdefault(row, f"{name} is null")
        lists.append(
            [
                _text(value, lambda why, row=row, at=at: errors.setdefault(row, f"{name}[{at}] {why}"))  # type: ignore[misc]
                for at, value in enumerate(flat[start:stop])
            ]
        )
        start = stop
    return lists


def _text(value: bytes | None, complain: Callable[[str], object]) -> str:
    if value is None:
        complain("is null")
        return ""
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        complain(f"is not valid UTF-8 at byte {error.start}")
        return ""
