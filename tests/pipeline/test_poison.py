"""Rows that no worker survives, and workers that no row is to blame for."""

import os
import signal
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.compose import load_job
from pipeline.errors import PipelineError, WorkerError
from pipeline.run import Outcome, run_job
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter

pytestmark = pytest.mark.usefixtures("ray_local")

POISON = {3, 450, 451}


def run(job: Path, *overrides: str, worker_class: type[Worker] = Worker) -> Outcome:
    return run_job(load_job(job, overrides), worker_class=worker_class)


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("part-*"))])


def computed(group: Any) -> set[int]:
    """The ids of the rows of a group that are given to the model."""
    return {row for place, row in enumerate(group.rows.column("id").to_pylist()) if place not in group.set_aside}


def hurt(rows: Collection[int], how: str) -> type[Worker]:
    """A worker whose model does not bear `rows`."""

    class Hurt(Worker):
        def _compute(self, group: Any) -> Any:
            if computed(group) & set(rows):
                if how == "hang":
                    threading.Event().wait()
                if how == "raise":
                    raise ValueError("what a row")
                os.kill(os.getpid(), getattr(signal, how))
            return super()._compute(group)

    return Hurt


def assert_only_those_rows_failed(folder: Path, calm: Path, rows: set[int], reason: str) -> None:
    found, whole = read(folder).to_pylist(), read(calm).to_pylist()
    assert [row["id"] for row in found] == list(range(900))
    assert {row["id"] for row in found if row["error"] is not None} == rows
    for row, sound in zip(found, whole, strict=True):
        if row["id"] in rows:
            assert reason in row["error"]
            assert (row["loglikelihood"], row["num_tokens"]) == (None, None)
            assert row["text"] == sound["text"]
        else:
            assert row["loglikelihood"] == pytest.approx(sound["loglikelihood"], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "raise"])
def test_rows_that_kill_or_fail_the_worker_carry_the_error_and_all_others_are_done(
    write_job: JobWriter, tmp_path: Path, how: str
) -> None:
    run(write_job(output={"path": str(tmp_path / "calm")}))
    outcome = run(write_job(cluster={"attempts": 1}), worker_class=hurt(POISON, how))
    assert outcome.exit_code == 3
    assert outcome.errors == len(POISON)
    reason = "ValueError: what a row" if how == "raise" else "this row takes its worker down: its process was killed"
    assert_only_those_rows_failed(tmp_path / "out", tmp_path / "calm", POISON, reason)


def test_a_row_that_hangs_is_told_from_a_slow_one_by_its_heartbeat(write_job: JobWriter, tmp_path: Path) -> None:
    run(write_job(output={"path": str(tmp_path / "calm")}))
    job = write_job(cluster={"attempts": 1, "heartbeat": 3.0, "workers": {"max": 1}})
    outcome = run(job, "input.limit=100", "output.rows_per_part=4", worker_class=hurt({37}, "hang"))
    assert (outcome.rows, outcome.errors) == (100, 1)
    (bad,) = [row for row in read(tmp_path / "out").to_pylist() if row["error"] is not None]
    assert bad["id"] == 37
    assert "it did nothing for 3 s (cluster.heartbeat)" in bad["error"]


def test_workers_that_die_of_everything_end_the_run(write_job: JobWriter) -> None:
    job = write_job(cluster={"attempts": 1})
    with pytest.raises(
        WorkerError, match="20 workers died and nothing was done meanwhile, so no single row is at fault"
    ):
        run(job, "output.rows_per_part=450", worker_class=hurt(range(900), "SIGKILL"))


def test_an_error_outside_of_the_rows_gives_the_part_up_by_name(write_job: JobWriter, tmp_path: Path) -> None:
    class Footless(Worker):
        def _footer(self, part: Any, *rest: Any) -> Any:
            if part.piece == 2 and part.split.index == 0:
                raise ValueError("no footer")
            return super()._footer(part, *rest)

    with pytest.raises(PipelineError, match=r"(?s)1 parts failed.*part-00002.*ValueError: no footer"):
        run(write_job(), worker_class=Footless)
    assert read(tmp_path / "out").num_rows == 800
