"""Rows that no worker survives, and workers that no row is to blame for."""

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import driver, search
from pipeline.compose import load_job
from pipeline.errors import JobError, PipelineError, WorkerError
from pipeline.preflight import prepare
from pipeline.run import Outcome, run_job
from pipeline.verify import verify
from pipeline.worker import Worker
from tests.chaos.cases import undisturbed
from tests.pipeline.conftest import JobWriter

pytestmark = pytest.mark.usefixtures("ray_local")

POISON = {3, 450, 451}
FIGURES = ("loglikelihood", "perplexity", "bits_per_byte")


def run(job: Path, *overrides: str, worker_class: type[Worker] = Worker, retry: bool = False) -> Outcome:
    return run_job(load_job(job, overrides), worker_class=worker_class, retry=retry)


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("part-*"))])


def computed(group: Any) -> set[int]:
    """The ids of the rows of a group that are given to the model."""
    return {row for place, row in enumerate(group.rows.column("id").to_pylist()) if place not in group.set_aside}


def hurt(rows: Mapping[int, str]) -> type[Worker]:
    """A worker whose model does not bear `rows`, each in its way."""

    class Hurt(Worker):
        def _compute(self, stage: Any, group: Any) -> Any:
            if deadly := computed(group) & rows.keys():
                how = rows[min(deadly)]
                if how == "raise":
                    raise ValueError("what a row")
                if how != "hang":
                    os.kill(os.getpid(), getattr(signal, how))
                threading.Event().wait()  # a signal takes a moment
            return super()._compute(stage, group)

    return Hurt


