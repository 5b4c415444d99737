"""A committed part whose rows with an error are done again; all others stay as they stand, value for value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.plan import Part
from pipeline.store import Store, footer_of


class StandingPart:
    """The file of a committed part. Raises StoreError where it can't be read."""

    def __init__(self, store: Store, part: Part, schema: pa.Schema) -> None:
        self.schema = schema
        self.place = store.folder.child(part.name)
        try:
            self._file = pq.ParquetFile(self.place.filesystem.open_input_file(self.place.path))
            footer = footer_of(self._file.metadata)
            reasons = self._file.read([schema.names[-1]]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.place.uri} can't be read: {error}") from error
        if footer is None:
            raise StoreError(f"{self.place.uri} was not written by a run: move it away to do the part again")
        self.footer = footer
        rows = [footer.start + row for row, failed in enumerate(pc.is_valid(reasons).to_pylist()) if failed]
        self.failed = [row for row in rows if part.start <= row < part.stop]
        """Rows of the part's range that carry an error, by their place in the split."""

    def mended(self, fresh: Sequence[pa.Table]) -> Iterator[pa.Table]:
        """The part's rows, row group by row group, with those that failed taken from `fresh`, in order."""
        renewed = pa.concat_tables([self.schema.empty_table(), *fresh])
        assert renewed.num_rows == len(self.failed)
        first, used = self.footer.start, 0
        for group in range(self._file.num_row_groups):
            table = self._read(group)
            end, pieces, start = first + table.num_rows, [], 0
            while used < len(self.failed) and self.failed[used] < end:
                at = self.failed[used] - first
                pieces += [table.slice(start, at - start), renewed.slice(used, 1)]
                start, used = at + 1, used + 1
            yield pa.concat_tables([*pieces, table.slice(start)])
            first = end

    def _read(self, group: int) -> pa.Table:
        try:
            return pa.Table.from_arrays(self._file.read_row_group(group).columns, schema=self.schema)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.place.uri} can't be read: {error}") from error
