"""What tasks read from rows and what they give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class RowTexts:
    """The texts of a group of rows: of those that can be processed, and why the others can't."""

    count: int
    """Rows in the group."""
    rows: Sequence[int]
    """The rows that can be processed."""
    values: Sequence[tuple[str, ...]]
    """Their texts, one for each input name."""
    errors: Mapping[int, str]
    bytes: npt.NDArray[np.int64]
    """UTF-8 bytes of the last input of each row (the text, or the completion)."""
    words: npt.NDArray[np.int64]
    """Runs of characters other than white space in it."""


@dataclass(frozen=True, slots=True)
class RowResults:
    """What a task gives back for a group of rows: one column a field, in the rows' order."""

    columns: Sequence[pa.Array]
    errors: Mapping[int, str]
    figures: Mapping[str, float]
    """Numbers that add up over groups and parts."""


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings: plain, large, view, or dictionary-encoded."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def read_texts(rows: pa.Table, names: Sequence[str]) -> RowTexts:
    """The columns `names` of `rows` as Python strings; null and invalid UTF-8 become that row's error."""
    columns = [_as_binary(rows.column(name)) for name in names]
    errors: dict[int, str] = {}
    decoded = [_decode(column, name, errors) for column, name in zip(columns, names, strict=True)]
    good = [row for row in range(rows.num_rows) if row not in errors]
    values = list(zip(*([texts[row] for row in good] for texts in decoded), strict=True))
    last = columns[-1]
    return RowTexts(
        count=rows.num_rows,
        rows=good,
        values=values,
        errors=errors,
        bytes=_numbers(pc.binary_length(last)),
        words=_numbers(pc.count_substring_regex(last, r"[^\s]+")),
    )


def _decode(column: pa.ChunkedArray, name: str, errors: dict[int, str]) -> list[str]:
    texts = []
    for row, value in enumerate(column.to_pylist()):
        text = ""
        if value is None:
            errors.setdefault(row, f"{name} is null")
        else:
            try:
                text = str(value, "utf-8")
            except UnicodeDecodeError as error:
                errors.setdefault(row, f"{name} is not valid UTF-8 at byte {error.start}")
        texts.append(text)
    return texts


def text_bytes(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each text; 0 for null."""
    return _numbers(pc.binary_length(_as_binary(column)))


def _as_binary(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Any kind of text column as plain bytes, which Arrow hands out without decoding them."""
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return column.cast(pa.large_string()).cast(pa.large_binary())


def _numbers(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return found
