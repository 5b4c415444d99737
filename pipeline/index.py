"""The index of an output folder: what the footers of its parts say, so that a resume need not read them all again.

It is a cache and nothing more. An entry counts while the folder's listing gives the file the same size and modification
time; an index that is missing, unreadable or of another run only costs the time to read the footers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.footer import Footer
from pipeline.listing import Names

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


class Stamp(NamedTuple):
    """What tells a file from another of its name."""

    size: int
    modified: int
    """Nanoseconds; whole seconds from an object store that was asked for one object."""

    def of(self, info: fs.FileInfo) -> bool:
        """Whether a listing, whose times may be finer, tells of the same file."""
        return self.size == info.size and self.modified in (info.mtime_ns, _whole_seconds(info.mtime_ns))


@dataclass(frozen=True, slots=True)
class Entry:
    """A part, and what is counted of it."""

    stamp: Stamp
    counted: Counted


class Index(Mapping[str, Entry]):
    """Entries by part name, in columns: about a hundred bytes each."""

    def __init__(self, pieces: Iterable[pa.Table] = ()) -> None:
        """Of entries with the same name the first counts."""
        self._table = pa.concat_tables([SCHEMA.empty_table(), *pieces]).combine_chunks()
        self._names = Names(lambda: (name.as_py() for name in self._table.column("name")))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> Entry:
        row = int(self._names.first[self._names.place(name)])
        size, modified, rows, errors, figures = (column[row].as_py() for column in self._table.columns[1:])
        return Entry(Stamp(size, modified), Counted(rows, errors, json.loads(figures)))

    @property
    def table(self) -> pa.Table:
        """Every entry once, in the order of the names."""
        return self._table.take(self._names.first)

    def counted(self, info: fs.FileInfo) -> Counted | None:
        """What is counted of the part that a listing tells of; None where the index does not know this very file."""
        entry = self.get(info.base_name)
        return entry.counted if entry is not None and entry.stamp.of(info) else None


def stamp_of(info: fs.FileInfo) -> Stamp | None:
    """The stamp of a file; None where the store tells no times."""
    return None if info.mtime_ns is None else Stamp(info.size, info.mtime_ns)


def counted_by(footer: Footer) -> Counted:
    """What a footer says of its part."""
    return Counted(footer.rows, footer.errors, footer.figures)


def table_of(entries: Mapping[str, Entry]) -> pa.Table:
    """A piece of an index."""
    held = list(entries.values())
    columns = [
        list(entries),
        [each.stamp.size for each in held],
        [each.stamp.modified for each in held],
        [each.counted.rows for each in held],
        [each.counted.errors for each in held],
        [json.dumps(dict(each.counted.figures)) for each in held],
    ]
    return pa.Table.from_arrays(list(map(pa.array, columns, SCHEMA.types)), schema=SCHEMA)


def to_bytes(table: pa.Table, fingerprint: str) -> bytes:
    """The file of a piece, of the run with that fingerprint."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({FINGERPRINT: fingerprint})
    # No two names are alike: without dictionaries the file is half as large, and is read with half the memory.
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return bytes(sink.getvalue())


def from_bytes(content: bytes, fingerprint: str) -> pa.Table:
    """The piece in a file; an empty one where that is damaged, or another run's."""
    nothing = SCHEMA.empty_table()
    try:
        # Not by `read_table`, which loads Arrow's query engine for it: 50 MB.
        table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read(use_threads=False)
        ours = table.schema.equals(SCHEMA) and (table.schema.metadata or {}).get(FINGERPRINT) == fingerprint.encode()
        return table.replace_schema_metadata(None) if ours else nothing
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return nothing


def _whole_seconds(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // 10**9 * 10**9
