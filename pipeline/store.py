"""The output folder: staged writes, commits, footers, and the lease that keeps a second driver out.

A part appears under its name whole or not at all. On a disk it is written under `_pipeline/staging`, read back and
renamed; on an object store it is written to a temporary file here, read back and uploaded in one piece.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.digest import BLANK, seal
from pipeline.errors import OutputRefused, StoreError
from pipeline.footer import FOOTER_KEY, Footer, footer_of
from pipeline.identity import refuse_other_run
from pipeline.index import Counted, Stamp, counted_by, stamp_of
from pipeline.index_files import read_index
from pipeline.listing import Listing
from pipeline.locations import Location
from pipeline.plan import Part, Plan
from pipeline.retries import PATIENT, Backoff, explain, is_transient

RECORDS = "_pipeline"
STAGING = "staging"
MAGIC = b"PAR1"
"""What a Parquet file ends with."""
READERS = 16
"""Footers read at once: on an object store each is a wait for two answers."""
CHUNK = 512
"""Parts looked at together, so that a plan of any size costs little memory."""
Learnt = Callable[[str, Stamp | None, Counted], None]
"""Told of a part's name and stamp what was counted of it."""


class Store:
    """One output folder."""

    def __init__(self, folder: Location, backoff: Backoff = PATIENT) -> None:
        self.folder, self.backoff = folder, backoff
        self.records = folder.child(RECORDS)

    def opened(self, plan: Plan) -> bool:
        """Whether the folder holds this very run already; False where it is new or empty.

        Raises OutputRefused where it holds another run, naming the difference, or something that isn't a run.
        """
        held = self.read_record("plan.json")
        if held is not None:
            refuse_other_run(self.folder.uri, held.get("identity", {}), plan.identity)
            return True
        ours = f"-{plan.fingerprint[:10]}.parquet"
        foreign = (name for name in self.listing() if not name.startswith(RECORDS))
        # Of an incremental run plan.json alone tells what the parts were made of.
        strangers = [name for name in foreign if plan.grows or not name.endswith(ours)]
        if strangers:
            raise OutputRefused(
                f"output.path {self.folder.uri} holds {strangers[0]!r} and no run of ours: "
                "give an empty or a new folder; nothing is deleted to make room"
            )
        return False

    def check_writable(self) -> None:
        """Raise OutputRefused unless files can be made where the folder is, or would be. Leaves nothing behind."""
        if not self.folder.local:
            return
        folder = Path(self.folder.path)
        for place in (folder, Path(self.records.child(STAGING).path)):
            nearest = next(each for each in [place, *place.parents] if each.exists())
            if not nearest.is_dir():
                raise OutputRefused(
                    f"output.path {folder}: {nearest} is a file, not a folder: name another output.path"
                )
            try:
                tempfile.TemporaryFile(dir=nearest).close()
            except OSError as error:
                raise OutputRefused(f"output.path {folder}: can't write in {nearest}: {explain(error)}") from error

    def create(self) -> None:
        """Make the folders."""
        staging = self.records.child(STAGING).path
        with _store_errors(self.folder.uri):
            self.backoff.call(lambda: self.folder.filesystem.create_dir(staging, recursive=True))

    def clear_staging(self) -> None:
        """Remove what killed attempts left; only for the holder of the lease, when no worker writes."""
        if not self.folder.local:
            return
        with _store_errors(self.folder.uri):
            for left in Path(self.records.child(STAGING).path).iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def remove(self, parts: Iterable[Part]) -> None:
        """Take away what there is of `parts`, which no plan wants any more; only for the holder of the lease."""
        unwanted = {part.name for part in parts}
        left = unwanted & self.listing().keys() if unwanted else ()
        for target in map(self.folder.child, left):
            with _store_errors(target.uri), contextlib.suppress(FileNotFoundError):
                self.backoff.call(partial(target.filesystem.delete_file, target.path))

    def committed(
        self, plan: Plan, listing: Listing | None = None, learnt: Learnt | None = None
    ) -> Iterator[tuple[Part, Counted]]:
        """The parts of `plan` that stand in the folder, in input order, and what is counted of them.

        `listing` is the folder's, where it is taken already. A part that the index knows as it is listed is taken at
        its word; of all others the footer is read and checked, and `learnt` is told. Raises StoreError for one that
        isn't ours.
        """
        ended = set[int]()
        for part, counted in self._counted(plan, self.listing() if listing is None else listing, learnt):
            if part.split.index not in ended:
                yield part, counted
            if part.split.rows is None and plan.following(part, counted.rows) is None:
                ended.add(part.split.index)

    def _counted(self, plan: Plan, listing: Listing, learnt: Learnt | None) -> Iterator[tuple[Part, Counted]]:
        known, standing = read_index(self, plan), standing_parts(plan, listing)
        with ThreadPoolExecutor(READERS) as pool:
            while chunk := list(islice(standing, CHUNK)):
                trusted = [known.counted(listing[part.name]) for part in chunk]
                unknown = [part for part, counted in zip(chunk, trusted, strict=True) if counted is None]
                footers = pool.map(lambda part: self.read_footer(part, plan), unknown)
                for part, counted in zip(chunk, trusted, strict=True):
                    if counted is None:
                        counted = counted_by(next(footers))
                        if learnt is not None:
                            learnt(part.name, stamp_of(listing[part.name]), counted)
                    yield part, counted

    def read_whole(self, path: str) -> bytes:
        """All of a file of the folder. Raises StoreError where the store does not give it."""

        def read() -> bytes:
            with self.folder.filesystem.open_input_stream(path) as stream:
                return bytes(stream.read())

        try:
            return self.backoff.call(read)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.folder.at(path).uri} can't be read: {explain(error)}") from error

    def read_footer(self, part: Part, plan: Plan) -> Footer:
        """The footer of a committed part. Raises StoreError where it is torn or tells of another run."""
        file = self.folder.child(part.name)

        def read() -> pq.FileMetaData:
            with file.filesystem.open_input_file(file.path) as opened:
                return pq.read_metadata(opened)

        try:
            metadata = self.backoff.call(read)
        except (pa.ArrowException, OSError) as error:
            if is_transient(error):
                raise StoreError(f"{file.uri} can't be read: {explain(error)}") from error
            raise StoreError(
                f"{file.uri} is not a whole Parquet file ({error}): move it away to do it again"
            ) from error
        footer = footer_of(metadata)
        wanted = (plan.fingerprint, part.name, part.split.name, part.start)
        if footer is None or (footer.fingerprint, footer.part, footer.source, footer.start) != wanted:
            raise StoreError(f"{file.uri} was not written by this run: move it away to do the part again")
        if metadata.num_rows != footer.rows:
            raise StoreError(
                f"{file.uri} holds {metadata.num_rows} rows and its footer says {footer.rows}: move it away"
            )
        return footer

    def write_record(self, name: str, content: Mapping[str, Any] | str | bytes) -> None:
        """Write `_pipeline/<name>` at once: JSON, or text or bytes as they are."""
        if not isinstance(content, str | bytes):
            content = json.dumps(content, indent=2) + "\n"
        data = content.encode() if isinstance(content, str) else content
        target = self.records.child(name)
        with _store_errors(target.uri):
            self.backoff.call(lambda: _replace(target, data) if target.local else _put(target, data))

    def read_record(self, name: str) -> dict[str, Any] | None:
        """`_pipeline/<name>` parsed as JSON; None where there is none."""
        target = self.records.child(name)

        def read() -> bytes:
            with target.filesystem.open_input_file(target.path) as stream:
                return bytes(stream.read())

        try:
            content = json.loads(self.backoff.call(read))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(target.uri, error) from error
        except ValueError as error:
            raise OutputRefused(f"{target.uri} can't be read ({error}): give a new output.path") from error
        return content if isinstance(content, dict) else None

    def delete_record(self, name: str) -> None:
        """Remove `_pipeline/<name>`, where it is."""
        target = self.records.child(name)
        with contextlib.suppress(FileNotFoundError):
            target.filesystem.delete_file(target.path)

    def stage(self, part: Part, schema: pa.Schema) -> StagedPart:
        """Begin to write `part`."""
        return StagedPart(self, part, schema)

    def listing(self) -> Listing:
        """What stands in the folder, by name."""
        selector = fs.FileSelector(self.folder.path, allow_not_found=True)
        try:
            found = self.backoff.call(lambda: self.folder.filesystem.get_file_info(selector))
        except OSError as error:
            raise _unreadable(self.folder.uri, error) from error
        return Listing(self.folder.path, found)


