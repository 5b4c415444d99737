"""The output folder: staged writes, commits, footers, and the lease that keeps a second driver out.

A part appears under its name whole or not at all. On a disk it is written under `_pipeline/staging`, read back and
renamed; on an object store it is written to a temporary file here, read back and uploaded in one piece.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.errors import OutputRefused, StoreError
from pipeline.locations import Location
from pipeline.plan import Part, Plan

RECORDS = "_pipeline"
FOOTER_KEY = b"pipeline"


@dataclass(frozen=True, slots=True)
class Footer:
    """What the Parquet footer of a part says of it."""

    fingerprint: str
    part: str
    source: str
    start: int
    rows: int
    errors: int
    figures: Mapping[str, float]
    """The task's figures, summed over the part's rows."""
    model: str
    revision: str | None
    device: str
    dtype: str
    version: str


class Store:
    """One output folder."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self.records = folder.child(RECORDS)

    def opened(self, plan: Plan) -> bool:
        """Whether the folder holds this very run already; False where it is new or empty.

        Raises OutputRefused where it holds another run, naming the difference, or something that isn't a run.
        """
        held = self.read_record("plan.json")
        if held is not None:
            differences = list(_differences(held.get("identity", {}), plan.identity))
            if differences:
                raise OutputRefused(_refusal(self.folder.uri, differences))
            return True
        strangers = [name for name in self._names() if not name.startswith(RECORDS)]
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
        nearest = next(each for each in [folder, *folder.parents] if each.exists())
        if not nearest.is_dir():
            raise OutputRefused(f"output.path {folder}: {nearest} is a file, not a folder: name another output.path")
        try:
            with tempfile.TemporaryFile(dir=nearest):
                return
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputRefused(f"output.path {folder}: can't write in {nearest} ({reason})") from error

    def create(self) -> None:
        """Make the folders."""
        with _store_errors(self.folder.uri):
            self.folder.filesystem.create_dir(self.records.child("staging").path, recursive=True)

    def clear_staging(self) -> None:
        """Remove what killed attempts left; only for the holder of the lease, when no worker writes."""
        if self.folder.local:
            with _store_errors(self.folder.uri):
                self.folder.filesystem.delete_dir_contents(self.records.child("staging").path, missing_dir_ok=True)

    def committed(self, plan: Plan) -> Iterator[tuple[Part, Footer]]:
        """The parts of `plan` that stand in the folder, footer checked. Raises StoreError for one that isn't ours."""
        names = set(self._names())
        with ThreadPoolExecutor(16) as pool:
            waiting = [part for part in plan.parts() if part.name in names]
            while waiting:
                footers = list(pool.map(lambda part: self.read_footer(part, plan), waiting))
                yield from zip(waiting, footers, strict=True)
                after = [plan.following(part, each.rows) for part, each in zip(waiting, footers, strict=True)]
                waiting = [part for part in after if part is not None and part.name in names]

    def read_footer(self, part: Part, plan: Plan) -> Footer:
        """The footer of a committed part. Raises StoreError where it is torn or tells of another run."""
        file = self.folder.child(part.name)
        try:
            with file.filesystem.open_input_file(file.path) as opened:
                metadata = pq.read_metadata(opened)
        except (pa.ArrowException, OSError) as error:
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

    def write_record(self, name: str, content: Mapping[str, Any] | str) -> None:
        """Write `_pipeline/<name>` at once: JSON, or text as it is."""
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        target = self.records.child(name)
        with _store_errors(target.uri):
            if not target.local:
                with target.filesystem.open_output_stream(target.path) as stream:
                    stream.write(text.encode())
                return
            temporary = Path(f"{target.path}.{uuid.uuid4().hex[:8]}")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target.path)

    def read_record(self, name: str) -> dict[str, Any] | None:
        """`_pipeline/<name>` parsed as JSON; None where there is none."""
        target = self.records.child(name)
        try:
            with target.filesystem.open_input_file(target.path) as stream:
                content = json.loads(stream.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
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

    def _names(self) -> list[str]:
        selector = fs.FileSelector(self.folder.path, allow_not_found=True)
        try:
            found = self.folder.filesystem.get_file_info(selector)
        except OSError as error:
            raise OutputRefused(f"output.path {self.folder.uri} can't be listed: {error}") from error
        return sorted(info.base_name for info in found)


class StagedPart:
    """A part being written. Leaving the `with` block without a commit removes it."""

    def __init__(self, store: Store, part: Part, schema: pa.Schema) -> None:
        self.store, self.part, self.schema = store, part, schema
        name = f"{part.name.removesuffix('.parquet')}.{uuid.uuid4().hex[:12]}.parquet"
        staging = Path(store.records.child("staging").path) if store.folder.local else Path(tempfile.gettempdir())
        self.file = staging / name
        self.rows = 0

    def __enter__(self) -> Self:
        with _store_errors(str(self.file)):
            self._writer = pq.ParquetWriter(str(self.file), self.schema, compression="zstd")
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows, as one row group."""
        with _store_errors(str(self.file)):
            self._writer.write_table(table)
        self.rows += table.num_rows

    def commit(self, footer: Footer) -> None:
        """Close, read back, and move into place."""
        target = self.store.folder.child(self.part.name)
        with _store_errors(target.uri):
            self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps(asdict(footer))})
            self._writer.close()
            metadata = pq.read_metadata(str(self.file))
            if metadata.num_rows != footer.rows or footer_of(metadata) != footer:
                raise StoreError(f"{self.file} reads back otherwise than it was written: is the disk sound?")
            if target.local:
                _sync(self.file)
                self.file.replace(target.path)
                _sync(Path(target.path).parent)
            else:
                self._upload(target)

    def _upload(self, target: Location) -> None:
        """One whole object: it becomes visible when the upload is complete."""
        fs.copy_files(str(self.file), target.path, fs.LocalFileSystem(), target.filesystem)
        (info,) = target.filesystem.get_file_info([target.path])
        if info.size != self.file.stat().st_size:
            raise StoreError(f"{target.uri} has {info.size} bytes after an upload of {self.file.stat().st_size}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        self.file.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def footer_of(metadata: pq.FileMetaData) -> Footer | None:
    """What we wrote into a file's footer; None where we did not."""
    held = (metadata.metadata or {}).get(FOOTER_KEY)
    return None if held is None else Footer(**json.loads(held))


@contextlib.contextmanager
def _store_errors(place: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{place} can't be written: {error}") from error


def _differences(held: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """What differs between two identities, key by key."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*held, *wanted]):
            yield from _differences(held.get(name), wanted.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        for place, (one, other) in enumerate(zip(held, wanted, strict=True)):
            yield from _differences(one, other, f"{key}[{place}]")
    elif held != wanted:
        yield f"{key} was {held!r} and is {wanted!r}"


def _refusal(folder: str, differences: list[str]) -> str:
    more = f" (and {len(differences) - 5} more)" if len(differences) > 5 else ""
    return (
        f"output.path {folder} holds another run: {'; '.join(differences[:5])}{more}. "
        "Run with the options it was begun with, or give a new output.path"
    )
