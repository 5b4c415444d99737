"""How far a command is and how fast: of a run, of a resume, of a retry, and of rows that are only tried."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.compose import load_job
from pipeline.messages import Counts
from pipeline.pace import Pace, pace_of
from pipeline.preflight import prepare
from pipeline.progress import Watch
from pipeline.records import Recorder, Tally
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter
from tests.pipeline.test_records import StandIn
from tests.pipeline.test_store import make_plan, store_at

DONE = Counts(rows=30, errors=2, tokens=600, slots=600)


def test_the_pace_of_a_resume_is_that_of_its_own_rows() -> None:
    expected = Pace(130, 280, 2, 600, rows_per_second=3.0, tokens_per_second=60.0, seconds_left=50.0, workers=2)
    assert pace_of(DONE, before=100, total=280, seconds=10.0, workers=2) == expected
    assert pace_of(DONE, before=0, total=None, seconds=10.0, workers=2).seconds_left is None
    assert pace_of(Counts(), before=100, total=280, seconds=10.0, workers=2).seconds_left is None
    assert pace_of(Counts(), before=100, total=280, seconds=None, workers=0) == Pace(100, 280)


def test_rows_that_are_done_again_after_a_death_leave_no_time_below_zero() -> None:
    assert pace_of(replace(DONE, rows=300), before=0, total=280, seconds=10.0, workers=1).seconds_left == 0.0


def test_the_time_left_of_a_retry_is_that_of_the_rows_with_an_error(tmp_path: Path) -> None:
    tally = Tally(280, 40)
    with Watch(40, 0) as watch, Recorder(store_at(tmp_path), make_plan(), tally, retry=True) as recorder:
        recorder.resumed()
        recorder.every = 0.0
        pace = watch.update(DONE, workers=1)
        assert pace.rows_per_second
        assert pace.seconds_left == pytest.approx(10 / pace.rows_per_second)
        while (told := json.loads(progress(tmp_path))).get("seconds_left") is None:
            recorder.update(StandIn(), pace.seconds_left)  # type: ignore[arg-type]
    assert told["seconds_left"] == pace.seconds_left
    assert told["rows"] == told["rows_total"] == 280


def progress(folder: Path) -> str:
    file = folder / "_pipeline" / "progress.json"
    return file.read_text() if file.exists() else "{}"


def test_rows_that_are_only_tried_show_life_and_count_as_none(write_job: JobWriter) -> None:
    prepared = prepare(load_job(write_job()))
    prepared.store.create()
    worker, part = Worker(prepared.spec), next(prepared.plan.parts())
    worker.start()
    worker.probe(replace(part, set_aside={3: "it ends its worker"}))
    tried = worker.counts()
    assert (tried.rows, tried.errors) == (0, 0)
    assert tried.tokens > 0
    assert tried.beats > tried.tokens
    worker.run(replace(part, set_aside={3: "it ends its worker"}))
    assert (worker.counts().rows, worker.counts().errors) == (100, 1)
