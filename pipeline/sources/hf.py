"""Hugging Face datasets: on the Hub, on disk, or JSON Lines, CSV and text files through the library's loaders.

A map-style dataset is one split. A streamed one has a split a shard (a file, mostly), whose rows only reading counts;
with a limit it is one split, the shards in order.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import datasets
import pyarrow as pa

from pipeline.errors import JobError, SourceError
from pipeline.job import DatasetOptions
from pipeline.redaction import redact
from pipeline.sources import Split

BATCH_ROWS = 256
KEPT_OPEN = 4
"""Shards that stay open where a part of each was read last, for the parts that follow."""


class DatasetSource:
    """The dataset that `datasets.load_dataset` gives for the same arguments."""

    def __init__(self, options: DatasetOptions, limit: int | None = None) -> None:
        self.options = options
        self.limit = limit
        self._open: OrderedDict[int, tuple[int, list[pa.RecordBatch], Iterator[pa.Table]]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {"options": self.options, "limit": self.limit, "_open": OrderedDict()}

    @cached_property
    def _builder(self) -> Any:
        options = self.options
        if options.path == "pandas":  # which some versions of datasets have
            raise JobError(
                "input.dataset pandas: this loader unpickles files, which would run what code they hold: "
                "write them as Parquet or JSON Lines"
            )
        datasets.disable_progress_bars()
        files = {} if options.data_files is None else {"data_files": options.data_files}
        try:
            return datasets.load_dataset_builder(
                options.path, options.name, data_dir=options.data_dir, revision=options.revision, **files
            )
        except Exception as error:  # each loader has exceptions of its own
            raise JobError(self._refusal(error)) from error

    @cached_property
    def _dataset(self) -> Any:
        builder, split = self._builder, self.options.split
        try:
            if self.options.streaming:
                dataset = builder.as_streaming_dataset(split)._resolve_features()
                return dataset if self.limit is None else dataset.take(self.limit)
            builder.download_and_prepare()
            return builder.as_dataset(split)
        except Exception as error:  # each loader has exceptions of its own
            raise JobError(self._refusal(error)) from error

    def _refusal(self, error: Exception) -> str:
        given = {key: value for key, value in self.options.model_dump().items() if value not in (None, False)}
        reason = " ".join(str(error).split()) or "no rows in it"
        return f"input.dataset {given}: {reason}; check path, name, split and data_files"

    def schema(self) -> pa.Schema:
        features = self._dataset.features
        if features is None:
            raise JobError(f"input.dataset {self.options.path}: its columns can't be told without reading it all")
        return features.arrow_schema.remove_metadata()

    def splits(self) -> list[Split]:
        identity = self._identity()
        name = redact(f"{self.options.path}:{self.options.split}")
        if not self.options.streaming:
            return [Split(0, name, self._dataset.num_rows, identity)]
        if self.limit is not None:
            return [Split(0, name, None, identity)]
        shards = self._dataset.num_shards
        return [Split(index, f"{name}[shard {index} of {shards}]", None, identity) for index in range(shards)]

    def _identity(self) -> dict[str, str | int | None]:
        builder, options = self._builder, self.options
        files = [
            (str(split), [str(file) for file in found], [list(map(str, origin)) for origin in found.origin_metadata])
            for split, found in (builder.config.data_files or {}).items()
        ]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        return {"config": builder.config.name, "hash": builder.hash, "split": options.split, "files": digest}

    def read(self, split: Split, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if self._identity() != split.identity:
            raise SourceError(f"{split.name} changed since the plan: run into a new output.path")
        try:
            yield from self._take(split, start, stop, list(columns))
        except SourceError:
            raise
        except Exception as error:  # whatever the loader of some format raises is this split's failure, by name
            raise SourceError(f"{split.name} can't be read at rows {start} to {stop}: {error}") from error

    def _take(self, split: Split, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self.schema().field(name) for name in columns])
        row, left, rest = self._open.pop(split.index, (None, [], iter(())))
        if row != start:
            row, left, rest = start, [], self._iterate(split, start)
        while row < stop:
            if not left:
                table = next(rest, None)
                if table is None:
                    break
                left = _conform(table, schema, split).to_batches()
                continue
            batch = left.pop(0)
            keep = min(stop - row, batch.num_rows)
            if keep < batch.num_rows:
                left.insert(0, batch.slice(keep))
            row += keep
            yield batch.slice(0, keep)
        self._open[split.index] = (row, left, rest)
        while len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)

    def _iterate(self, split: Split, start: int) -> Iterator[pa.Table]:
        dataset = self._dataset.with_format("arrow")
        if not self.options.streaming:
            rows = range(start, dataset.num_rows, BATCH_ROWS)
            return (dataset[first : first + BATCH_ROWS] for first in rows)
        if self.limit is None:
            dataset = dataset.shard(dataset.num_shards, split.index)
        return iter(dataset.skip(start).iter(BATCH_ROWS))


def _conform(table: pa.Table, schema: pa.Schema, split: Split) -> pa.Table:
    """`table` with the plan's columns and types; a column that a stretch of JSON leaves out is null there."""
    arrays = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
