"""Hugging Face datasets as a source: map-style, streamed, and the JSON, CSV and text loaders."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import JobError, SourceError
from pipeline.job import DatasetOptions
from pipeline.sources.hf import DatasetSource
from pipeline.tasks.rows import Holds

ROWS = 700
SHARDS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for shard in range(SHARDS):
        lines = [json.dumps({"id": shard * ROWS + row, "text": f"row {row}"}) for row in range(ROWS)]
        (tmp_path / f"shard{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "*.jsonl")


def source(limit: int | None = None, **options: Any) -> DatasetSource:
    return DatasetSource(DatasetOptions(**options), limit)


def ids(source: DatasetSource, split: int, start: int, stop: int) -> list[int]:
    batches = source.read(source.splits()[split], start, stop, ["id"])
    return [value for batch in batches for value in batch.column(0).to_pylist()]


def test_a_map_style_dataset_is_one_split_with_known_rows(shards: str) -> None:
    found = source(path="json", data_files=shards)
    assert [split.rows for split in found.splits()] == [SHARDS * ROWS]
    assert ids(found, 0, 650, 1500) == list(range(650, 1500))


def test_a_streamed_dataset_has_a_split_a_shard_and_reads_any_range(shards: str) -> None:
    found = pickle.loads(pickle.dumps(source(path="json", data_files=shards, streaming=True)))
    assert [split.rows for split in found.splits()] == [None] * SHARDS
    assert ids(found, 1, 0, 300) == list(range(ROWS, ROWS + 300))
    assert ids(found, 1, 300, 600) == list(range(ROWS + 300, ROWS + 600))
    assert ids(found, 1, 600, 900) == list(range(ROWS + 600, 2 * ROWS))
    assert ids(found, 1, 150, 160) == list(range(ROWS + 150, ROWS + 160))
    assert ids(found, 1, 900, 1200) == []


def test_a_limit_makes_a_streamed_dataset_one_split_of_its_first_rows(shards: str) -> None:
    found = source(limit=ROWS + 5, path="json", data_files=shards, streaming=True)
    assert len(found.splits()) == 1
    assert ids(found, 0, 0, 10_000) == list(range(ROWS + 5))


@pytest.mark.parametrize(
    ("loader", "content", "column"),
    [
        ("csv", "id,text\n1,one\n2,two\n", "text"),
        ("text", "one\ntwo\n", "text"),
        ("json", '{"t": "a"}\n{"t": "b"}\n', "t"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_the_file_loaders_work(tmp_path: Path, loader: str, content: str, column: str, streaming: bool) -> None:
    (tmp_path / "file").write_text(content)
    found = source(path=loader, data_files=str(tmp_path / "file"), streaming=streaming)
    assert Holds.TEXT.accepts(found.schema().field(column).type)
    (batch,) = found.read(found.splits()[0], 0, 10, [column])
    assert batch.num_rows == 2


def test_the_identity_changes_with_the_files(shards: str, tmp_path: Path) -> None:
    before = source(path="json", data_files=shards).splits()
    assert source(path="json", data_files=shards).splits() == before
    (tmp_path / "shard0.jsonl").write_text('{"id": 1, "text": "other"}\n')
    after = source(path="json", data_files=shards)
    assert after.splits() != before
    with pytest.raises(SourceError, match="changed since the plan"):
        list(after.read(before[0], 0, 1, ["id"]))


def test_other_files_of_the_same_age_are_another_input(shards: str, tmp_path: Path) -> None:
    files = [tmp_path / "shard0.jsonl", tmp_path / "shard1.jsonl"]
    for file in files:
        os.utime(file, ns=(1, 1))
    first, second = (source(path="json", data_files=str(file)).splits()[0] for file in files)
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "./nowhere"}, "nowhere"),
        ({"path": "json", "data_files": "nothing*.jsonl"}, "nothing"),
        ({"path": "json", "data_files": "{shards}", "split": "validation"}, "validation"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_can_not_be_loaded_is_named(shards: str, options: dict[str, Any], message: str, streaming: bool) -> None:
    given = {key: value.format(shards=shards) for key, value in options.items()}
    with pytest.raises(JobError, match=message):
        source(**given, streaming=streaming).schema()


def test_a_stretch_without_a_column_is_null_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"id": 2}\n')
    found = source(path="json", data_files=str(tmp_path / "*.jsonl"), streaming=True)
    (batch,) = found.read(found.splits()[1], 0, 10, ["id", "text"])
    assert batch.to_pylist() == [{"id": 2, "text": None}]


def test_a_column_of_another_type_further_on_fails_that_split_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "word"}\n')
    found = source(path="json", data_files=str(tmp_path / "*.jsonl"), streaming=True)
    with pytest.raises(SourceError, match=r"shard 1 of 2.*can't be read"):
        list(found.read(found.splits()[1], 0, 10, ["id"]))