@pytest.fixture(scope="module")
def calm(checkpoint: Path, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What the job gives when nothing hurts."""
    folder = tmp_path_factory.mktemp("calm")
    pq.write_table(rows, folder / "in.parquet")
    job = {"task": "score", "model": {"path": str(checkpoint)}, "input": {"parquet": str(folder / "in.parquet")}}
    (folder / "job.yaml").write_text(yaml.safe_dump({**job, "output": {"path": str(folder / "out")}}))
    undisturbed(folder / "job.yaml")
    return read(folder / "out")


def assert_only_those_rows_failed(folder: Path, calm: pa.Table, reasons: Mapping[int, str]) -> None:
    found = read(folder).to_pylist()
    assert [row["id"] for row in found] == list(range(900))
    assert {row["id"] for row in found if row["error"] is not None} == reasons.keys()
    for row, sound in zip(found, calm.to_pylist(), strict=True):
        if row["id"] in reasons:
            assert reasons[row["id"]] in row["error"]
            assert (row["loglikelihood"], row["num_tokens"]) == (None, None)
            assert row["text"] == sound["text"]
        else:
            assert row["loglikelihood"] == pytest.approx(sound["loglikelihood"], rel=1e-5, abs=1e-5)


DEATH = "this row takes its worker down: its process was killed"


RAISED = "ValueError: what a row"


@pytest.mark.parametrize(
    ("poison", "reasons"),
    [
        ({3: "SIGSEGV", 450: "SIGKILL", 451: "SIGKILL"}, {3: DEATH, 450: DEATH, 451: DEATH}),
        (dict.fromkeys(POISON, "raise"), dict.fromkeys(POISON, RAISED)),
    ],
    ids=["kill", "raise"],
)
def test_rows_that_kill_or_fail_the_worker_carry_the_error_and_all_others_are_done(
    write_job: JobWriter, tmp_path: Path, calm: pa.Table, poison: dict[int, str], reasons: dict[int, str]
) -> None:
    # Two rows more than are tried one by one: so they are tried in pairs, and those of the pair that fails alone.
    job = write_job(cluster={"attempts": 1}, output={"rows_per_part": search.PIECES + 2})
    outcome = run(job, worker_class=hurt(poison))
    assert outcome.exit_code == 3
    assert outcome.errors == len(poison)
    assert_only_those_rows_failed(tmp_path / "out", calm, reasons)


def test_a_row_that_hangs_is_told_from_a_slow_one_by_its_heartbeat(write_job: JobWriter, tmp_path: Path) -> None:
    job = write_job(cluster={"attempts": 1, "heartbeat": 3.0, "workers": {"max": 1}})
    outcome = run(job, "input.limit=100", "output.rows_per_part=4", worker_class=hurt({37: "hang"}))
    assert (outcome.rows, outcome.errors) == (100, 1)
    (bad,) = [row for row in read(tmp_path / "out").to_pylist() if row["error"] is not None]
    assert bad["id"] == 37
    assert "it did nothing for 3 s (cluster.heartbeat)" in bad["error"]


def test_workers_that_die_of_everything_end_the_run(write_job: JobWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(search.BARREN, "died", 1)
    monkeypatch.setattr(driver, "DEATHS_IN_A_ROW", 3)
    job = write_job(cluster={"attempts": 1, "workers": {"max": 1}})
    with pytest.raises(WorkerError, match=r"\d+ workers died and nothing was done meanwhile, so no single row"):
        run(job, "output.rows_per_part=30", worker_class=hurt(dict.fromkeys(range(900), "SIGKILL")))


def test_an_error_outside_of_the_rows_gives_the_part_up_by_name(write_job: JobWriter, tmp_path: Path) -> None:
    class Footless(Worker):
        def _footer(self, part: Any, *rest: Any) -> Any:
            if part.piece == 2 and part.split.index == 0:
                raise ValueError("no footer")
            return super()._footer(part, *rest)

    with pytest.raises(PipelineError, match=r"(?s)1 part failed.*part-00002.*ValueError: no footer"):
        run(write_job(), worker_class=Footless)
    assert read(tmp_path / "out").num_rows == 800


def test_rows_with_an_error_are_done_again_once_the_cause_is_gone_and_no_other_row_changes(
    write_job: JobWriter, tmp_path: Path, calm: pa.Table
) -> None:
    job = write_job()
    failed = run(job, worker_class=hurt(dict.fromkeys(POISON, "raise")))
    before, files = read(tmp_path / "out"), stamps(tmp_path / "out")
    with pytest.raises(JobError, match="holds no run whose rows could be done again"):
        run(job, f"output.path={tmp_path}/nothing", retry=True)
    outcome = run(job, retry=True)
    assert (outcome.exit_code, outcome.rows, outcome.summary["rows done by this command"]) == (0, 900, 3)
    after = read(tmp_path / "out")
    others = [row for row in range(900) if row not in POISON]
    assert after.take(others).equals(before.take(others))
    for row in POISON:
        found, sound = after.slice(row, 1).to_pylist()[0], calm.slice(row, 1).to_pylist()[0]
        assert found == {**sound, **{name: pytest.approx(sound[name], rel=1e-5) for name in FIGURES if sound[name]}}
    changed = {name for name, stamp in stamps(tmp_path / "out").items() if files[name] != stamp}
    assert len(changed) == 2
    assert verify(prepare(load_job(job))).sound
    again = run(job, retry=True, worker_class=hurt(dict.fromkeys(range(900), "SIGKILL")))
    assert again.summary["rows done by this command"] == 0
    scored = [sum(held.column("num_tokens").drop_null().to_pylist()) for held in (before, after)]
    assert [each.summary["scored tokens"] for each in (failed, again)] == scored


def test_a_retry_that_is_killed_changes_nothing_or_all_of_a_part(write_job: JobWriter, tmp_path: Path) -> None:
    texts = [f"row {row}" if row % 3 else None for row in range(60)]
    pq.write_table(pa.table({"id": range(60), "text": texts}), tmp_path / "some.parquet")
    job = write_job(input={"parquet": str(tmp_path / "some.parquet")}, output={"rows_per_part": 20})
    assert undisturbed(job) == 20
    before = read(tmp_path / "out")
    outcome = run(job, "cluster.attempts=1", retry=True, worker_class=hurt({30: "SIGKILL"}))
    assert outcome.errors == 20
    after = read(tmp_path / "out")
    assert after.drop_columns("error").equals(before.drop_columns("error"))
    reasons = after.column("error").to_pylist()
    assert "takes its worker down" in reasons[30]
    assert [row for row, why in enumerate(reasons) if why == "text is null"] == [r for r in range(0, 60, 3) if r != 30]


def test_a_part_that_was_damaged_is_not_mended_over(write_job: JobWriter, tmp_path: Path) -> None:
    texts = [f"row {row}" if row % 3 else None for row in range(60)]
    pq.write_table(pa.table({"id": range(60), "text": texts}), tmp_path / "some.parquet")
    job = write_job(input={"parquet": str(tmp_path / "some.parquet")})
    undisturbed(job)
    (part,) = (tmp_path / "out").glob("part-*")
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    with pytest.raises(PipelineError, match=r"was changed after it was committed: move it away"):
        run(job, retry=True)
    assert part.read_bytes() == content


def test_a_job_that_is_not_finished_has_no_rows_done_again(write_job: JobWriter, tmp_path: Path) -> None:
    job = write_job()
    undisturbed(job)
    next((tmp_path / "out").glob("part-00004*")).unlink()
    with pytest.raises(JobError, match=r"part-00004-\w+\.parquet is not committed yet.*finish the job"):
        run(job, retry=True)


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*")}
