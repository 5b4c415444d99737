"""Ten times the rows take no more memory, in the worker and in the driver."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.conftest import JobWriter

PROGRAM = """
import json, resource, sys
from pathlib import Path
from pipeline.cluster import connected
from pipeline.compose import load_job
from pipeline.job import ClusterOptions
from pipeline.run import run_job
from pipeline.worker import Worker

peaks = Path(sys.argv[2])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

class Measured(Worker):
    def run(self, part):
        report = super().run(part)
        peaks.write_text(str(peak()))
        return report

with connected(ClusterOptions()):
    for overrides in json.loads(sys.argv[3]):
        outcome = run_job(load_job(Path(sys.argv[1]), overrides), worker_class=Measured)
        print(json.dumps({"rows": outcome.rows, "driver": peak(), "worker": int(peaks.read_text())}))
"""
"""Does a job with some options after the other, each in a worker of its own, and tells the peaks so far."""


def measure(job: Path, folder: Path, runs: list[list[str]]) -> list[dict[str, int]]:
    command = [sys.executable, "-c", PROGRAM, str(job), str(folder / "peaks"), json.dumps(runs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("kind", ["parquet", "streamed", "generate"])
def test_ten_times_the_rows_take_no_more_memory(
    write_job: JobWriter, tmp_path: Path, rows: pa.Table, kind: str
) -> None:
    plain = rows.select(["id", "text"])
    once = pa.concat_tables([plain] * (2 if kind == "generate" else 5))
    lines = "".join(json.dumps(row) + "\n" for row in once.to_pylist())
    for name, times in (("once", 1), ("ten", 10)):
        pq.write_table(pa.concat_tables([once] * times), tmp_path / f"{name}.parquet")
        for shard in range(times):
            (tmp_path / f"{name}-{shard}.jsonl").write_text(lines)
    job = write_job(output={"rows_per_part": once.num_rows // 3}, cluster={"workers": {"max": 1}})
    # Each number of tokens that a step may have makes a kernel, which is kept: with few of them all are soon there.
    generate = ["task=generate", "generate.do_sample=true", "generate.max_new_tokens=3", "cluster.tokens_per_batch=96"]
    runs = []
    for name in ("once", "ten"):
        source = [f"input.parquet={tmp_path}/{name}.parquet"]
        if kind == "streamed":
            dataset = f"{{path: json, streaming: true, data_files: '{tmp_path}/{name}-*.jsonl'}}"
            source = ["input.parquet=null", f"input.dataset={dataset}"]
        if kind == "generate":
            source += generate
        runs.append([f"output.path={tmp_path}/out-{name}", *source])
    first, second = measure(job, tmp_path, runs)
    assert (first["rows"], second["rows"]) == (once.num_rows, 10 * once.num_rows)
    assert second["worker"] < 1.1 * first["worker"], (first, second)
    assert second["driver"] < 1.1 * first["driver"], (first, second)
