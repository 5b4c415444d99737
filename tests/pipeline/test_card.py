"""The card of a finished run: what it tells, and what of this machine it does not."""

from pathlib import Path
from typing import get_args

import datasets
import pyarrow as pa
import pytest
import yaml

from pipeline.card import CATEGORIES, size_category
from pipeline.job import TaskName
from pipeline.run import resolved_job
from tests.pipeline.conftest import JobWriter
from tests.pipeline.pushing import JOB, finish, metadata, pushed
from tests.pipeline.test_verify import write_out


@pytest.fixture
def out(tmp_path: Path) -> str:
    finish(str(tmp_path / "out"))
    return str(tmp_path / "out")


def test_the_card_tells_rows_model_job_and_columns_and_no_folder_of_this_machine(out: str, tmp_path: Path) -> None:
    pushed(out, "--dry-run", tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    (config,) = metadata(card).pop("configs")
    fingerprint = next(Path(out).glob("part-*")).stem.rpartition("-")[2]
    assert config["data_files"] == [{"split": "train", "path": f"data/part-*-{fingerprint}.parquet"}]
    assert {**metadata(card), "configs": None} == {
        "license": "other",
        "license_name": "fill-this-in",
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["gpt2-pipeline", "score"],
        "configs": None,
    }
    for words in (
        "280 rows in 4 Parquet files",
        "4 of them carry an error",
        "Licence: fill this in",
        "| score | …/tiny | abc123 | f | none |",
        "| perplexity | 12.5 |",
        "| a\\|b | list\\<element: float\\> |",
        "  - …/a.parquet\n  - s3://***@bucket/b.parquet",
        'load_dataset("anna/scores", split="train")',
    ):
        assert words in card
    assert [word for word in ("/home", str(tmp_path), "template", "rows done by") if word in card] == []


def test_what_a_worker_wrote_loads_as_a_folder(write_job: JobWriter, rows: pa.Table, tmp_path: Path) -> None:
    prepared = write_out(write_job(input={"limit": 120}, output={"rows_per_part": 50}))
    prepared.store.write_record("job.yaml", yaml.safe_dump(resolved_job(prepared.job)))
    prepared.store.write_record("summary.json", {"rows": 120, "rows with an error": 0})
    pushed(str(tmp_path / "out"), "--dry-run", tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert metadata(card)["task_categories"] == ["text-generation"]
    assert "| loglikelihood | double |" in card
    assert "embed:" not in card
    loaded = datasets.load_dataset(str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "arrow"))
    assert loaded.column_names[:3] == rows.column_names
    assert loaded["text"] == rows.column("text").to_pylist()[:120]
    assert loaded["tag"] == rows.column("tag").to_pylist()[:120]


def test_a_card_tells_every_step_of_a_job_of_several(tmp_path: Path) -> None:
    steps = {
        "tone": {"task": "classify", "model": {"path": "big", "revision": "v1"}},
        "names": {"task": "ner", "model": None, "ner": {"overlap": 3}},
    }
    job = {**{name: JOB[name] for name in ("model", "input", "output")}, "steps": steps}
    finish(str(tmp_path / "out"), job=job)
    pushed(str(tmp_path / "out"), "--dry-run", tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "| step | task | model |" in card
    assert "| tone | classify | big | v1 |" in card
    assert "| names | ner | …/tiny | - |" in card
    assert metadata(card)["task_categories"] == ["text-classification", "token-classification"]
    assert "overlap: 3" in card


def test_a_job_that_holds_a_fence_stays_in_its_block(tmp_path: Path) -> None:
    finish(str(tmp_path / "out"), job={**JOB, "task": "generate", "generate": {"template": "````\n{text}\n````\n"}})
    pushed(str(tmp_path / "out"), "--dry-run", tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert card.count("`````") == 2


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")],
)
def test_the_size_category_is_the_hubs(rows: int, category: str) -> None:
    assert size_category(rows) == category


def test_every_task_has_a_category() -> None:
    assert set(CATEGORIES) == set(get_args(TaskName))
