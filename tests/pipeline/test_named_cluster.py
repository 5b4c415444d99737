"""A run on a Ray cluster that somebody else started: its own code travels, the cluster stays."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos.processes import ray_workers
from tests.pipeline.conftest import JobWriter
from tests.pipeline.ray_head import answers, free_ports, ray_head


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a Ray head in processes of its own."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    with ray_head(lambda: answers(address), f"--port={port}", "--num-cpus=1", "--include-dashboard=false"):
        yield address


def kill_worker_of(run: subprocess.Popen[str], out: Path) -> None:
    """SIGKILL a worker once parts are committed."""
    while not list(out.glob("part-*")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the run ended with {run.wait(timeout=0.05)}: {run.communicate()}")
    (victim,) = ray_workers(f"RAY_AUTH_TOKEN={os.environ['RAY_AUTH_TOKEN']}")
    os.kill(victim.pid, signal.SIGKILL)


def test_a_run_on_a_named_cluster_is_whole_and_leaves_the_cluster_running(
    head: str, write_job: JobWriter, tmp_path: Path
) -> None:
    job = write_job(cluster={"address": head, "cpus_per_worker": 1}, output={"rows_per_part": 2})
    command = [sys.executable, "-m", "pipeline", "run", str(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        kill_worker_of(run, tmp_path / "out")
        summary, told = run.communicate()
    assert run.returncode == 0, told
    assert "a worker is gone: its process was killed" in told
    assert "(raylet)" not in summary + told  # Ray has a paragraph of its own on every death
    files = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [value for file in files for value in pq.read_table(file).column("id").to_pylist()] == list(range(900))
    token = os.environ["RAY_AUTH_TOKEN"].encode()
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not [file for file in written if token in file.read_bytes()]
    assert answers(head)
