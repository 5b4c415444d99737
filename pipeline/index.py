"""The index of an output folder: what the footers of its parts say, so that a resume need not read them all again.

It is a cache and nothing more. An entry counts while the folder's listing gives the file the same size and modification
time; an index that is missing, unreadable or of another run only costs the time to read the footers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

NAME = "index"
"""A Parquet file without the suffix, by which `datasets.load_dataset` would take it for output."""
FINGERPRINT = b"fingerprint"
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("modified", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("errors", pa.int64(), nullable=False),
        pa.field("figures", pa.string(), nullable=False),
    ]
)
"""`modified` in nanoseconds, as the listing gives it; `figures` a JSON object."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What is counted of a committed part."""

    rows: int
    errors: int
    figures: Mapping[str, float]
    """The task's figures, summed over the part's rows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A part as it was listed when it was counted."""

    size: int
    modified: int
    """Nanoseconds."""
    counted: Counted

    def of(self, info: fs.FileInfo) -> bool:
        """Whether the listing still tells of the same file."""
        return (self.size, self.modified) == (info.size, info.mtime_ns)


def to_bytes(entries: Mapping[str, Entry], fingerprint: str) -> bytes:
    """The index file of the run with that fingerprint."""
    held = list(entries.values())
    columns = [
        list(entries),
        [each.size for each in held],
        [each.modified for each in held],
        [each.counted.rows for each in held],
        [each.counted.errors for each in held],
        [json.dumps(dict(each.counted.figures)) for each in held],
    ]
    schema = SCHEMA.with_metadata({FINGERPRINT: fingerprint})
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue())


def from_bytes(content: bytes, fingerprint: str) -> dict[str, Entry]:
    """The entries by part name; none where the file is damaged, or another run's."""
    try:
        table = pq.read_table(pa.BufferReader(content))
        if not table.schema.equals(SCHEMA) or (table.schema.metadata or {}).get(FINGERPRINT) != fingerprint.encode():
            return {}
        name, size, modified, rows, errors, figures = (column.to_pylist() for column in table.columns)
        counted = map(Counted, rows, errors, (dict(json.loads(each)) for each in figures))
        return dict(zip(name, map(Entry, size, modified, counted), strict=True))
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return {}
