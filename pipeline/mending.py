"""A committed part whose rows with an error are done again; all others stay as they stand, value for value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.digest import digests
from pipeline.errors import StoreError
from pipeline.footer import footer_of
from pipeline.plan import Part
from pipeline.steps import failed_steps, places_of_columns
from pipeline.store import Store


class StandingPart:
    """The file of a committed part, whole in memory. Raises StoreError where it can't be read, or was changed."""

    def __init__(self, store: Store, part: Part, schema: pa.Schema, steps: Mapping[str, int]) -> None:
        """`steps`: how many result columns each has, by its name."""
        self.schema = schema
        self.place = store.folder.child(part.name)
        content = store.read_whole(self.place.path)
        found = digests(content)
        if found is None or found[0] != found[1]:
            raise StoreError(
                f"{self.place.uri} was changed after it was committed: move it away, and `pipeline run` does it again"
            )
        self._file = pq.ParquetFile(pa.BufferReader(content))
        footer = footer_of(self._file.metadata)
        if footer is None or footer.part != part.name:
            raise StoreError(f"{self.place.uri} is not that part: move it away, and `pipeline run` does it again")
        self.footer = footer
        reasons = self._file.read([schema.names[-1]]).column(0).to_pylist()
        told = {footer.start + row: reason for row, reason in enumerate(reasons) if reason is not None}
        told = {row: reason for row, reason in told.items() if part.start <= row < part.stop}
        self.failed = list(told)
        """Rows of the part's range that carry an error, by their place in the split."""
        failed_in = {row: failed_steps(reason, list(steps)) for row, reason in told.items()}
        self.sound = {name: {row for row, names in failed_in.items() if name not in names} for name in steps}
        """Of each step those of them that it did well: nothing of theirs is done again."""
        self._columns = places_of_columns(len(schema), steps)

    def mended(self, fresh: Sequence[pa.Table]) -> Iterator[pa.Table]:
        """The part's rows, row group by row group, with those that failed taken from `fresh`, in order."""
        renewed = pa.concat_tables([self.schema.empty_table(), *fresh])
        assert renewed.num_rows == len(self.failed)
        first, used = self.footer.start, 0
        for group in range(self._file.num_row_groups):
            table = pa.Table.from_arrays(self._file.read_row_group(group).columns, schema=self.schema)
            end, pieces, start = first + table.num_rows, [], 0
            while used < len(self.failed) and self.failed[used] < end:
                at = self.failed[used] - first
                row = self._joined(self.failed[used], table.slice(at, 1), renewed.slice(used, 1))
                pieces += [table.slice(start, at - start), row]
                start, used = at + 1, used + 1
            yield pa.concat_tables([*pieces, table.slice(start)])
            first = end

    def _joined(self, row: int, stood: pa.Table, fresh: pa.Table) -> pa.Table:
        """One row: what stood of the steps that had done it well, else what is fresh."""
        kept = {place for name, places in self._columns.items() if row in self.sound[name] for place in places}
        columns = [(stood if place in kept else fresh).column(place) for place in range(len(self.schema))]
        return pa.Table.from_arrays(columns, schema=self.schema)
