"""The Ray that a command is connected to dies under it: the command ends with a word, and goes on on another."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq
import pytest

from tests.chaos.processes import AGENTS, Process, of_session, processes
from tests.pipeline.conftest import JobWriter
from tests.pipeline.test_named_cluster import head

__all__ = ["head"]

IMPATIENT = "import pipeline.cluster as c; c.GONE_SECONDS = 3.0; from pipeline.cli import main; main()"
"""The command, which waits for a silent Ray 3 seconds instead of 20."""
SECONDS = 90.0


class Command:
    """A run of 900 parts, in a session of its own; Ray's processes in it where the Ray is its own."""

    def __init__(self, job: Path, out: Path, **environment: str) -> None:
        self.out = out
        self._process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, "run", str(job), "output.rows_per_part=1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        self.session = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_for_a_part(self) -> None:
        while not list(self.out.glob("part-*")):
            assert self._process.poll() is None, self._process.communicate()
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Exit code and what it said."""
        _, told = self._process.communicate(timeout=SECONDS)
        return self._process.returncode, told.decode()


def kill(program: str, owned: Callable[[Process], bool]) -> None:
    """SIGKILL the one process of `program` that is `owned`."""
    (victim,) = [each for each in processes() if each.title.partition(" ")[0].endswith(f"/{program}") and owned(each)]
    os.kill(victim.pid, signal.SIGKILL)


def nothing_runs(session: int) -> bool:
    """Whether all processes of the session go away, Ray's agents after a minute of their own excepted."""
    end = time.monotonic() + SECONDS
    while (left := [each for each in of_session(session) if each.title not in AGENTS]) and time.monotonic() < end:
        time.sleep(0.1)
    return not left


@pytest.mark.parametrize(("victim", "silent"), [("gcs_server", "its head"), ("raylet", "its node on this machine")])
def test_a_command_whose_own_ray_dies_ends_with_a_word(
    write_job: JobWriter, tmp_path: Path, victim: str, silent: str
) -> None:
    with Command(write_job(), tmp_path / "out") as command:
        command.wait_for_a_part()
        kill(victim, lambda process: process.session == command.session)
        code, told = command.end()
    assert code == 1
    assert f"Error: the local Ray of this command is gone: {silent} has not answered for 3 s" in told
    assert nothing_runs(command.session)


def test_a_command_whose_cluster_loses_its_head_ends_with_a_word_and_goes_on_on_another(
    head: str, write_job: JobWriter, tmp_path: Path
) -> None:
    job = write_job()
    with Command(job, tmp_path / "out", RAY_ADDRESS=head) as command:
        command.wait_for_a_part()
        kill("gcs_server", lambda process: f"--gcs_server_port={head.rpartition(':')[2]}" in process.title)
        code, told = command.end()
    assert code == 1
    assert f"Error: the cluster at {head} is gone: its head has not answered for 3 s. What was committed stays" in told
    assert "Traceback" not in told
    with Command(job, tmp_path / "out") as again:
        assert again.end()[0] == 0
    files = sorted((tmp_path / "out").glob("part-*"))
    assert [value for file in files for value in pq.read_table(file).column("id").to_pylist()] == list(range(900))
