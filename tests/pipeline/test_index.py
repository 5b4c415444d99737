"""The index saves a resume the footers it knows, and has no say in what is committed."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipeline.errors import StoreError
from pipeline.index import Counted, Entry, Stamp, stamp_of
from pipeline.index_files import add_to_index, join_index, read_index
from pipeline.plan import Part, Plan
from pipeline.store import Footer, Store
from tests.pipeline.test_store import SCHEMA, commit, footer, make_plan, store_at, table


def indexed(store: Store, plan: Plan) -> dict[str, Counted]:
    """Index what is committed; returns it."""
    learnt = dict[str, Entry]()

    def learn(name: str, stamp: Stamp | None, counted: Counted) -> None:
        assert stamp is not None
        learnt[name] = Entry(stamp, counted)

    held = {part.name: counted for part, counted in store.committed(plan, learnt=learn)}
    add_to_index(store, plan, learnt)
    return held


def committed(store: Store, plan: Plan) -> dict[str, Counted]:
    return {part.name: counted for part, counted in store.committed(plan)}


def forbid_footers(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_footer(store: Store, part: Part, plan: Plan) -> Footer:
        raise AssertionError(f"the footer of {part.name} was read")

    monkeypatch.setattr(Store, "read_footer", read_footer)


def index_files(folder: Path) -> list[Path]:
    return sorted((folder / "_pipeline").glob("index*"))


@pytest.mark.parametrize("rows", [250, None], ids=["known", "streamed"])
def test_a_resume_reads_no_footer_that_the_index_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int | None
) -> None:
    store, plan = store_at(tmp_path), make_plan(rows)
    for first in plan.parts():
        part: Part | None = first
        for count in (100, 40):
            if part is not None:
                commit(store, plan, part, count if rows is None else part.stop - part.start)
                part = plan.following(part, count)
    held = indexed(store, plan)
    assert len(held) == 4 if rows else 3
    forbid_footers(monkeypatch)
    assert committed(store, plan) == held


def test_of_a_part_that_the_index_does_not_know_the_footer_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = store_at(tmp_path), make_plan()
    first, second, *_ = plan.parts()
    commit(store, plan, first, 100)
    indexed(store, plan)
    commit(store, plan, second, 100)
    assert list(committed(store, plan)) == [first.name, second.name]
    forbid_footers(monkeypatch)
    with pytest.raises(AssertionError, match=second.name):
        committed(store, plan)


def _flipped(content: bytes) -> bytes:
    """With one bit of the first page turned."""
    return content[:60] + bytes([content[60] ^ 1]) + content[61:]


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "garbage": lambda file: file.write_bytes(os.urandom(500)),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-30]),
    "a table of something else": lambda file: pq.write_table(pa.table({"name": ["x"]}), file),
    "one byte is another": lambda file: file.write_bytes(_flipped(file.read_bytes())),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_index_that_cannot_be_read_changes_nothing(tmp_path: Path, broken: str) -> None:
    store, plan = store_at(tmp_path), make_plan()
    for part in list(plan.parts())[:3]:
        commit(store, plan, part, part.stop - part.start)
    held = indexed(store, plan)
    (piece,) = index_files(tmp_path)
    BROKEN[broken](piece)
    assert committed(store, plan) == held
    join_index(store, plan)
    assert committed(store, plan) == held


def test_of_the_pieces_of_an_index_the_newest_counts_and_a_damaged_one_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = store_at(tmp_path), make_plan()
    one, two, *_ = parts = list(plan.parts())
    for part in parts:
        commit(store, plan, part, part.stop - part.start)
    held = indexed(store, plan)
    stamps = {name: entry.stamp for name, entry in read_index(store, plan).items()}
    for errors in (1, 2, 3):
        counted = Counted(100, errors, {})
        add_to_index(store, plan, {part.name: Entry(stamps[part.name], counted) for part in (one, two)[: 3 - errors]})
    index_files(tmp_path)[-1].write_bytes(b"PAR1 no more")
    expected = {**held, one.name: Counted(100, 2, {}), two.name: Counted(100, 1, {})}
    forbid_footers(monkeypatch)
    assert committed(store, plan) == expected
    join_index(store, plan)
    assert index_files(tmp_path) == [tmp_path / "_pipeline" / "index"]
    assert committed(store, plan) == expected


def test_a_commit_says_of_its_file_what_a_listing_will(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    part = next(plan.parts())
    with store.stage(part, SCHEMA) as staged:
        staged.write(table(100))
        stamp = staged.commit(footer(plan, part, 100))
    assert stamp == stamp_of(store.listing()[part.name])


def test_times_in_whole_seconds_are_those_of_a_listing_that_tells_more() -> None:
    listed = fs.FileInfo("x", fs.FileType.File, mtime_ns=7_123_000_000, size=5)
    assert [Stamp(5, time).of(listed) for time in (7_123_000_000, 7_000_000_000, 7_122_000_000, 8_000_000_000)] == [
        True,
        True,
        False,
        False,
    ]
    assert not Stamp(6, 7_123_000_000).of(listed)


def test_the_index_of_another_run_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plan = store_at(tmp_path), make_plan()
    part = next(iter(plan.parts()))
    commit(store, plan, part, 100)
    stamp = stamp_of(store.listing()[part.name])
    assert stamp is not None
    add_to_index(store, make_plan(other=1), {part.name: Entry(stamp, Counted(7, 7, {}))})
    assert committed(store, plan) == {part.name: Counted(100, 0, {"tokens": 1.0})}


def test_a_part_that_changed_since_it_was_indexed_is_read_again(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    part = next(iter(plan.parts()))
    commit(store, plan, part, 100)
    held = indexed(store, plan)
    with store.stage(part, SCHEMA) as staged:  # the same size, another time
        staged.write(table(100))
        staged.commit(replace(footer(plan, part, 100), figures={"tokens": 2.0}))
    file = tmp_path / part.name
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert committed(store, plan) == {part.name: replace(held[part.name], figures={"tokens": 2.0})}
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StoreError, match=f"{part.name}.*move it away"):
        committed(store, plan)


def test_a_part_that_is_gone_is_not_there_for_all_that_the_index_says(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    parts = list(plan.parts())
    for part in parts:
        commit(store, plan, part, part.stop - part.start)
    held = indexed(store, plan)
    (tmp_path / parts[0].name).unlink()
    assert committed(store, plan) == {name: counted for name, counted in held.items() if name != parts[0].name}
