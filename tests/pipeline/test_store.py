"""Parts appear whole or not at all; another run's folder is refused with the difference named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputRefused, StoreError
from pipeline.locations import locate
from pipeline.plan import Part, Plan
from pipeline.sources import Split
from pipeline.store import Footer, Store

SCHEMA = pa.schema([("id", pa.int64()), ("error", pa.string())])


def make_plan(rows: int | None = 250, **identity: Any) -> Plan:
    splits = (Split(0, "a", rows, {}), Split(1, "b", None if rows is None else 30, {}))
    return Plan({"task": "score", **identity}, splits, 100, None, ("id",), SCHEMA)


def store_at(folder: Path) -> Store:
    store = Store(locate(str(folder), "output.path"))
    store.create()
    return store


def footer(plan: Plan, part: Part, rows: int) -> Footer:
    return Footer(
        plan.fingerprint, part.name, part.split.name, part.start, rows, 0, {"tokens": 1.0}, "m", None, "cpu", "f", "0"
    )


def table(rows: int) -> pa.Table:
    return pa.table({"id": range(rows), "error": pa.nulls(rows, pa.string())}, schema=SCHEMA)


def commit(store: Store, plan: Plan, part: Part, rows: int) -> None:
    with store.stage(part, SCHEMA) as staged:
        staged.write(table(rows))
        staged.commit(footer(plan, part, rows))


def visible(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("_"))


def test_parts_follow_from_splits_and_are_named_in_input_order() -> None:
    plan = make_plan()
    ranges = [(part.split.index, part.start, part.stop) for part in plan.parts()]
    assert ranges == [(0, 0, 100), (0, 100, 200), (0, 200, 250), (1, 0, 30)]
    names = [part.name for part in plan.parts()]
    assert names == sorted(names)
    assert names[0] == f"part-00000-{plan.fingerprint[:10]}.parquet"


def test_a_limit_cuts_the_parts_of_the_last_split_it_reaches() -> None:
    plan = replace(make_plan(), limit=120)
    assert [(part.start, part.stop) for part in plan.parts()] == [(0, 100), (100, 120)]
    assert plan.rows == 120


def test_an_input_without_rows_is_one_empty_part() -> None:
    plan = replace(make_plan(), splits=(Split(0, "a", 0, {}),))
    assert [(part.start, part.stop) for part in plan.parts()] == [(0, 0)]


def test_a_streamed_split_grows_by_a_part_until_one_is_not_full() -> None:
    plan = make_plan(rows=None)
    first, other = plan.parts()
    second = plan.following(first, 100)
    assert second is not None
    assert (second.start, second.stop) == (100, 200)
    assert plan.following(second, 99) is None
    assert [first.name, second.name, other.name] == sorted([first.name, second.name, other.name])


def test_a_committed_part_is_found_again_with_its_footer(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    parts = list(plan.parts())
    commit(store, plan, parts[1], 100)
    found = list(store.committed(plan))
    assert [(part.name, held.rows, held.figures) for part, held in found] == [(parts[1].name, 100, {"tokens": 1.0})]
    assert not list((tmp_path / "_pipeline" / "staging").iterdir())


def test_committed_parts_of_a_streamed_split_are_followed(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan(rows=None)
    part = next(iter(plan.parts()))
    for rows in (100, 100, 40):
        commit(store, plan, part, rows)
        following = plan.following(part, rows)
        part = following if following is not None else part
    assert [held.rows for _, held in store.committed(plan)] == [100, 100, 40]


def test_a_part_that_was_not_committed_leaves_nothing(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    part = next(iter(plan.parts()))
    with pytest.raises(ZeroDivisionError), store.stage(part, SCHEMA) as staged:
        staged.write(table(10))
        raise ZeroDivisionError
    assert visible(tmp_path) == []
    assert not list((tmp_path / "_pipeline" / "staging").iterdir())


def test_a_footer_that_miscounts_is_not_committed(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    part = next(iter(plan.parts()))
    with pytest.raises(StoreError, match="reads back otherwise"), store.stage(part, SCHEMA) as staged:
        staged.write(table(10))
        staged.commit(footer(plan, part, 11))
    assert visible(tmp_path) == []


def test_what_a_killed_attempt_left_in_staging_is_cleared(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    (tmp_path / "_pipeline" / "staging" / "part-00000.abc.parquet").write_bytes(b"half")
    store.clear_staging()
    assert not list((tmp_path / "_pipeline" / "staging").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "foreign", "another run"])
def test_a_part_that_is_not_ours_is_named_and_not_counted(tmp_path: Path, damage: str) -> None:
    store, plan = store_at(tmp_path), make_plan()
    part = next(iter(plan.parts()))
    commit(store, plan, part, 100)
    file = tmp_path / part.name
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "foreign":
        pq.write_table(table(100), file)
    else:
        commit(store, make_plan(other=1), replace(part), 100)
    with pytest.raises(StoreError, match=f"{part.name}.*move it away"):
        list(store.committed(plan))


def test_a_folder_with_another_run_is_refused_key_by_key(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    assert not store.opened(make_plan(score={"stride": 512, "window": "rolling"}))
    store.write_record("plan.json", make_plan(score={"stride": 512, "window": "rolling"}).to_json())
    assert store.opened(make_plan(score={"stride": 512, "window": "rolling"}))
    with pytest.raises(OutputRefused, match=r"score\.stride was 512 and is 256\. Run with"):
        store.opened(make_plan(score={"stride": 256, "window": "rolling"}))


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputRefused, match=r"thesis\.txt"):
        Store(locate(str(tmp_path), "output.path")).opened(make_plan())
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
