"""Parquet files: one, a folder, a glob or a list of them, on any file system that pyarrow or fsspec reaches."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate
from pyarrow import fs

from pipeline.errors import JobError, SourceError
from pipeline.locations import Location, absolute, locate
from pipeline.redaction import redact_error
from pipeline.retries import explain, is_transient, resumed
from pipeline.sources import Split

_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError)
"""What pyarrow raises over a damaged file: column names that are not UTF-8 and impossible sizes, besides its own."""
SUFFIXES = (".parquet", ".parq", ".pq")
BATCH_BYTES = 8 << 20
BATCH_ROWS = 1024
BUFFER_BYTES = 64 << 20
"""Of all columns together that are held undecoded; without a bound a whole row group is."""


@dataclass(frozen=True, slots=True)
class _File:
    name: int
    """Index of the name that led to it."""
    location: Location
    info: fs.FileInfo
    metadata: pq.FileMetaData
    schema: pa.Schema


class ParquetSource:
    """Every file is a split."""

    def __init__(self, names: str | Sequence[str], may_be_empty: bool = False) -> None:
        """`may_be_empty`: folders and patterns without a file are none's mistake."""
        # Absolute, since a worker's working directory is its own.
        self.names = [absolute(name, "input.parquet") for name in ([names] if isinstance(names, str) else names)]
        if not self.names:
            raise JobError("input.parquet is an empty list: name a file, a folder or a pattern")
        self.may_be_empty = may_be_empty
        self._open: dict[int, _Cursor] = {}

    def __getstate__(self) -> dict[str, object]:
        # Where the splits are, for workers: a split's name has lost what may be secret in it.
        return {"names": self.names, "may_be_empty": self.may_be_empty, "_open": {}, "_places": self._places}

    @cached_property
    def _places(self) -> list[tuple[int, str]]:
        """Of each split the name that led to it, and its path in that name's file system."""
        return [(name, location.path) for name, location, _ in self._found]

    @cached_property
    def _found(self) -> list[tuple[int, Location, fs.FileInfo]]:
        listed = ((index, _list(name, self.may_be_empty)) for index, name in enumerate(self.names))
        found = [(index, *each) for index, files in listed for each in files]
        twice = [path for path, count in Counter(each.path for _, each, _ in found).items() if count > 1]
        if twice:
            raise JobError(f"input.parquet names {twice[0]} twice: its rows would be done twice; name it once")
        return found

    @cached_property
    def _files(self) -> list[_File]:
        with ThreadPoolExecutor(16) as pool:
            files = list(pool.map(lambda each: _footer(*each), self._found))
        for each in files:
            if each.metadata.num_rows:
                _same_schema(_model(files), each)
        return files

    def listing(self) -> list[Split]:
        """The splits as far as they are known without opening a file: their rows are not."""
        return [
            Split(index, location.uri, None, _identity(location, info))
            for index, (_, location, info) in enumerate(self._found)
        ]

    def among(self, places: Sequence[int]) -> ParquetSource:
        """The source of these files alone, by their places in the listing."""
        source = ParquetSource(self.names, self.may_be_empty)
        source._found = [self._found[place] for place in places]
        return source

    def schema(self) -> pa.Schema:
        model = _model(self._files)
        twice = [name for name, count in Counter(model.schema.names).items() if count > 1]
        if twice:
            raise JobError(f"{model.location.uri} has two columns named {twice[0]!r}: rename one of them")
        files = [each.schema for each in self._files if each.metadata.num_rows]
        fields = [
            field.with_nullable(field.nullable or any(each.field(index).nullable for each in files))
            for index, field in enumerate(model.schema)
        ]
        return pa.schema(fields)

    def splits(self) -> list[Split]:
        return [
            Split(index, each.location.uri, each.metadata.num_rows, _identity(each.location, each.info))
            for index, each in enumerate(self._files)
        ]

    def read(self, split: Split, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from resumed(lambda row: self._read(split, row, stop, columns), start)
        except _UNREADABLE as error:
            raise SourceError(f"{split.name} can't be read at rows {start} to {stop}: {explain(error)}") from error

    def _read(self, split: Split, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        cursor, location = self._open.pop(split.index, None), self._location(split)
        if cursor is None or not cursor.reaches(start, columns):
            cursor = _Cursor(location, split, columns)
        yield from cursor.take(start, stop)
        self._location(split)  # before anything of these rows is committed
        self._open = {split.index: cursor}

    def _location(self, split: Split) -> Location:
        name, path = self._places[split.index]
        location = locate(self.names[name], "input.parquet").at(path)
        (info,) = location.filesystem.get_file_info([path])
        found = _identity(location, info) if info.type == fs.FileType.File else None
        if found != split.identity:
            raise SourceError(
                f"{split.name} changed since the plan (then {split.identity}, now {found}): "
                "put the file back, or run into a new output.path; of an incremental run input.changed=redo does the "
                "file as it is"
            )
        return location


class _Cursor:
    """An open file and the row it stands at, so that neighbouring parts decode a row group once."""

    def __init__(self, location: Location, split: Split, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self.split = split
        self.file = _opened(location)
        self.ends = _row_group_ends(self.file.metadata)
        self.row: int | None = None
        self.rest: Iterator[pa.RecordBatch] = iter(())
        self.left: pa.RecordBatch | None = None

    def reaches(self, start: int, columns: Sequence[str]) -> bool:
        """Whether reading on gets to `start` without decoding more than starting anew would."""
        if self.row is None or self.row > start or self.columns != list(columns):
            return False
        return self._group(self.row) == self._group(start) or self.row == start

    def _group(self, row: int) -> int:
        return int(bisect_right(self.ends, row))

    def take(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        if self.row is None:
            self._seek(start)
        assert self.row is not None
        while self.row < stop:
            batch = self.left if self.left is not None else next(self.rest, None)
            self.left = None
            if batch is None:
                raise SourceError(f"{self.split.name} ends at row {self.row}, before its footer says: write it again")
            skip = min(max(start - self.row, 0), batch.num_rows)
            keep = min(stop - self.row, batch.num_rows)
            self.left = batch.slice(keep) if keep < batch.num_rows else None
            self.row += keep
            if skip < keep:
                yield batch.slice(skip, keep - skip)

    def _seek(self, start: int) -> None:
        first = self._group(start)
        self.row = self.ends[first - 1] if first else 0
        self.rest = self._batches(range(first, len(self.ends)))

    def _batches(self, groups: Iterable[int]) -> Iterator[pa.RecordBatch]:
        rows = _batch_rows(self.file.metadata)
        for group in groups:  # one by one, since Arrow can't make a batch of two nested dictionaries
            for batch in self.file.iter_batches(rows, [group], columns=self.columns):
                # Arrow takes a column's name for the beginning of a path, and gives a.b with a.
                yield batch.select(self.columns)


def _opened(location: Location) -> pq.ParquetFile:
    """The file, read a few pages at a time, their checksums checked where the writer left some."""
    file = location.filesystem.open_input_file(location.path)
    metadata = pq.read_metadata(file)
    buffer = BUFFER_BYTES // max(metadata.num_columns, 1)
    return pq.ParquetFile(
        file,
        metadata=metadata,
        buffer_size=min(max(buffer, 64 << 10), 4 << 20),
        pre_buffer=False,
        page_checksum_verification=True,
    )


def _row_group_ends(metadata: pq.FileMetaData) -> list[int]:
    ends, rows = [], 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        ends.append(rows)
    return ends


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows a batch, so that wide rows don't fill the memory."""
    size: int = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * max(int(metadata.num_rows), 1) // max(size, 1)))


def _list(name: str, may_be_empty: bool) -> list[tuple[Location, fs.FileInfo]]:
    """The files that one entry of input.parquet names, by name; hidden ones (. and _) are left out of folders."""
    try:
        return _found(name, may_be_empty)
    except (pa.ArrowException, OSError, ValueError, re.error) as error:
        raise JobError(f"input.parquet {name} can't be listed: {redact_error(error, name)}") from error


def _found(name: str, may_be_empty: bool) -> list[tuple[Location, fs.FileInfo]]:
    if is_glob(name):
        found = _glob(name, may_be_empty)
    else:
        location = locate(name, "input.parquet")
        (info,) = location.filesystem.get_file_info([location.path])
        if info.type == fs.FileType.NotFound:
            raise JobError(f"input.parquet {name}: there is no such file or folder ({location.uri})")
        if info.type == fs.FileType.File:
            return [(location, info)]
        found = [
            each for each in _walk(location) if each.path.endswith(SUFFIXES) and not _hidden(each.path, location.path)
        ]
        if not found and not may_be_empty:
            raise JobError(f"input.parquet {name}: no .parquet file is in this folder ({location.uri})")
    base = locate(name, "input.parquet")
    return [(base.at(info.path), info) for info in sorted(found, key=lambda info: info.path)]


def _fixed(path: str) -> str:
    """What stands before the first letter with a meaning to globs."""
    return re.split(r"[*?\[]", path, maxsplit=1)[0]


def is_glob(name: str) -> bool:
    """In a URI a question mark begins the query."""
    path, letters = (name.partition("?")[0], "*[") if "://" in name else (name, "*?[")
    return any(letter in path for letter in letters)


def _glob(name: str, may_be_empty: bool) -> list[fs.FileInfo]:
    location = locate(name, "input.parquet")
    fixed = _fixed(location.path).rpartition("/")[0] or "/"
    pattern = re.compile(glob_translate(location.path))
    found = [info for info in _walk(location.at(fixed)) if pattern.fullmatch(info.path)]
    if not found and not may_be_empty:
        raise JobError(f"input.parquet {name}: no file matches this pattern; looked in {location.at(fixed).uri}")
    return found


def _walk(folder: Location) -> list[fs.FileInfo]:
    selector = fs.FileSelector(folder.path, allow_not_found=True, recursive=True)
    return [info for info in folder.filesystem.get_file_info(selector) if info.type == fs.FileType.File]


def _hidden(path: str, base: str) -> bool:
    return any(name.startswith((".", "_")) for name in path[len(base) :].split("/"))


def _footer(name: int, location: Location, info: fs.FileInfo) -> _File:
    try:
        with location.filesystem.open_input_file(location.path) as file:
            opened = pq.ParquetFile(file)
            metadata, schema = opened.metadata, opened.schema_arrow
        ends = _row_group_ends(metadata)
        if metadata.num_rows != (ends[-1] if ends else 0) or ends != sorted(ends):
            raise pa.ArrowInvalid(f"its footer counts {metadata.num_rows} rows, and its row groups other ones")
        _ = schema.names  # which may be no UTF-8
    except _UNREADABLE as error:
        if is_transient(error):
            raise SourceError(f"{location.uri} can't be read: {explain(error)}") from error
        raise JobError(
            f"{location.uri} is not a whole Parquet file ({error}): write it again, or leave it out of input.parquet"
        ) from error
    return _File(name, location, info, metadata, schema)


def _model(files: list[_File]) -> _File:
    """The first file with rows, whose schema counts: writers that have no rows often don't know their types."""
    return next((each for each in files if each.metadata.num_rows), files[0])


def _same_schema(first: _File, other: _File) -> None:
    what = difference(first.schema, other.schema)
    if what is not None:
        raise JobError(
            f"{first.location.uri} and {other.location.uri} differ: {what}; "
            "one run writes one table: write the files alike, or run them apart"
        )


def difference(first: pa.Schema, other: pa.Schema) -> str | None:
    """Why two schemas are not of one table, in words; None where they are. Which columns have nulls is no matter."""
    if first.equals(other):
        return None
    ours, theirs = ({field.name: field.type for field in each} for each in (first, other))
    name = next((name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name)), None)
    if name is not None:
        return f"column {name!r} is {ours.get(name, 'missing')} in one and {theirs.get(name, 'missing')} in the other"
    return None if first.names == other.names else "their columns stand in another order"


def _identity(location: Location, info: fs.FileInfo) -> dict[str, str | int | None]:
    """Size and modification time; fsspec's checksum (of the etag or commit, mostly) where no time is told."""
    if info.mtime_ns is not None or not isinstance(location.filesystem, fs.PyFileSystem):
        return {"size": info.size, "modified_ns": info.mtime_ns}
    return {"size": info.size, "checksum": str(location.filesystem.handler.fs.checksum(location.path))}
