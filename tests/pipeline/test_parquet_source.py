"""The Parquet source lists files in order, reads any row range, and names what it can't read."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError, SourceError
from pipeline.sources.parquet import ParquetSource


def write(file: Path, first: int, rows: int, row_group: int = 1000, **columns: pa.Array) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": range(first, first + rows), "text": [f"row {i}" for i in range(first, first + rows)]})
    for name, values in columns.items():
        table = table.append_column(name, values)
    pq.write_table(table, file, row_group_size=row_group)


def ids(source: ParquetSource, split: int, start: int, stop: int) -> list[int]:
    batches = source.read(source.splits()[split], start, stop, ["id"])
    return [value for batch in batches for value in batch.column(0).to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "in" / "a.parquet", 0, 300, row_group=70)
    write(tmp_path / "in" / "deep" / "b.parquet", 300, 200)
    write(tmp_path / "in" / "c.parquet", 500, 0)
    write(tmp_path / "in" / "_hidden.parquet", 900, 1)
    write(tmp_path / "in" / ".tmp" / "d.parquet", 900, 1)
    (tmp_path / "in" / "notes.txt").write_text("no")
    return tmp_path / "in"


def test_a_folder_gives_its_visible_parquet_files_by_name(folder: Path) -> None:
    names = [Path(split.name).name for split in ParquetSource(str(folder)).splits()]
    assert names == ["a.parquet", "c.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [("*.parquet", [300, 0, 1]), ("**/*.parquet", None), ("deep/b.parquet", [200]), ("[ac].parquet", [300, 0])],
)
def test_globs_match_as_in_a_shell(folder: Path, pattern: str, rows: list[int] | None) -> None:
    found = [split.rows for split in ParquetSource(str(folder / pattern)).splits()]
    assert sorted(found) == sorted(rows if rows is not None else [300, 200, 0, 1, 1])


def test_a_file_uri_and_a_list_keep_the_given_order(folder: Path) -> None:
    source = ParquetSource([f"file://{folder}/deep/b.parquet", str(folder / "a.parquet")])
    assert [split.rows for split in source.splits()] == [200, 300]
    assert ids(source, 0, 0, 2) == [300, 301]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 120)), max_size=6))
def test_any_row_range_reads_the_same_whatever_was_read_before(folder: Path, ranges: list[tuple[int, int]]) -> None:
    source = pickle.loads(pickle.dumps(ParquetSource(str(folder))))
    for start, length in ranges:
        stop = min(start + length, 300)
        assert ids(source, 0, start, stop) == list(range(start, stop))


def test_wide_rows_come_in_small_batches(tmp_path: Path) -> None:
    write(tmp_path / "wide.parquet", 0, 64, wide=pa.array(["x" * (1 << 20)] * 64).dictionary_encode().cast(pa.string()))
    source = ParquetSource(str(tmp_path / "wide.parquet"))
    metadata = pq.read_metadata(tmp_path / "wide.parquet")
    batches = list(source.read(source.splits()[0], 0, 64, ["id", "wide"]))
    assert metadata.num_row_groups == 1
    assert sum(batch.num_rows for batch in batches) == 64


def test_a_schema_that_differs_is_named_with_both_files_and_the_column(folder: Path) -> None:
    pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), folder / "z.parquet")
    with pytest.raises(JobError, match=r"a\.parquet.*z\.parquet differ: column 'id' is int64 in one and string"):
        ParquetSource(str(folder)).schema()


def test_a_truncated_file_is_named(folder: Path) -> None:
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JobError, match=r"a\.parquet is not a whole Parquet file .*leave it out"):
        ParquetSource(str(folder)).splits()


def test_a_file_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(JobError, match="twice"):
        ParquetSource([str(folder), str(folder / "a.parquet")]).splits()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.parquet", "no such file"),
        ("*.nope", "no file matches"),
        ("empty", "no .parquet file is in this folder"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, name: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(JobError, match=message) as refusal:
        ParquetSource(str(folder / name)).splits()
    assert name in str(refusal.value)


def test_an_unknown_scheme_is_a_clear_error() -> None:
    with pytest.raises(JobError, match=r"input\.parquet nope://x/y: no file system"):
        ParquetSource("nope://x/y").splits()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(JobError, match="two columns named 'a'"):
        ParquetSource(str(tmp_path)).schema()


def test_a_file_that_changed_since_the_plan_is_refused(folder: Path) -> None:
    source = ParquetSource(str(folder))
    split = source.splits()[0]
    write(folder / "a.parquet", 0, 301)
    with pytest.raises(SourceError, match=r"a\.parquet changed since the plan"):
        list(pickle.loads(pickle.dumps(source)).read(split, 0, 1, ["id"]))


def test_a_file_rewritten_between_two_parts_is_noticed_though_it_stands_open(folder: Path) -> None:
    source = ParquetSource(str(folder / "a.parquet"))
    split = source.splits()[0]
    assert [batch.num_rows for batch in source.read(split, 0, 50, ["id"])]
    write(folder / "a.parquet", 5000, 300, row_group=70)
    with pytest.raises(SourceError, match=r"a\.parquet changed since the plan"):
        list(source.read(split, 50, 100, ["id"]))


def test_a_file_rewritten_while_a_part_is_read_is_noticed_before_the_part_ends(folder: Path) -> None:
    source = ParquetSource(str(folder / "a.parquet"))
    batches = source.read(source.splits()[0], 0, 300, ["id"])
    next(batches)
    write(folder / "a.parquet", 5000, 300, row_group=70)
    with pytest.raises(SourceError, match=r"a\.parquet"):
        list(batches)
