"""The jobs that are disturbed: every task, over Parquet or streamed JSON Lines, and what each gives undisturbed."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.compose import load_job
from pipeline.preflight import prepare
from pipeline.run import write_job
from pipeline.worker import Worker
from tests.pipeline.answers import saved_model
from tests.pipeline.conftest import sentence

ROWS = 300
ROWS_PER_PART = 20
FIRST_FILE = 160
SHARD = 100
LABELS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}}
HEADS = {
    "classify": ("GPT2ForSequenceClassification", LABELS),
    "ner": ("GPT2ForTokenClassification", LABELS),
    "qa": ("GPT2ForQuestionAnswering", {}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "generate": {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "seed": 5, "logprobs": True},
    "ner": {"overlap": 16},
    "qa": {"overlap": 16},
}
TASKS = ("score", "generate", "classify", "ner", "qa", "choose", "embed")
INPUTS = ("parquet", "streamed")
ATTEMPTS = 5
"""More than the faults of one run: a part that is hit by all of them is not to be given up."""

HEARTBEAT = 10.0
"""Longer than any pause of a worker that goes on afterwards."""


@dataclass(frozen=True, slots=True)
class Case:
    """A job file, and the files that it makes when nobody disturbs it."""

    job: Path
    files: dict[str, bytes]
    exit_code: int


def make_case(task: str, source: str, checkpoint: Path, folder: Path) -> Case:
    """Write the job and its input into `folder`, and do it undisturbed, by a worker in this process."""
    model = checkpoint
    if task in HEADS:
        name, options = HEADS[task]
        model = folder / "model"
        saved_model(name, model, checkpoint, **options)
    job = folder / "job.yaml"
    content = {
        "task": task,
        "model": {"path": str(model)},
        "input": _write_parquet(folder) if source == "parquet" else _write_lines(folder),
        "output": {"path": str(folder / "calm"), "rows_per_part": ROWS_PER_PART},
        "cluster": {"cpus_per_worker": 1, "attempts": ATTEMPTS, "heartbeat": HEARTBEAT},
        **({task: OPTIONS[task]} if task in OPTIONS else {}),
    }
    job.write_text(yaml.safe_dump(content))
    errors = undisturbed(job)
    files = {file.name: file.read_bytes() for file in sorted((folder / "calm").glob("part-*.parquet"))}
    tables = [pq.read_table(pa.BufferReader(content)) for content in files.values()]
    assert pa.concat_tables(tables).column("id").to_pylist() == list(range(ROWS))
    return Case(job, files, 3 if errors else 0)


def undisturbed(job: Path, *overrides: str) -> int:
    """Do all parts of a job, one after the other and without Ray; returns the rows with an error."""
    prepared = prepare(load_job(job, overrides))
    prepared.store.create()
    write_job(prepared)
    worker, waiting, errors = Worker(prepared.spec), deque(prepared.plan.parts()), 0
    worker.start()
    while waiting:
        part = waiting.popleft()
        report = worker.run(part)
        errors += report.counted.errors
        following = prepared.plan.following(part, report.counted.rows)
        waiting.extend([] if following is None else [following])
    return errors


def _rows(nulls: bool) -> list[dict[str, Any]]:
    """Rows that every task can read; with `nulls`, one in fifty has nothing to read."""
    made = []
    for number in range(ROWS):
        text = sentence(number, random.Random(number).choice([0, 3, 8, 20, 60]))
        null = nulls and number % 50 == 7
        made.append(
            {
                "id": number,
                "text": None if null else text,
                "question": sentence(number + 1000, 4),
                "context": None if null else text or "the cat",
                "prompt": None if null else sentence(number + 2000, 5),
                "choices": [sentence(number + 3000 + each, 3) for each in range(3)],
            }
        )
    return made


def _write_parquet(folder: Path) -> dict[str, Any]:
    (folder / "in").mkdir()
    table = pa.Table.from_pylist(_rows(nulls=False))
    pq.write_table(table.slice(0, FIRST_FILE), folder / "in" / "a.parquet", row_group_size=50)
    pq.write_table(table.slice(FIRST_FILE), folder / "in" / "b.parquet")
    return {"parquet": str(folder / "in")}


def _write_lines(folder: Path) -> dict[str, Any]:
    rows = _rows(nulls=True)
    for start in range(0, ROWS, SHARD):
        lines = [json.dumps(row) for row in rows[start : start + SHARD]]
        (folder / f"s{start:05d}.jsonl").write_text("\n".join(lines))
    return {"dataset": {"path": "json", "streaming": True, "data_files": f"{folder}/*.jsonl"}}
