"""Each case once, one object store and one cluster for all runs, and at the end what has struck."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.cases import Case, make_case
from tests.chaos.nodes import Nodes
from tests.chaos.processes import of_session
from tests.pipeline.conftest import checkpoint
from tests.pipeline.faulty_s3 import FaultyS3

__all__ = ["checkpoint"]

AGENTS_SECONDS = 90.0
STRUCK = pytest.StashKey[Counter[str]]()


@pytest.fixture(scope="module")
def cases(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Case]:
    """The case of a task and an input; made when it is first asked for."""
    made: dict[tuple[str, str], Case] = {}

    def case(task: str, source: str) -> Case:
        if (task, source) not in made:
            folder = tmp_path_factory.mktemp(f"{task}-{source}")
            made[task, source] = make_case(task, source, checkpoint, folder)
        return made[task, source]

    return case


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture(scope="module")
def nodes() -> Iterator[Callable[[], Nodes]]:
    """The cluster, whole; started when it is first asked for."""
    made: list[Nodes] = []

    def whole() -> Nodes:
        if not made:
            made.append(Nodes())
        made[0].restore()
        return made[0]

    yield whole
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def sessions() -> Iterator[list[int]]:
    """The sessions of the disturbed commands; a while after the last nothing of them is left."""
    made: list[int] = []
    yield made
    end = time.monotonic() + AGENTS_SECONDS
    while (left := [each for leader in made for each in of_session(leader)]) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == []


@pytest.fixture(scope="session")
def struck(pytestconfig: pytest.Config) -> Counter[str]:
    """How often each kind of fault struck, and how often it came too late or found nothing."""
    return pytestconfig.stash.setdefault(STRUCK, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, count in sorted(config.stash.get(STRUCK, Counter()).items()):
        terminalreporter.write_line(f"{count:5} {name}")
