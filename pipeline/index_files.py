"""The index on its store: pieces, each with what was learnt since the last, and one file that they are joined in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pyarrow import fs

from pipeline.index import Entry, Index, from_bytes, table_of, to_bytes
from pipeline.plan import Plan

if TYPE_CHECKING:
    from pipeline.store import Store

NAME = "index"
"""A Parquet file without the suffix, by which `datasets.load_dataset` would take it for output."""
READERS = 16


def read_index(store: Store, plan: Plan) -> Index:
    """What the folder's index knows of this run's parts; nothing where there is none, or none that can be read."""
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(lambda name: _content(store, name), _files(store))
        return Index(from_bytes(content, plan.fingerprint) for content in contents)


def add_to_index(store: Store, plan: Plan, entries: Mapping[str, Entry]) -> None:
    """Write a piece: what is known of more parts, or anew of some. Raises StoreError."""
    store.write_record(f"{NAME}-{time.time_ns():020d}", to_bytes(table_of(entries), plan.fingerprint))


def join_index(store: Store, plan: Plan) -> None:
    """Make the pieces one file; only for the holder of the lease. Raises StoreError."""
    pieces = [name for name in _files(store) if name != NAME]
    if pieces:
        store.write_record(NAME, to_bytes(read_index(store, plan).table, plan.fingerprint))
    for name in pieces:
        with contextlib.suppress(OSError):
            store.delete_record(name)


def _files(store: Store) -> list[str]:
    """Names of the index's files, the newest first."""
    selector = fs.FileSelector(store.records.path, allow_not_found=True)
    try:
        names = [info.base_name for info in store.records.filesystem.get_file_info(selector)]
    except OSError:
        return []
    return sorted((name for name in names if name.partition("-")[0] == NAME), reverse=True)


def _content(store: Store, name: str) -> bytes:
    file = store.records.child(name)
    try:
        with file.filesystem.open_input_file(file.path) as stream:
            return bytes(stream.read())
    except OSError:
        return b""
