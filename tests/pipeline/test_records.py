"""A run writes down how it gets on; that it can't never fails the run."""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline import records
from pipeline.errors import Interrupted, LeaseHeld, PipelineError, StoreError
from pipeline.index import Counted, Entry, Stamp
from pipeline.index_files import read_index
from pipeline.messages import Counts
from pipeline.records import Recorder, Tally
from pipeline.store import Store
from tests.pipeline.test_store import make_plan, store_at


@dataclass
class StandIn:
    """What a recorder reads of a driver."""

    counts: Counts = field(default_factory=lambda: Counts(rows=30, errors=2, tokens=600, slots=600))
    began: float = field(default_factory=lambda: time.monotonic() - 10)
    workers: int = 2
    events: list[tuple[float, str]] = field(default_factory=lambda: [(1.0, f"event {each}") for each in range(30)])


def progress(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "_pipeline" / "progress.json").read_text())
    return content


def test_what_the_driver_says_is_written_down(tmp_path: Path) -> None:
    tally = Tally()
    with Recorder(store_at(tmp_path), make_plan(), tally) as recorder:
        tally.add(Counted(100, 1, {}))
        recorder.resumed()
        recorder.every = 0.0
        while progress_rows(tmp_path) != 130:
            recorder.update(StandIn())  # type: ignore[arg-type]
        told = progress(tmp_path)
    assert (told["state"], told["rows_total"], told["errors"]) == ("running", 280, 3)
    assert (told["tokens"], told["workers"]) == (600, 2)
    assert 0 < told["rows_a_second"] <= 3
    assert 0 < told["tokens_a_second"] <= 60
    assert [event for _, event in told["events"]] == [f"event {each}" for each in range(10, 30)]
    assert told["started"] <= told["updated"]


def progress_rows(folder: Path) -> int | None:
    file = folder / "_pipeline" / "progress.json"
    return progress(folder).get("rows") if file.exists() else None


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "finished"),
        (PipelineError("2 parts failed"), "failed"),
        (ZeroDivisionError("by zero"), "failed"),
        (Interrupted("stopped by SIGINT"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_run_ended_is_written_down(tmp_path: Path, error: BaseException | None, state: str) -> None:
    expected: AbstractContextManager[object] = nullcontext() if error is None else pytest.raises(type(error))
    with expected, Recorder(store_at(tmp_path), make_plan(), Tally(7, 1)):
        if error is not None:
            raise error
    told = progress(tmp_path)
    assert (told["state"], told["rows"], told["errors"], told["workers"]) == (state, 7, 1, 0)
    assert told["reason"] == (None if error is None else str(error) or "KeyboardInterrupt")


def test_a_driver_that_lost_the_folder_writes_nothing_more(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan()
    with pytest.raises(LeaseHeld), Recorder(store, plan, Tally()) as recorder:
        recorder.learnt(next(plan.parts()).name, Stamp(1, 1), Counted(100, 0, {}))
        raise LeaseHeld("taken over")
    assert progress(tmp_path)["state"] == "running"
    assert not list((tmp_path / "_pipeline").glob("index*"))


def test_the_index_is_written_whenever_there_is_much_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = store_at(tmp_path), make_plan()
    monkeypatch.setattr(records, "INDEX_PARTS", 2)
    with Recorder(store, plan, Tally()) as recorder:
        for number in range(3):
            while not recorder.idle:
                continue
            recorder.learnt(f"part {number}", Stamp(number, number), Counted(100, 0, {"tokens": 1.0}))
        recorder.learnt("timeless", None, Counted(100, 0, {}))
        while len(read_index(store, plan)) < 2:
            continue
    assert len(list((tmp_path / "_pipeline").glob("index-*"))) == 2
    expected = {f"part {number}": Entry(Stamp(number, number), Counted(100, 0, {"tokens": 1.0})) for number in range(3)}
    assert dict(read_index(store, plan)) == expected
    with Recorder(store, plan, Tally()) as recorder:
        recorder.resumed()
    assert [file.name for file in (tmp_path / "_pipeline").glob("index*")] == ["index"]
    assert dict(read_index(store, plan)) == expected


def test_a_store_that_takes_no_records_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: Store, name: str, content: object) -> None:
        raise StoreError("no space left")

    store, plan = store_at(tmp_path), make_plan()
    monkeypatch.setattr(Store, "write_record", refuse)
    with Recorder(store, plan, Tally()) as recorder:
        recorder.every = 0.0
        recorder.learnt(next(plan.parts()).name, Stamp(1, 1), Counted(100, 0, {}))
        recorder.update(StandIn())  # type: ignore[arg-type]
    assert list((tmp_path / "_pipeline").iterdir()) == [tmp_path / "_pipeline" / "staging"]
