"""The command is killed with SIGKILL at random moments, and the same command then finishes: exactly once.

PIPELINE_KILLS says how many runs are killed (make chaos: 20); the seed of each is in the test's name.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.conftest import JobWriter

KILLS = int(os.environ.get("PIPELINE_KILLS", "2"))
PARTS = 30


def start(job: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(job)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(job: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "run", str(job)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def visible(out: Path) -> list[Path]:
    return sorted(file for file in out.iterdir() if not file.name.startswith("_")) if out.exists() else []


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in visible(out)])


def kill_at(job: Path, out: Path, committed: int, wait: float) -> None:
    """SIGKILL the command `wait` seconds after it has committed so many parts (or when it ends before)."""
    process = start(job)
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
    process.communicate()


@pytest.fixture(params=["parquet", "streamed"])
def job(request: pytest.FixtureRequest, write_job: JobWriter, tmp_path: Path, rows: pa.Table) -> Path:
    file = write_job(output={"rows_per_part": 900 // PARTS})
    if request.param == "streamed":
        for shard in range(3):
            lines = [json.dumps(row) for row in rows.slice(shard * 300, 300).to_pylist()]
            (tmp_path / f"s{shard}.jsonl").write_text("\n".join(lines))
        dataset = f"dataset: {{path: json, streaming: true, data_files: '{tmp_path}/*.jsonl'}}"
        file.write_text(file.read_text().replace(f"parquet: {tmp_path}/in", dataset))
    return file


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_run_is_finished_by_the_same_command(job: Path, tmp_path: Path, seed: int) -> None:
    calm = tmp_path / "calm.yaml"
    calm.write_text(job.read_text().replace(f"{tmp_path}/out", f"{tmp_path}/calm"))
    finish(calm)
    undisturbed = read(tmp_path / "calm")
    assert undisturbed.column("id").to_pylist() == list(range(900))
    moments = random.Random(seed)
    out = tmp_path / "out"
    for _ in range(moments.randint(1, 2)):
        kill_at(job, out, moments.randrange(PARTS), moments.choice([0.0, 0.01, 0.1, 1.0]))
        assert {file.suffix for file in visible(out)} <= {".parquet"}
        for file in visible(out):
            pq.read_metadata(file)
    finish(job)
    assert read(out).equals(undisturbed)
    assert [file.name for file in visible(out)] == [file.name for file in visible(tmp_path / "calm")]
    assert not list((out / "_pipeline" / "staging").iterdir())
    assert not (out / "_pipeline" / "lease.json").exists()
