"""Ten rounds of an incremental run, whose command is killed with SIGKILL at random moments: every row once.

PIPELINE_KILLS says how many kills there are in the ten rounds (make chaos: 20). A round in which something is killed
is finished by the command itself, the others are done in this process.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from typing import Any

import pyarrow.parquet as pq
import pytest

import gpt2model
import pipeline.run
from tests.pipeline.rounds import DriverHere, Rounds, no_cluster
from tests.pipeline.rounds import rounds as rounds

KILLS = int(os.environ.get("PIPELINE_KILLS", "1"))
ROUNDS = 10
LARGE = 4
"""The round that brings a large file."""
KILLED_ROWS = 60
"""What a round in which there are kills brings at the least, so that there is something to be killed at."""


def grow(rounds: Rounds, moments: random.Random, expected: dict[str, list[int]], sizes: list[int]) -> None:
    """A few files more: without rows, tiny, and of the given sizes, under names that sort anyhow."""
    for size in [*(moments.choice([0, 1, 3, 17, 40]) for _ in range(moments.randrange(4))), *sizes]:
        first = sum(map(len, expected.values()))
        file = rounds.put(f"{moments.randrange(1000):03d}-{len(expected)}.parquet", range(first, first + size))
        expected[str(file)] = list(range(first, first + size))


def kill(rounds: Rounds, moments: random.Random, files: int) -> None:
    """SIGKILL the command a moment after it has recorded all `files` and committed a few parts more (or has ended)."""
    parts, record = len(rounds.parts) + moments.randrange(4), rounds.out / "_pipeline" / "plan.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(rounds.job_file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if len(rounds.parts) >= parts and record.exists() and len(rounds.record["splits"]) == files:
            break
        threading.Event().wait(0.005)
    try:
        process.wait(timeout=moments.choice([0.0, 0.005, 0.1, 2.0]))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"round ended by {process.returncode}, {len(rounds.parts) - parts:+} parts from where it was to be killed")


def finish(rounds: Rounds) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(rounds.job_file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def check(rounds: Rounds, expected: dict[str, list[int]]) -> None:
    """Every row once, in the order of the record, and the parts as they were committed."""
    recorded = [split["name"] for split in rounds.record["splits"]]
    assert sorted(recorded) == sorted(expected)
    assert rounds.ids() == [row for name in recorded for row in expected[name]]
    verdict = rounds.verify()
    assert verdict.sound, str(verdict)


def nothing_new(rounds: Rounds) -> None:
    """The same command once more: it starts nothing, loads nothing, and touches no part."""

    def poison(*arguments: object, **options: object) -> None:
        raise AssertionError("something was started or loaded")

    before = rounds.digests()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.init", poison)
        patch.setattr(pipeline.run, "Driver", poison)
        patch.setattr(gpt2model.GPT2LMHeadModel, "from_pretrained", poison)
        assert rounds.run().summary["rows done by this command"] == 0
    assert rounds.digests() == before


def test_rounds_that_are_killed_at_any_moment_give_every_row_once(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.run, "Driver", DriverHere)
    monkeypatch.setattr(pipeline.run, "connected", no_cluster)
    moments = random.Random(KILLS)
    kills = [LARGE, *(moments.randrange(ROUNDS) for _ in range(KILLS - 1))]
    expected = {str(rounds.put("first.parquet", [])): list[int]()}
    before, recorded = dict[str, str](), list[dict[str, Any]]()
    for number in range(ROUNDS):
        grow(rounds, moments, expected, [500] * (number == LARGE) + [KILLED_ROWS] * kills.count(number))
        for _ in range(kills.count(number)):
            kill(rounds, moments, len(expected))
            assert rounds.untouched(before)
            assert recorded == [] or rounds.record["splits"][: len(recorded)] == recorded
            for part in rounds.parts:
                pq.read_metadata(part)
        finish(rounds) if number in kills else rounds.run()
        check(rounds, expected)
        assert rounds.untouched(before)
        assert rounds.record["splits"][: len(recorded)] == recorded
        nothing_new(rounds)
        before, recorded = rounds.digests(), rounds.record["splits"]
    assert sum(map(len, expected.values())) == len(rounds.ids()) > 500
