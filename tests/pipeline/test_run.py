"""Whole runs on real Ray: every row once and in order, resumed without model work, whatever dies on the way."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.compose import load_job
from pipeline.errors import OutputRefused, PipelineError, WorkerBroken, WorkerError
from pipeline.messages import PartReport
from pipeline.plan import Part
from pipeline.run import Outcome, run_job
from pipeline.worker import Worker
from tests.chaos.cases import undisturbed
from tests.pipeline.conftest import JobWriter, job_writer

pytestmark = pytest.mark.usefixtures("ray_local")


def run(job: Path, *overrides: str, worker_class: type[Worker] = Worker) -> Outcome:
    return run_job(load_job(job, overrides), worker_class=worker_class)


def read(folder: Path) -> pa.Table:
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("_"))
    assert all(file.name.startswith("part-") for file in files)
    return pa.concat_tables([pq.read_table(file) for file in files])


def give(lives: Path, count: int) -> None:
    """So many files, each of which a worker may spend once, whenever it is killed."""
    lives.mkdir()
    for life in range(count):
        (lives / str(life)).touch()


def spent(lives: Path) -> bool:
    for life in lives.iterdir():
        try:
            life.unlink()
        except FileNotFoundError:
            continue
        return True
    return False


def wait_for(file: Path) -> None:
    while not file.exists():
        threading.Event().wait(0.02)


def same(one: pa.Table, other: pa.Table) -> bool:
    return bool(one.equals(other))


@dataclass(frozen=True)
class Finished:
    """A run that nobody disturbed. Its folder is for all tests: they may do the job again in a copy of it."""

    job: Path
    out: Path
    outcome: Outcome
    table: pa.Table

    def copied(self, folder: Path) -> str:
        """The option that puts the job's output into a copy of what is there."""
        shutil.copytree(self.out, folder)
        return f"output.path={folder}"


@pytest.fixture(scope="module")
def finished(ray_local: None, checkpoint: Path, rows: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    job = job_writer(folder, checkpoint, rows)()
    outcome = run(job)
    return Finished(job, folder / "out", outcome, read(folder / "out"))


def test_every_row_is_in_the_output_once_in_order_with_its_columns(finished: Finished, rows: pa.Table) -> None:
    table = finished.table
    assert finished.outcome.exit_code == 0
    assert table.select(rows.column_names).equals(rows)
    assert table.column_names[3:] == [
        "loglikelihood",
        "num_tokens",
        "perplexity",
        "bits_per_byte",
        "error",
    ]
    assert table.column("error").null_count == table.num_rows
    empty = [row for row in table.to_pylist() if row["text"] == ""]
    assert empty
    assert {(row["loglikelihood"], row["num_tokens"], row["perplexity"]) for row in empty} == {(0.0, 0, None)}


def test_the_folder_is_one_table_for_everyone_and_the_records_are_hidden(finished: Finished, tmp_path: Path) -> None:
    import datasets
    import duckdb
    import pandas as pd
    import pyarrow.dataset as ds

    out = finished.out
    assert ds.dataset(out, format="parquet").count_rows() == 900
    assert len(pd.read_parquet(out)) == 900
    assert duckdb.sql(f"select count(*), count(distinct id) from '{out}/*.parquet'").fetchall() == [(900, 900)]
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"][:] == list(range(900))


def test_a_second_run_does_no_model_work(finished: Finished) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in finished.out.iterdir() if file.is_file()}

    class Forbidden(Worker):
        def start(self) -> str:
            raise AssertionError("a model was loaded")

    second = run(finished.job, worker_class=Forbidden)
    assert {file.name: file.stat().st_mtime_ns for file in finished.out.iterdir() if file.is_file()} == before
    timing = {"seconds of work", "tokens a second", "device", "rows done by this command"}
    assert {key: value for key, value in second.summary.items() if key not in timing} == {
        key: value for key, value in finished.outcome.summary.items() if key not in timing
    }


def test_only_missing_parts_are_done_again(finished: Finished, tmp_path: Path) -> None:
    there = finished.copied(tmp_path / "out")
    parts = sorted((tmp_path / "out").glob("part-*"))
    kept = parts[0].stat().st_mtime_ns
    for part in parts[3:6]:
        part.unlink()
    assert run(finished.job, there).summary["rows done by this command"] == 300
    assert parts[0].stat().st_mtime_ns == kept
    assert same(read(tmp_path / "out"), finished.table)


def test_killed_workers_lose_nothing_and_change_nothing(
    write_job: JobWriter, tmp_path: Path, finished: Finished
) -> None:
    lives = tmp_path / "lives"

    class Dying(Worker):
        """Kills its process on the third group of rows of its life, as many times as there are files."""

        groups = 0

        def _prepared(self, part: Part, only: Sequence[int] | None = None) -> Iterator[Any]:
            for group in super()._prepared(part, only):
                self.groups += 1
                if self.groups == 3 and spent(lives):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield group

    give(lives, 2)
    outcome = run(write_job(), worker_class=Dying)
    assert not list(lives.iterdir())
    assert outcome.exit_code == 0
    assert same(read(tmp_path / "out"), finished.table)


