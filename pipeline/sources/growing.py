"""Parquet files that come over several rounds: those of earlier rounds stand first, in the order they were recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from pipeline.errors import JobError, SourceError
from pipeline.sources import Split
from pipeline.sources.parquet import ParquetSource, difference


@dataclass(frozen=True, slots=True)
class Comparison:
    """The splits that were recorded, beside the files that are there."""

    places: tuple[int | None, ...]
    """Of each recorded split the place of its file among those found; None where it can't be read any more."""
    changed: tuple[int, ...]
    """Recorded splits under whose name another file is found."""
    vanished: tuple[int, ...]
    """Recorded splits under whose name none is found."""
    new: tuple[int, ...]
    """Places, among those found, of files that no recorded split names."""


def compare(recorded: Sequence[Split], found: Sequence[Split]) -> Comparison:
    """Files are the same where name and identity are; rows are not looked at. Retired splits have no file.

    Raises JobError where two of the files found have one name.
    """
    twice = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if twice:
        raise JobError(f"input.parquet: two files are known as {twice[0]}: leave one of them out")
    now = {each.name: each for each in found}
    standing = [each for each in recorded if not each.retired]
    held = {each.index for each in standing if each.name in now and now[each.name].identity == each.identity}
    known = {each.name for each in standing}
    return Comparison(
        places=tuple(now[each.name].index if each.index in held else None for each in recorded),
        changed=tuple(each.index for each in standing if each.name in now and each.index not in held),
        vanished=tuple(each.index for each in standing if each.name not in now),
        new=tuple(each.index for each in found if each.name not in known),
    )


class GrowingSource:
    """Recorded splits in their order, and behind them, of the files found now, those that are new.

    `redo`: a changed file is new as well, and what was recorded of it is retired.
    """

    def __init__(self, files: ParquetSource, recorded: Sequence[Split], schema: pa.Schema | None, redo: bool) -> None:
        """`schema`: what was recorded that the files of earlier rounds are alike in; None in the first."""
        self.recorded, self.compared = tuple(recorded), compare(recorded, files.listing())
        self._files, self._schema = files, schema
        self._retired = frozenset(self.compared.changed if redo else ())
        again = {recorded[index].name for index in self._retired}
        changed = (each.index for each in files.listing() if each.name in again)
        self._fresh = tuple(sorted([*self.compared.new, *changed]))
        self._places = (*self.compared.places, *self._fresh)

    def __getstate__(self) -> dict[str, object]:
        # For workers, who read and plan nothing: no footers.
        return {name: value for name, value in self.__dict__.items() if name != "_news"}

    @cached_property
    def _news(self) -> ParquetSource:
        return self._files.among(self._fresh)

    @cached_property
    def _new_splits(self) -> list[Split]:
        return self._news.splits()

    def schema(self) -> pa.Schema:
        """That of earlier rounds, which all files must share. Any column may have nulls, since files to come may."""
        schema = self._alike()
        return pa.schema([field.with_nullable(True).remove_metadata() for field in schema])

    def _alike(self) -> pa.Schema:
        first = next((each for each in self._new_splits if each.rows), None)
        bound = any(each.rows for each in self.recorded)
        if self._schema is not None and (not self._new_splits or (bound and first is None)):
            return self._schema  # files without rows often don't know their types
        found = self._news.schema()
        if self._schema is None or first is None or not bound:
            return found
        what = difference(self._schema, found)
        if what is not None:
            raise JobError(
                f"the files of earlier rounds and {first.name} differ: {what}; "
                "one output holds one table: write the file as they are, or run it into another output.path"
            )
        return self._schema

    def splits(self) -> list[Split]:
        """The recorded splits, then the new ones in the source's own order."""
        before = [replace(each, retired=each.retired or each.index in self._retired) for each in self.recorded]
        return before + [replace(each, index=len(before) + each.index) for each in self._new_splits]

    def readable(self, split: Split) -> bool:
        """Whether the file stands as it was when the split was recorded."""
        return self._places[split.index] is not None

    def read(self, split: Split, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """As every source does. Raises SourceError for a split whose file is not there as it was recorded."""
        place = self._places[split.index]
        if place is None:
            changed = split.index in self.compared.changed
            raise SourceError(
                f"{split.name} {'changed' if changed else 'is gone'} before all of its rows were done: put it back as "
                f"it was{', or give input.changed=redo' if changed else ''}"
            )
        return self._files.read(replace(split, index=place), start, stop, columns)
