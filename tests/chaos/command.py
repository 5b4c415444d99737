"""The command itself, in a session of its own, with what a fault needs to find its victims."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.nodes import Nodes
from tests.chaos.places import Place
from tests.chaos.processes import AGENTS, Process, of_session, ray_workers

POLL_SECONDS = 0.02
HUNG_SECONDS = 150.0
GONE_SECONDS = 40.0


class Command:
    """`pipeline run`, running. Leaving the `with` block kills what is left of it."""

    def __init__(self, job: Path, place: Place, nodes: Nodes | None) -> None:
        self.place, self.nodes = place, nodes
        self.folder = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp"))  # short: Ray has sockets in it
        mark = f"PIPELINE_CHAOS_RUN={self.folder.name}"
        name, _, value = mark.partition("=")
        environment = {**os.environ, name: value, "TMPDIR": str(self.folder), "RAY_TMPDIR": str(self.folder)}
        environment.pop("RAY_ADDRESS", None)
        if nodes is not None:
            environment["RAY_ADDRESS"] = nodes.address
        self.mark = mark if nodes is None else nodes.mark
        self._told = (self.folder / "stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", str(job), f"output.path={place.uri}"],
            stdout=subprocess.DEVNULL,
            stderr=self._told,
            start_new_session=True,
            env=environment,
        )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        self.process.wait()
        self._told.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def told(self) -> str:
        """What the command has written to stderr."""
        return (self.folder / "stderr").read_text(errors="replace")

    def workers(self) -> list[Process]:
        """Its actors; on the cluster, whoever's they are: one command at a time runs there."""
        return ray_workers(self.mark)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for `condition`, at most so long and no longer than the command lives."""
        end = time.monotonic() + seconds
        while not self.ended and time.monotonic() < end:
            with contextlib.suppress(OSError):  # an object store in trouble
                if condition():
                    return True
            time.sleep(POLL_SECONDS)
        return False

    def wait(self) -> int:
        """The exit code; a command that hangs fails the test."""
        try:
            return self.process.wait(timeout=HUNG_SECONDS)
        except subprocess.TimeoutExpired:
            running = [each.title for each in of_session(self.process.pid)]
            raise AssertionError(
                f"hung for {HUNG_SECONDS:.0f} s; it said {self.told()!r}; running: {running}"
            ) from None

    def remains(self) -> list[str]:
        """Titles of the processes that still run, and staged parts in the temporary folder, after a while of grace."""
        end = time.monotonic() + GONE_SECONDS
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def _left(self) -> list[str]:
        running = [f"{each.pid} {each.title}" for each in [*self._running(), *self.workers()]]
        return running + [str(file) for file in self.folder.glob("part-*")]

    def _running(self) -> list[Process]:
        """Of the session, all but Ray's agents: those are looked for once, after all runs."""
        return [each for each in of_session(self.process.pid) if each.title not in AGENTS]