def test_a_worker_whose_engine_broke_is_replaced(write_job: JobWriter, tmp_path: Path, finished: Finished) -> None:
    lives = tmp_path / "lives"

    class Breaking(Worker):
        """Its engine is lost in the middle of a part, as many times as there are files."""

        def _compute(self, stage: Any, group: Any) -> Any:
            if spent(lives):
                raise WorkerBroken("RuntimeError: CUDA error")
            return super()._compute(stage, group)

    give(lives, 2)
    outcome = run(write_job(cluster={"workers": {"max": 1}}), worker_class=Breaking)
    assert not list(lives.iterdir())
    assert outcome.exit_code == 0
    assert same(read(tmp_path / "out"), finished.table)


def test_a_part_that_always_takes_its_worker_down_is_given_up_and_the_others_finish(
    write_job: JobWriter, tmp_path: Path
) -> None:
    class Poisoned(Worker):
        def run(self, part: Part) -> PartReport:
            if part.piece == 2 and part.split.index == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(part)

    job = write_job(cluster={"attempts": 1})
    with pytest.raises(PipelineError, match=r"1 part failed; all others are committed, and the same") as failure:
        run(job, worker_class=Poisoned)
    assert failure.value.exit_code == 1
    assert "took its worker down 1 times, and yet each of its rows passes alone" in str(failure.value)
    assert read(tmp_path / "out").num_rows == 800
    run(job)
    assert read(tmp_path / "out").column("id").to_pylist() == list(range(900))


def test_a_worker_that_can_not_start_ends_the_run_with_its_reason(write_job: JobWriter) -> None:
    class Unable(Worker):
        def start(self) -> str:
            raise WorkerError("no such device on this node")

    with pytest.raises(WorkerError, match="a worker could not start: no such device on this node"):
        run(write_job(), worker_class=Unable)


def test_a_late_worker_that_can_not_start_does_not_end_the_run_while_another_works(
    write_job: JobWriter, tmp_path: Path
) -> None:
    give(tmp_path / "good", 1)
    failed = tmp_path / "failed"

    class Unable(Worker):
        """Starts on one node alone, where it works once the other has failed."""

        def start(self) -> str:
            if not spent(tmp_path / "good"):
                wait_for(tmp_path / "begun")
                failed.touch()
                raise WorkerError("no such device on this node")
            return super().start()

        def run(self, part: Part) -> PartReport:
            (tmp_path / "begun").touch()
            wait_for(failed)
            return super().run(part)

    job = write_job(cluster={"attempts": 1, "workers": {"max": 2}})
    assert run(job, worker_class=Unable).rows == 900
    assert failed.exists()
    told = json.loads((tmp_path / "out" / "_pipeline" / "progress.json").read_text())["events"]
    assert "it could not start: no such device on this node" in str(told)


def test_a_worker_that_no_machine_can_hold_is_refused_and_not_waited_for(write_job: JobWriter) -> None:
    with pytest.raises(WorkerError, match=r"takes 99 CPU, .* give less cluster\.cpus_per_worker"):
        run(write_job(cluster={"cpus_per_worker": 99}))


def test_a_worker_that_dies_while_loading_is_not_tried_for_ever(write_job: JobWriter) -> None:
    class Stillborn(Worker):
        def start(self) -> str:
            os.kill(os.getpid(), signal.SIGKILL)
            return ""

    with pytest.raises(WorkerError, match="2 workers in a row died while loading the model"):
        run(write_job(cluster={"attempts": 2, "workers": {"max": 1}}), worker_class=Stillborn)


def test_input_that_changes_under_the_run_fails_its_split_by_name(write_job: JobWriter, tmp_path: Path) -> None:
    file = tmp_path / "in" / "b.parquet"

    class Meddling(Worker):
        def start(self) -> str:
            pq.write_table(pq.read_table(file).slice(1), file)
            return super().start()

    with pytest.raises(PipelineError, match=r"b\.parquet changed since the plan"):
        run(write_job(cluster={"workers": {"max": 1}}), worker_class=Meddling)
    assert read(tmp_path / "out").num_rows == 500


def test_a_changed_option_is_refused_with_the_difference_unless_it_changes_no_result(finished: Finished) -> None:
    folder = load_job(finished.job).input.parquet
    for override, difference in [
        (f"input.parquet=[{folder}/b.parquet,{folder}/a.parquet]", r"input\.splits\[0\]\.name was .*a\.parquet"),
        ("score.stride=7", "score.stride was None and is 7"),
        ("output.rows_per_part=50", "output.rows_per_part was 100 and is 50"),
        ("input.limit=5", "input.limit was None and is 5"),
        ("output.prefix=x_", "output.prefix was '' and is 'x_'"),
    ]:
        with pytest.raises(OutputRefused, match=difference):
            run(finished.job, override)
    again = run(finished.job, "cluster.workers.max=1", "cluster.attempts=9")
    assert again.summary["rows done by this command"] == 0


