"""The command is killed with SIGKILL at random moments, and the same command then finishes: exactly once.

PIPELINE_KILLS says how many runs are killed (make chaos: 20); the seed of each is in the test's name.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.chaos.cases import LABELS, undisturbed
from tests.pipeline.answers import saved_model

KILLS = int(os.environ.get("PIPELINE_KILLS", "1"))
PARTS = 30
KINDS = ("parquet", "streamed", "steps")
SIGNALLED = [("parquet", signal.SIGINT), ("steps", signal.SIGTERM)]
if KILLS > 1:
    SIGNALLED = list(product(KINDS, (signal.SIGINT, signal.SIGTERM)))


@dataclass(frozen=True)
class Calm:
    """A job, and what it gives when nobody disturbs it."""

    job: Path
    table: pa.Table
    names: list[str]


def command(job: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline", "run", str(job), f"output.path={out}"]


def finish(job: Path, out: Path) -> None:
    done = subprocess.run(command(job, out), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def visible(out: Path) -> list[Path]:
    return sorted(file for file in out.iterdir() if not file.name.startswith("_")) if out.exists() else []


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in visible(out)])


def kill_at(job: Path, out: Path, committed: int, wait: float) -> None:
    """SIGKILL the command `wait` seconds after it has committed so many parts (or when it ends before)."""
    process = subprocess.Popen(command(job, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(visible(out)) < committed:
        try:
            process.wait(timeout=0.02)
            break
        except subprocess.TimeoutExpired:
            continue
    try:
        process.wait(timeout=wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module", params=KINDS)
def calm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, rows: pa.Table
) -> Calm:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "in").mkdir()
    pq.write_table(rows.slice(0, 500), folder / "in" / "a.parquet", row_group_size=130)
    pq.write_table(rows.slice(500), folder / "in" / "b.parquet")
    for shard in range(3):
        lines = [json.dumps(row) for row in rows.slice(shard * 300, 300).to_pylist()]
        (folder / f"s{shard}.jsonl").write_text("\n".join(lines))
    dataset = {"path": "json", "streaming": True, "data_files": f"{folder}/*.jsonl"}
    task = {"steps": _steps(folder, checkpoint)} if request.param == "steps" else {"task": "score"}
    content = {
        **task,
        "model": {"path": str(checkpoint)},
        "input": {"dataset": dataset} if request.param == "streamed" else {"parquet": str(folder / "in")},
        "output": {"path": str(folder / "out"), "rows_per_part": 900 // PARTS},
    }
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(content))
    undisturbed(job, f"output.path={folder}/calm")
    table = read(folder / "calm")
    assert table.column("id").to_pylist() == list(range(900))
    return Calm(job, table, [file.name for file in visible(folder / "calm")])


def _steps(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Scores, topics, names and a drawn continuation of every row."""
    drawn = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "seed": 5, "logprobs": True}
    saved_model("GPT2ForSequenceClassification", folder / "topic", checkpoint, **LABELS)
    saved_model("GPT2ForTokenClassification", folder / "names", checkpoint, **LABELS)
    return {
        "fluency": {"task": "score"},
        "topic": {"task": "classify", "model": {"path": str(folder / "topic")}},
        "names": {"task": "ner", "model": {"path": str(folder / "names")}, "ner": {"overlap": 16}},
        "next": {"task": "generate", "generate": drawn},
    }


@pytest.mark.parametrize("seed", range(1, KILLS + 1))
def test_a_killed_run_is_finished_by_the_same_command(calm: Calm, tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    out = tmp_path / "out"
    for _ in range(moments.randint(1, 2)):
        kill_at(calm.job, out, moments.randrange(PARTS), moments.choice([0.0, 0.01, 0.1, 1.0]))
        assert {file.name for file in visible(out)} <= set(calm.names)
        for file in visible(out):
            pq.read_metadata(file)
    finish(calm.job, out)
    assert read(out).equals(calm.table)
    assert [file.name for file in visible(out)] == calm.names
    assert not list((out / "_pipeline" / "staging").iterdir())
    assert not (out / "_pipeline" / "lease.json").exists()


@pytest.mark.parametrize(("calm", "number"), SIGNALLED, indirect=["calm"])
def test_a_signal_ends_the_run_with_a_word_and_leaves_no_process_behind(
    calm: Calm, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(calm.job, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    while not visible(out):
        try:
            process.wait(timeout=0.02)
            break
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(number)
    _, told = process.communicate()
    assert process.returncode == 1
    assert f"stopped by {number.name}; what was committed stays: the same command goes on from there" in told.decode()
    assert "Traceback" not in told.decode()
    shown = re.findall(r"(\d+)(?: of 900)? rows,", told.decode())
    assert read(out).num_rows <= int(shown[-1]) <= 900
    assert _processes_of_session(process.pid) == []
    finish(calm.job, out)
    assert read(out).equals(calm.table)


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path, checkpoint: Path) -> None:
    rows = 3000
    pq.write_table(pa.table({"text": [f"row {row} goes on and on" for row in range(rows)]}), tmp_path / "in.parquet")
    job = tmp_path / "job.yaml"
    job.write_text(
        yaml.safe_dump(
            {
                "task": "generate",
                "model": {"path": str(checkpoint)},
                "input": {"parquet": str(tmp_path / "in.parquet")},
                "output": {"path": str(tmp_path / "out"), "rows_per_part": 20},
                "generate": {"max_new_tokens": 40},
            }
        )
    )
    process = subprocess.Popen(
        command(job, tmp_path / "out"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    while not visible(tmp_path / "out"):
        assert process.poll() is None
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 1
    # Two signals that are pending together may come as one.
    assert "what was committed stays: the same command goes on from there" in told.decode()
    assert "Traceback" not in told.decode()
    assert _processes_of_session(process.pid) == []
    assert 0 < read(tmp_path / "out").num_rows < rows


def _processes_of_session(leader: int) -> list[str]:
    """Commands of the processes, other than zombies, that descend from a session's leader."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                environment = (entry / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if int(fields[3]) == leader or f"RAY_JOB_DRIVER_PID={leader}".encode() in environment:
                found.append((entry / "cmdline").read_text())
    return found
