"""Every job file in jobs/ runs out of the box on the samples, and its answers make sense."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.job import TaskName

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted(file.stem for file in (ROOT / "jobs").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def results(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The output of every job file, row by row."""
    out = tmp_path_factory.mktemp("out")
    tables = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in JOBS:
            done = CliRunner().invoke(main, ["run", f"jobs/{name}.yaml", f"output.path={out / name}"])
            assert done.exit_code == 0, f"{name}: {done.output}"
            tables[name] = pq.read_table(out / name).to_pylist()
            summary = json.loads((out / name / "_pipeline" / "summary.json").read_text())
            assert summary["rows"] == len(tables[name])
    return tables


def test_there_is_a_job_for_every_task() -> None:
    assert {*get_args(TaskName), "annotate"} == set(JOBS)


def test_every_row_is_there_without_an_error(results: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in results.items():
        assert rows
        errors = [row.get("error", row.get("predicted_error")) for row in rows]
        assert errors == [None] * len(rows), name


def test_topics_are_right(results: dict[str, list[dict[str, Any]]]) -> None:
    rows = results["classify"]
    assert sum(row["label"] == row["topic"] for row in rows) >= 0.95 * len(rows)
    for row in rows:
        assert row["label"] is None or row["top"][0]["label"] == row["label"]


def test_names_are_the_characters_they_say(results: dict[str, list[dict[str, Any]]]) -> None:
    rows = results["ner"]
    assert sum(len(row["entities"]) for row in rows) > 800
    for row in rows:
        for entity in row["entities"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["word"]


def test_most_questions_are_answered_right(results: dict[str, list[dict[str, Any]]]) -> None:
    rows = results["qa"]
    assert sum((row["predicted_answer"] or "") == (row["answer"] or "") for row in rows) >= 0.9 * len(rows)
    for row in rows:
        assert row["context"][row["predicted_start"] : row["predicted_end"]] == row["predicted_answer"]


def test_the_fitting_sentence_is_chosen(results: dict[str, list[dict[str, Any]]]) -> None:
    rows = results["choose"]
    assert sum(row["choice"] == row["answer"] for row in rows) >= 0.9 * len(rows)


def test_embeddings_of_one_topic_are_nearer_to_each_other(results: dict[str, list[dict[str, Any]]]) -> None:
    import numpy as np

    rows = [row for row in results["embed"] if row["embedding"] is not None and row["topic"] != "note"]
    vectors = np.array([row["embedding"] for row in rows])
    vectors -= vectors.mean(axis=0)
    likeness = vectors @ vectors.T
    same = np.array([[one["topic"] == other["topic"] for other in rows] for one in rows])
    np.fill_diagonal(likeness, np.nan)
    assert np.nanmean(likeness[same]) > np.nanmean(likeness[~same])


@pytest.mark.parametrize("name", JOBS)
def test_a_plan_starts_nothing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(main, ["plan", f"jobs/{name}.yaml", f"output.path={tmp_path / 'out'}"])
    assert done.exit_code == 0
    assert "MiB of weights a worker" in done.output
    assert not (tmp_path / "out").exists()