def test_a_changed_model_file_is_refused(write_job: JobWriter, checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    job = write_job(model={"path": str(model)})
    undisturbed(job)
    weights = load_file(model / "model.safetensors")
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"] + 1
    save_file(weights, model / "model.safetensors")
    with pytest.raises(OutputRefused, match=r"model\.files\.model\.safetensors was"):
        run(job)


def test_a_changed_input_is_refused(write_job: JobWriter, tmp_path: Path) -> None:
    job = write_job()
    undisturbed(job)
    pq.write_table(pq.read_table(tmp_path / "in" / "b.parquet").slice(1), tmp_path / "in" / "b.parquet")
    with pytest.raises(OutputRefused, match=r"input\.splits\[1\]\.rows was 400 and is 399"):
        run(job)


def test_a_folder_that_is_not_ours_is_refused(write_job: JobWriter, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputRefused, match=r"thesis\.txt"):
        run(write_job())
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_bad_rows_carry_their_error_and_their_neighbours_are_unharmed(write_job: JobWriter, tmp_path: Path) -> None:
    texts = ["fine", None, "", "\x00", "a" * 5000, "fine"]
    pq.write_table(pa.table({"id": range(6), "text": texts}), tmp_path / "bad.parquet")
    outcome = run(write_job(input={"parquet": str(tmp_path / "bad.parquet")}))
    found = read(tmp_path / "out").to_pylist()
    assert outcome.exit_code == 3
    assert [row["error"] for row in found] == [None, "text is null", None, None, None, None]
    assert [row["loglikelihood"] is None for row in found] == [False, True, False, False, False, False]
    assert found[0]["loglikelihood"] == pytest.approx(found[5]["loglikelihood"], rel=1e-5)


def test_an_input_without_rows_gives_an_empty_table(write_job: JobWriter, tmp_path: Path, rows: pa.Table) -> None:
    pq.write_table(rows.slice(0, 0), tmp_path / "none.parquet")
    outcome = run(write_job(input={"parquet": str(tmp_path / "none.parquet")}))
    assert outcome.rows == 0
    assert read(tmp_path / "out").num_rows == 0


def test_the_footer_tells_the_parts_story(finished: Finished) -> None:
    part = sorted(finished.out.glob("part-*"))[5]
    footer = json.loads(pq.read_metadata(part).metadata[b"pipeline"])
    assert footer["part"] == part.name
    assert footer["source"].endswith("b.parquet")
    assert (footer["start"], footer["rows"], footer["errors"], footer["dtype"]) == (0, 100, 0, "float32")


@pytest.mark.parametrize("keep", [[], ["tag"], ["text", "id"]])
def test_only_the_kept_columns_are_written(write_job: JobWriter, tmp_path: Path, keep: list[str]) -> None:
    undisturbed(write_job(output={"columns": keep}))
    assert read(tmp_path / "out").column_names[: len(keep) + 1] == [*keep, "loglikelihood"]


def test_streamed_json_lines_give_the_rows_of_every_shard(write_job: JobWriter, tmp_path: Path, rows: pa.Table) -> None:
    for shard in range(3):
        lines = [json.dumps(row) for row in rows.slice(shard * 300, 300).to_pylist()]
        (tmp_path / f"s{shard}.jsonl").write_text("\n".join(lines))
    job = write_job()
    text = job.read_text().replace(
        f"parquet: {tmp_path}/in", f"dataset: {{path: json, streaming: true, data_files: '{tmp_path}/*.jsonl'}}"
    )
    job.write_text(text)
    outcome = run(job)
    table = read(tmp_path / "out")
    assert outcome.rows == 900
    assert table.column("id").to_pylist() == list(range(900))
    assert run(job).summary["rows done by this command"] == 0
    sorted((tmp_path / "out").glob("part-*"))[-2].unlink()
    run(job)
    assert same(read(tmp_path / "out"), table)


def test_the_cluster_options_place_the_workers(write_job: JobWriter, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    options = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init("local", num_cpus=2, num_gpus=1, resources={"fast": 1}, **options)

    class Placed(Worker):
        def start(self) -> str:
            held = ray.get_runtime_context().get_assigned_resources()
            assert {name: held[name] for name in ("CPU", "GPU", "fast")} == {"CPU": 1.0, "GPU": 0.5, "fast": 0.25}
            assert held["memory"] == 2**29
            return super().start()

    placing = {"gpus_per_worker": 0.5, "resources": {"fast": 0.25}, "memory_per_worker": 0.5, "placement": "spread"}
    job = write_job(model={"device": "cpu"}, cluster=placing)
    assert run(job, worker_class=Placed).rows == 900
    with pytest.raises(WorkerError, match=r"takes 1 CPU, 0\.5 GPU, 0\.5 GiB of memory, 2 fast, which Ray has not"):
        run(job, f"output.path={tmp_path}/other", "cluster.resources.fast=2")