class StagedPart:
    """A part being written. Leaving the `with` block without a commit removes it."""

    def __init__(self, store: Store, part: Part, schema: pa.Schema) -> None:
        self.store, self.part, self.schema = store, part, schema
        self.rows = 0
        self._path: Path | None = None
        if store.folder.local:
            name = f"{part.name.removesuffix('.parquet')}.{uuid.uuid4().hex[:12]}.parquet"
            self._path = Path(store.records.child(STAGING).path) / name
        self._place = str(self._path or "the folder for temporary files")

    def __enter__(self) -> Self:
        with _store_errors(self._place):
            # What goes to an object store has no name here: whatever ends this process, nothing of it is left.
            self._file = open(self._path, "w+b") if self._path else tempfile.TemporaryFile()
            self._writer = pq.ParquetWriter(self._file, self.schema, compression="zstd", write_page_checksum=True)
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows, as one row group."""
        with _store_errors(self._place):
            self._writer.write_table(table)
        self.rows += table.num_rows

    def commit(self, footer: Footer) -> Stamp | None:
        """Close, put the digest into `footer`, read back, and move into place.

        Returns what a listing will tell of the file; None where the store tells no times.
        """
        target = self.store.folder.child(self.part.name)
        with _store_errors(target.uri):
            self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps(asdict(replace(footer, digest=BLANK)))})
            self._writer.close()
            footer = replace(footer, digest=seal(self._file))
            metadata = pq.read_metadata(self._file)
            if metadata.num_rows != footer.rows or footer_of(metadata) != footer:
                raise StoreError(f"{target.uri} reads back otherwise than it was written: is the disk sound?")
            if self._path is not None:
                os.fsync(self._file.fileno())
                self._path.replace(target.path)
                _sync(Path(target.path).parent)
                written = os.fstat(self._file.fileno())
                return Stamp(written.st_size, written.st_mtime_ns)
            return self._upload(target)

    def _upload(self, target: Location) -> Stamp | None:
        """One whole object: it becomes visible when the upload is complete."""
        # Mapped whole before the upload begins: a stream to a store that is closed by an error of reading completes.
        content = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            return stamp_of(self.store.backoff.call(lambda: _put(target, content)))
        except (pa.ArrowException, OSError):
            _remove_if_torn(target)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):  # which would stand in the way of the error that is being raised
            if self._path is not None:
                self._path.unlink(missing_ok=True)


def standing_parts(plan: Plan, names: Collection[str]) -> Iterator[Part]:
    """The parts of `plan` that are among `names`, in input order; of a streamed split those without a gap."""
    for first in plan.parts():
        part: Part | None = first
        while part is not None and part.name in names:
            yield part
            part = plan.following(part, part.stop - part.start)


def _put(target: Location, content: bytes | pa.Buffer) -> fs.FileInfo:
    """Write one object in one piece, and look at what has become of it. Raises OSError."""
    with target.filesystem.open_output_stream(target.path) as stream:
        stream.write(content)
    (info,) = target.filesystem.get_file_info([target.path])
    if info.size != len(content):
        raise OSError(errno.EIO, f"{info.size} bytes are there after an upload of {len(content)}")
    return info


def _remove_if_torn(target: Location) -> None:
    """Take away what a failed upload may have left under the name of a part; not a whole part of another attempt.

    Where its end can't be read in full, it stays.
    """
    with contextlib.suppress(pa.ArrowException, OSError):
        with target.filesystem.open_input_file(target.path) as file:
            size = file.size()
            end = bytes(file.read_at(len(MAGIC), max(0, size - len(MAGIC))))
        if len(end) == min(size, len(MAGIC)) and end != MAGIC:
            target.filesystem.delete_file(target.path)


def _replace(target: Location, content: bytes) -> None:
    """Write a record in the staging folder, and move it to its place."""
    place = Path(target.path)
    draft = place.parent / STAGING / f"{place.name}.{uuid.uuid4().hex[:8]}"
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target.path)
        _sync(place.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _store_errors(place: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{place} can't be written: {explain(error)}") from error


def _unreadable(place: str, error: OSError) -> StoreError | OutputRefused:
    """Of a store that fails the run fails; a place that is not for us to read is the job's fault."""
    kind = StoreError if is_transient(error) else OutputRefused
    return kind(f"output.path: {place} can't be read: {explain(error)}")
