"""The index saves a resume the footers it knows, and has no say in what is committed."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoreError
from pipeline.index import Counted
from pipeline.plan import Part, Plan
from pipeline.store import Footer, Store
from tests.pipeline.test_store import SCHEMA, commit, footer, make_plan, store_at, table


def indexed(store: Store, plan: Plan) -> dict[str, Counted]:
    """Index what is committed; returns it."""
    held = {part.name: counted for part, counted in store.committed(plan)}
    store.write_index(plan, held)
    return held


def committed(store: Store, plan: Plan) -> dict[str, Counted]:
    return {part.name: counted for part, counted in store.committed(plan)}


def forbid_footers(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_footer(store: Store, part: Part, plan: Plan) -> Footer:
        raise AssertionError(f"the footer of {part.name} was read")

    monkeypatch.setattr(Store, "read_footer", read_footer)


def index_file(folder: Path) -> Path:
    return folder / "_pipeline" / "index"


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


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "garbage": lambda file: file.write_bytes(os.urandom(500)),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-30]),
    "a table of something else": lambda file: pq.write_table(pa.table({"name": ["x"]}), file),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_index_that_cannot_be_read_changes_nothing(tmp_path: Path, broken: str) -> None:
    store, plan = store_at(tmp_path), make_plan()
    for part in list(plan.parts())[:3]:
        commit(store, plan, part, part.stop - part.start)
    held = indexed(store, plan)
    BROKEN[broken](index_file(tmp_path))
    assert committed(store, plan) == held


def test_the_index_of_another_run_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plan = store_at(tmp_path), make_plan()
    part = next(iter(plan.parts()))
    commit(store, plan, part, 100)
    store.write_index(make_plan(other=1), {part.name: Counted(7, 7, {})})
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


def test_a_new_index_keeps_what_is_true_of_the_old_one_and_forgets_what_is_gone(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    parts = list(plan.parts())
    for part in parts:
        commit(store, plan, part, part.stop - part.start)
    held = indexed(store, plan)
    (tmp_path / parts[0].name).unlink()
    (tmp_path / parts[1].name).touch()
    store.write_index(plan, {parts[2].name: Counted(50, 1, {})})
    found = {name: entry.counted for name, entry in store.indexed(plan).items()}
    assert found == {parts[2].name: Counted(50, 1, {}), parts[3].name: held[parts[3].name]}
