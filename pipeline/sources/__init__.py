"""Where rows come from: a source names its splits and streams any row range of one as Arrow record batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from pipeline.job import InputOptions


@dataclass(frozen=True, slots=True)
class Split:
    """One file, or one shard of a dataset."""

    index: int
    name: str
    rows: int | None
    """None where only reading can tell (a streamed shard)."""
    identity: dict[str, str | int | None]
    """What changes when the content does: size, modification time, etag, revision, fingerprint."""
    retired: bool = False
    """Another split holds the file as it is by now: the rows of this one are not wanted, but its places stay taken."""


class Source(Protocol):
    """Lists its splits and reads them. Instances travel to the workers, so they hold no open files when pickled."""

    def schema(self) -> pa.Schema:
        """Schema of every split."""

    def splits(self) -> Sequence[Split]:
        """The splits, in input order: the same for the same input. Raises JobError naming what can't be read."""

    def read(self, split: Split, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows start..stop-1 of `split`, or as many as there are, in order. Raises SourceError naming the split."""


def open_source(options: InputOptions) -> Source:
    """The source that the job's `input` names."""
    if options.parquet is not None:
        from pipeline.sources.parquet import ParquetSource

        return ParquetSource(options.parquet)
    assert options.dataset is not None
    from pipeline.sources.hf import DatasetSource

    return DatasetSource(options.dataset, options.limit)
