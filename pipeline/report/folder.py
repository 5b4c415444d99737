"""What an output folder says of its run, without any row: the records, and the footers of the committed parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.committed import committed_parts
from pipeline.errors import OutputRefused, StoreError
from pipeline.footer import Footer, footer_of
from pipeline.locations import Location, locate
from pipeline.records import PROGRESS
from pipeline.retries import explain
from pipeline.status import Status, read_status
from pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Committed:
    """A part that stands in the folder."""

    name: str
    modified: float
    """Unix seconds; 0 where the store does not tell."""
    size: int


@dataclass(frozen=True, slots=True)
class Folder:
    """An output folder as it was listed once."""

    store: Store
    status: Status
    plan: Mapping[str, Any]
    job: Mapping[str, Any]
    job_text: str
    summary: Mapping[str, Any]
    """Of the last finished command; empty where the run is not finished."""
    progress: Mapping[str, Any]
    parts: tuple[Committed, ...] = field(repr=False)

    @property
    def kept(self) -> list[str] | None:
        """The input's columns in the output; None where the plan does not say."""
        kept = (self.plan.get("identity", {}).get("output") or {}).get("columns")
        return list(kept) if isinstance(kept, list) else None

    @contextlib.contextmanager
    def opened(self, part: Committed) -> Iterator[pq.ParquetFile]:
        """A part's file. Raises StoreError where it can't be read, also for what is read of it inside the `with`."""
        place = self.store.folder.child(part.name)
        try:
            with place.filesystem.open_input_file(place.path) as stream, pq.ParquetFile(stream) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{place.uri} can't be read: {explain(error)}: `pipeline verify` tells what is wrong with the folder"
            ) from error

    def footer(self, part: Committed, file: pq.ParquetFile) -> Footer:
        """What the part's footer says. Raises StoreError where it is not of this run."""
        footer = footer_of(file.metadata)
        if footer is None or footer.fingerprint != self.status.fingerprint:
            uri = self.store.folder.child(part.name).uri
            raise StoreError(f"{uri} was not written by this run: move it away, and `pipeline run` does the part again")
        return footer


def read_folder(output: str) -> Folder:
    """Look at the folder (a path or URI). Raises OutputRefused where it holds no run."""
    status = read_status(output)
    store = Store(locate(output, "OUT"))
    plan = store.read_record("plan.json") or {}
    text = _text(store.records.child("job.yaml"))
    return Folder(
        store=store,
        status=status,
        plan=plan,
        job=_parsed(text),
        job_text=text,
        summary=_record(store, "summary.json") if status.state == "finished" else {},
        progress=_record(store, PROGRESS),
        parts=tuple(
            Committed(info.base_name, (info.mtime_ns or 0) / 1e9, info.size or 0)
            for info in committed_parts(store.listing(), plan)
        ),
    )


def _record(store: Store, name: str) -> dict[str, Any]:
    """A record that the report can do without; nothing where it is torn."""
    try:
        return store.read_record(name) or {}
    except OutputRefused:
        return {}


def _text(place: Location) -> str:
    try:
        with place.filesystem.open_input_file(place.path) as stream:
            return bytes(stream.read()).decode(errors="replace")
    except OSError:
        return ""


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}
