"""Whole runs of generate: the same values whatever the workers, the cache and the parts, and whatever dies."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from gpt2model.generation import Engine
from pipeline.compose import load_job
from pipeline.messages import PartReport
from pipeline.plan import Part
from pipeline.preflight import prepare
from pipeline.run import Outcome, run_job
from pipeline.worker import Worker
from tests.pipeline.generating import Generating, save_lively

ROWS, FIRST_FILE, PART = 160, 90, 16
GENERATE: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 8, "seed": 3}


@pytest.fixture(scope="module")
def ray_four() -> Iterator[None]:
    """A Ray that has room for four workers, however few cores there are."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lively(tmp_path_factory.mktemp("lively"), checkpoint)


@pytest.fixture(scope="module")
def job(model: Path, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "in").mkdir()
    pq.write_table(rows.slice(0, FIRST_FILE), folder / "in" / "a.parquet", row_group_size=30)
    pq.write_table(rows.slice(FIRST_FILE, ROWS - FIRST_FILE), folder / "in" / "b.parquet")
    content = {
        "task": "generate",
        "model": {"path": str(model)},
        "input": {"parquet": str(folder / "in")},
        "output": {"path": str(folder / "out"), "rows_per_part": PART},
        "cluster": {"cpus_per_worker": 1},
        "generate": {**GENERATE, "token_ids": True, "logprobs": True},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def run(job: Path, out: Path, *overrides: str, worker_class: type[Worker] = Worker) -> Outcome:
    return run_job(load_job(job, [f"output.path={out}", *overrides]), worker_class=worker_class)


def done_here(job: Path, out: Path, *overrides: str) -> pa.Table:
    """The output of one worker in this process, without Ray."""
    prepared = prepare(load_job(job, [f"output.path={out}", *overrides]))
    spec = prepared.spec
    spec.store.create()
    worker = Worker(spec)
    worker.start()
    for part in prepared.plan.parts():
        worker.run(part)
    return pa.concat_tables(files(out).values())


def files(out: Path) -> dict[str, pa.Table]:
    return {file.name: pq.read_table(file) for file in sorted(out.glob("part-*"))}


@pytest.fixture(scope="module")
def quiet(job: Path, ray_four: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run by one worker that nobody disturbs."""
    out = tmp_path_factory.mktemp("quiet")
    return out, run(job, out, "cluster.workers.max=1")


@pytest.fixture(scope="module")
def calm(quiet: tuple[Path, Outcome]) -> dict[str, pa.Table]:
    """What it wrote."""
    assert quiet[1].exit_code == 0
    return files(quiet[0])


def test_every_row_is_continued_once_in_order_by_the_draws_of_its_place(
    calm: dict[str, pa.Table], rows: pa.Table, model: Path
) -> None:
    table = pa.concat_tables(calm.values())
    assert table.select(rows.column_names).equals(rows.slice(0, ROWS))
    assert table.column_names[3:] == [
        "generated_text",
        "finish_reason",
        "num_prompt_tokens",
        "num_generated_tokens",
        "generated_ids",
        "generated_logprobs",
        "error",
    ]
    assert table.column("error").null_count == ROWS
    lively = Generating(model)
    for place in (0, 1, PART, FIRST_FILE - 1, FIRST_FILE, FIRST_FILE + PART + 1, ROWS - 1):
        row = table.slice(place, 1).to_pylist()[0]
        ids = (lively.ids(row["text"]) or [lively.start])[-57:]
        number = place if place < FIRST_FILE else 2**40 + place - FIRST_FILE
        assert row["generated_ids"] == lively.looped(ids, 8, (3, number, 0))


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_value(
    job: Path, calm: dict[str, pa.Table], tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    class Meeting(Worker):
        """Begins when every worker has a part to do, so that none does all of them."""

        def run(self, part: Part) -> PartReport:
            logging.getLogger("gpt2model.generation").warning("steps take longer: %s", "the reason")
            (seen / str(os.getpid())).touch()
            others = threading.Event()
            while len(list(seen.iterdir())) < workers:
                others.wait(0.05)
            return super().run(part)

    count = f"cluster.workers={{min: {workers}, max: {workers}}}"
    assert run(job, tmp_path / "out", count, worker_class=Meeting).rows == ROWS
    assert len(list(seen.iterdir())) == workers
    assert files(tmp_path / "out") == calm
    # What every worker's model warns of, whoever runs the job is told once.
    assert capsys.readouterr().err.count("a worker warns: steps take longer: the reason\n") == 1


OTHERWISE = [
    ["cluster.cpus_per_worker=3"],
    ["cluster.sequences_at_once=1", "cluster.cache_tokens=1"],
    ["cluster.sequences_at_once=5", "cluster.cache_tokens=200", "cluster.cpus_per_worker=2"],
    ["cluster.tokens_per_batch=7", "cluster.sequences_at_once=30"],
    ["output.rows_per_part=45"],
    ["output.rows_per_part=1000", "cluster.cpus_per_worker=2", "cluster.sequences_at_once=9"],
]


@pytest.mark.parametrize("overrides", OTHERWISE, ids=str)
def test_neither_engines_nor_cache_nor_parts_change_a_value(
    job: Path, calm: dict[str, pa.Table], tmp_path: Path, overrides: list[str]
) -> None:
    assert done_here(job, tmp_path / "out", *overrides).equals(pa.concat_tables(calm.values()))


@pytest.mark.parametrize("beams", [1, 2])
def test_searches_give_the_same_in_parts_of_any_size(job: Path, tmp_path: Path, beams: int) -> None:
    greedy = ["generate.do_sample=false", f"generate.num_beams={beams}", "generate.logprobs=false", "input.limit=40"]
    one, other = (
        done_here(job, tmp_path / str(rows), *greedy, f"output.rows_per_part={rows}", "cluster.tokens_per_batch=500")
        for rows in (7, 40)
    )
    assert one.equals(other)


@pytest.mark.parametrize(("asked", "given"), [("true", None), ("false", False)])
def test_an_engine_decides_on_graphs_unless_the_job_switches_them_off(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, given: bool | None
) -> None:
    told: list[bool | None] = []

    def engine(*sizes: Any, **options: Any) -> Engine:
        told.append(options.pop("graphs"))
        return Engine(*sizes, **options)

    monkeypatch.setattr("gpt2model.generation.Engine", engine)
    done_here(job, tmp_path, f"cluster.cuda_graphs={asked}", "input.limit=1")
    assert told == [given]


def test_another_seed_changes_the_texts(job: Path, calm: dict[str, pa.Table], tmp_path: Path) -> None:
    table = done_here(job, tmp_path / "out", "generate.seed=4")
    column = pa.concat_tables(calm.values()).column("generated_text")
    assert not table.column("generated_text").equals(column)


def test_killed_workers_change_no_value(job: Path, calm: dict[str, pa.Table], tmp_path: Path) -> None:
    lives = tmp_path / "lives"

    class Dying(Worker):
        """Kills its process while the third group of rows of its life is computed, as often as the file says."""

        groups = 0

        def _compute(self, stage: Any, group: Any) -> Any:
            self.groups += 1
            if self.groups == 3 and (left := int(lives.read_text())):
                lives.write_text(str(left - 1))
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._compute(stage, group)

    lives.write_text("2")
    assert run(job, tmp_path / "out", "cluster.workers.max=1", worker_class=Dying).exit_code == 0
    assert lives.read_text() == "0"
    assert files(tmp_path / "out") == calm


def test_what_a_run_left_undone_is_done_by_the_next(
    job: Path, quiet: tuple[Path, Outcome], calm: dict[str, pa.Table], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(quiet[0], out)
    for name in list(calm)[2:5]:
        (out / name).unlink()
    kept = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert run(job, out, "cluster.workers.max=1").summary["rows done by this command"] == 3 * PART
    assert files(out) == calm
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_bad_rows_carry_their_error_and_the_others_their_texts(
    job: Path, calm: dict[str, pa.Table], rows: pa.Table, tmp_path: Path
) -> None:
    texts = rows.column("text").to_pylist()[:FIRST_FILE]
    limits: list[int | None] = [None] * FIRST_FILE
    texts[5], limits[20], limits[7] = None, 0, 8
    changed = rows.slice(0, FIRST_FILE).set_column(1, "text", [texts]).append_column("most", [pa.array(limits)])
    pq.write_table(changed, tmp_path / "bad.parquet")
    columns = "input.columns.max_new_tokens=most"
    outcome = run(job, tmp_path / "out", f"input.parquet={tmp_path}/bad.parquet", columns, "cluster.workers.max=1")
    assert (outcome.exit_code, outcome.errors) == (3, 2)
    found = pa.concat_tables(files(tmp_path / "out").values()).drop_columns("most").to_pylist()
    assert found[5]["error"] == "text is null"
    assert found[20]["error"] == "max_new_tokens is 0: it must be 1 or more"
    assert found[5]["generated_text"] is found[20]["generated_ids"] is None
    expected = pa.concat_tables(calm.values()).to_pylist()
    for place in set(range(FIRST_FILE)) - {5, 20}:
        assert found[place] == expected[place]


def test_the_summary_tells_what_was_made(quiet: tuple[Path, Outcome], calm: dict[str, pa.Table]) -> None:
    summary = quiet[1].summary
    table = pa.concat_tables(calm.values()).to_pylist()
    assert summary["texts"] == ROWS
    assert summary["new tokens"] == sum(row["num_generated_tokens"] for row in table)
    assert summary["prompt tokens"] == sum(row["num_prompt_tokens"] for row in table)
    for reason in ("eos", "length"):
        assert summary[f"texts ended by {reason}"] == sum(row["finish_reason"] == reason for row in table) > 0
    assert summary["prompts cut at the left"] == sum(row["num_prompt_tokens"] == 57 for row in table) > 0
