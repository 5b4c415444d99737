"""Runs are disturbed by random faults at random moments, and the same command then finishes: exactly once, bit for bit.

PIPELINE_CHAOS says how many runs (make chaos: 200); PIPELINE_CHAOS_SEED=n replays one, n-m all from n to m.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.cases import INPUTS, TASKS, Case
from tests.chaos.command import Command
from tests.chaos.faults import SignalDriver, Strike, draw
from tests.chaos.nodes import Nodes
from tests.chaos.places import Place
from tests.chaos.processes import SHARED_MEMORY, unused_shared_memory
from tests.pipeline.faulty_s3 import FaultyS3

CHOSEN = os.environ.get("PIPELINE_CHAOS_SEED")
FIRST, _, LAST = (CHOSEN or f"0-{int(os.environ.get('PIPELINE_CHAOS', '3')) - 1}").partition("-")
SEEDS = range(int(FIRST), int(LAST or FIRST) + 1)


def kind(seed: int) -> tuple[str, str, str, str]:
    """Task, input, output and Ray of a seed: 112 seeds in a row have every combination."""
    outputs, rays = ("local", "s3"), ("one", "nodes", "nodes", "nodes")  # nodes stand ready, which saves the start
    return TASKS[seed % 7], INPUTS[seed % 2], outputs[seed // 2 % 2], rays[seed // 4 % 4]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed}-{'-'.join(kind(seed))}")
def test_a_disturbed_run_is_finished_by_the_same_command(
    seed: int,
    cases: Callable[[str, str], Case],
    nodes: Callable[[], Nodes],
    s3: FaultyS3,
    struck: Counter[str],
    sessions: list[int],
    tmp_path: Path,
) -> None:
    task, source, output, ray = kind(seed)
    case = cases(task, source)
    place = Place(s3.uri(f"{seed}"), s3) if output == "s3" else Place(str(tmp_path / "out"))
    strikes = draw(seed, len(case.files), output == "local", ray == "nodes")
    memory = {file.name for file in SHARED_MEMORY.iterdir()}
    with Command(case.job, place, nodes() if ray == "nodes" else None) as disturbed:
        sessions.append(disturbed.process.pid)
        hits = disturb(disturbed, strikes, struck)
        check_end(disturbed, case, hits)
        assert set(place.names()) <= set(case.files)
        with Command(case.job, place, nodes() if ray == "nodes" else None) as calm:
            assert calm.wait() == case.exit_code, calm.told()
            assert place.files() == case.files
            assert place.left() == []
            assert calm.remains() == []
        assert disturbed.remains() == []
    assert unused_shared_memory(memory) == []


def disturb(command: Command, strikes: list[Strike], struck: Counter[str]) -> list[Strike]:
    """Apply the faults; returns those that struck."""
    hits = []
    for strike in strikes:
        hit = strike.apply(command)
        struck[f"{type(strike.fault).__name__} {'struck' if hit else 'missed'}"] += 1
        print(f"{strike}: {'struck' if hit else 'missed'}")
        if hit:
            hits.append(strike)
    return hits


def check_end(command: Command, case: Case, hits: list[Strike]) -> None:
    """The exit code is the job's own, or one that a fault excuses; and nobody is shown a traceback."""
    allowed = {case.exit_code}.union(*(strike.fault.codes for strike in hits))
    code = command.wait()
    print(f"exit code {code}: {command.told()}")
    assert code in allowed, command.told()
    if not any(isinstance(strike.fault, SignalDriver) for strike in hits):
        assert "Traceback" not in command.told()
