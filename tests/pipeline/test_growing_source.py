"""Whatever comes, changes and goes between two rounds: what was recorded keeps its place, its parts and its rows."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError, SourceError
from pipeline.plan import Plan
from pipeline.sources import Split
from pipeline.sources.growing import GrowingSource, compare
from pipeline.sources.parquet import ParquetSource
from tests.pipeline.rounds import put

SCHEMA = pa.schema([("id", pa.int64())])
FILES = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.integers(0, 25), st.integers(0, 2)), max_size=8)
"""By name the rows and the version of each file that is there."""


@dataclass(frozen=True)
class Files:
    """What a ParquetSource would tell of such files."""

    files: Sequence[tuple[str, int, int]]

    def listing(self) -> list[Split]:
        return [Split(index, name, None, {"size": size}) for index, (name, _, size) in enumerate(self.files)]

    def splits(self) -> list[Split]:
        return [replace(split, rows=rows) for split, (_, rows, _) in zip(self.listing(), self.files, strict=True)]

    def among(self, places: Sequence[int]) -> "Files":
        return Files([self.files[place] for place in places])


def next_round(recorded: Sequence[Split], files: Files, redo: bool) -> GrowingSource:
    return GrowingSource(cast(ParquetSource, files), recorded, SCHEMA, redo)


def parts(splits: Sequence[Split]) -> list[tuple[str, str, int, int, int]]:
    plan = Plan({"task": "score"}, splits, 10, None, ("id",), SCHEMA, input_schema=SCHEMA)
    return [(each.name, each.split.name, each.split.index, each.start, each.stop) for each in plan.parts()]


@given(st.lists(st.tuples(FILES, st.booleans()), max_size=6))
def test_rounds_only_ever_append(rounds: list[tuple[dict[str, tuple[int, int]], bool]]) -> None:
    recorded: list[Split] = []
    for content, redo in rounds:
        # The size of a file grows with its rows and versions, so that one is never taken for another.
        files = Files([(name, rows, 1000 * version + rows) for name, (rows, version) in sorted(content.items())])
        source = next_round(recorded, files, redo)
        splits = source.splits()
        assert [split.index for split in splits] == list(range(len(splits)))
        assert [replace(split, retired=False) for split in splits[: len(recorded)]] == [
            replace(split, retired=False) for split in recorded
        ]
        newly = {split.index for split, was in zip(splits, recorded, strict=False) if split.retired and not was.retired}
        assert newly == (set(source.compared.changed) if redo else set())
        kept = [part for part in parts(recorded) if not splits[part[2]].retired]
        assert parts(splits)[: len(kept)] == kept
        names = [name for name, *_ in parts(splits)]
        assert len(names) == len(set(names))
        standing = {split.name: split for split in splits if not split.retired}
        assert len(standing) == sum(not split.retired for split in splits)
        for found in files.splits():
            split = standing[found.name]
            assert source.readable(split) == (split.identity == found.identity)
            assert source.readable(split) or (not redo and split.index in source.compared.changed)
        again = next_round(splits, files, redo)
        assert (again.splits(), again.compared.new) == (splits, ())
        recorded = splits


def test_what_changed_what_vanished_and_what_is_new_is_told_apart() -> None:
    recorded = [Split(index, name, 5, {"size": 1}) for index, name in enumerate("abc")]
    recorded += [Split(3, "d", 5, {"size": 0}, retired=True), Split(4, "d", 6, {"size": 1})]
    found = [
        Split(index, name, None, {"size": size})
        for index, (name, size) in enumerate([("d", 1), ("b", 2), ("a", 1), ("x", 1)])
    ]
    compared = compare(recorded, found)
    assert compared.places == (2, None, None, None, 0)
    assert (compared.changed, compared.vanished, compared.new) == ((1,), (2,), (3,))


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(JobError, match="two files are known as a"):
        compare([], [Split(0, "a", None, {}), Split(1, "a", None, {})])


def ids(source: GrowingSource, split: Split) -> list[int]:
    assert split.rows is not None
    return [row for batch in source.read(split, 0, split.rows, ["id"]) for row in batch.column(0).to_pylist()]


def grown(folder: Path, recorded: Sequence[Split], **options: Any) -> GrowingSource:
    source = GrowingSource(ParquetSource(str(folder)), recorded, None, options.get("redo", False))
    source.schema()
    return cast(GrowingSource, pickle.loads(pickle.dumps(source)))


def test_a_worker_reads_files_of_all_rounds_and_names_those_it_can_not(tmp_path: Path) -> None:
    for name, first in [("m", 0), ("k", 20)]:
        put(tmp_path / f"{name}.parquet", range(first, first + 20))
    recorded = grown(tmp_path, []).splits()
    put(tmp_path / "a.parquet", range(40, 50))
    source = grown(tmp_path, recorded)
    assert [ids(source, split) for split in source.splits()] == [[*range(20, 40)], [*range(20)], [*range(40, 50)]]
    put(tmp_path / "k.parquet", range(7))
    (tmp_path / "m.parquet").unlink()
    source = grown(tmp_path, recorded)
    with pytest.raises(SourceError, match=r"k\.parquet changed before .*or give input\.changed=redo"):
        ids(source, recorded[0])
    with pytest.raises(SourceError, match=r"m\.parquet is gone before all of its rows were done: put it back"):
        ids(source, recorded[1])
    source = grown(tmp_path, recorded, redo=True)
    assert [ids(source, split) for split in source.splits()[2:]] == [[*range(40, 50)], [*range(7)]]


def test_the_footers_of_recorded_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.parquet", range(5))
    source = grown(tmp_path, [])
    recorded, schema = source.splits(), source.schema()
    monkeypatch.setattr("pipeline.sources.parquet._footer", None)
    again = GrowingSource(ParquetSource(str(tmp_path)), recorded, schema, redo=False)
    assert (again.splits(), again.schema()) == (recorded, schema)
