"""Two runs on one folder: one works, the other is told so, and every row is there once."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.compose import load_job
from pipeline.errors import LeaseHeld, OutputRefused
from pipeline.run import Outcome, run_job
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("part-*"))])


@contextmanager
def working(job: Path, release: Path) -> Iterator[list[Outcome]]:
    """A run whose workers wait, once they are ready, until the block ends; its outcome is there after it."""
    ready = release.with_name("ready")

    class Waiting(Worker):
        def start(self) -> str:
            device = super().start()
            ready.touch()
            while not release.exists():
                threading.Event().wait(0.02)
            return device

    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_job, load_job(job, []), worker_class=Waiting)
        try:
            while not ready.exists():
                assert not running.done(), running.result()
                threading.Event().wait(0.02)
            yield outcomes
        finally:
            release.touch()
        outcomes.append(running.result())


@pytest.mark.usefixtures("ray_local")
def test_a_run_in_a_folder_where_one_works_is_refused_and_the_first_is_unharmed(
    write_job: JobWriter, tmp_path: Path, rows: pa.Table
) -> None:
    job = write_job()
    with working(job, tmp_path / "release") as outcomes:
        with pytest.raises(OutputRefused, match=r"score\.window was 'rolling' and is 'sliding'") as refusal:
            run_job(load_job(job, ["score.window=sliding"]))
        assert refusal.value.exit_code == 2
        with pytest.raises(LeaseHeld, match="is being written by process") as held:
            run_job(load_job(job, []))
        assert held.value.exit_code == 1
    assert [outcome.rows for outcome in outcomes] == [900]
    assert read(tmp_path / "out").select(rows.column_names).equals(rows)


def test_of_two_commands_given_at_the_same_moment_one_works(
    write_job: JobWriter, tmp_path: Path, rows: pa.Table
) -> None:
    command = [sys.executable, "-m", "pipeline", "run", str(write_job())]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    worked = [
        out for out, _ in said if any(line.split()[-1:] == ["900"] for line in out.splitlines() if "by this" in line)
    ]
    assert len(worked) == 1, said
    for process, (_, told) in zip(both, said, strict=True):
        assert process.returncode == 0 or (
            process.returncode == 1 and ("is being written by process" in told or "at the same moment" in told)
        ), told
    assert read(tmp_path / "out").select(rows.column_names).equals(rows)
    assert len(list((tmp_path / "out").glob("part-*"))) == 9
