"""Whatever bytes a file holds: its rows, a refusal or a failed split, by name; never a crash, never fewer rows."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.pipeline.fuzzing import CASES, SEED

SECONDS = 600
"""A guard against hangs, for all cases together."""


def test_damaged_files_are_refused_fail_by_name_or_give_every_row(tmp_path: Path) -> None:
    print(f"PIPELINE_SEED={SEED}, {CASES} cases")
    command = [sys.executable, "-m", "tests.pipeline.fuzz_parquet", str(tmp_path), str(SEED), "0", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    lines = done.stdout.splitlines()
    told = f"PIPELINE_SEED={SEED}, {lines[-1] if lines else 'no case'}, exit code {done.returncode}"
    assert done.returncode == 0, f"{told}\n{done.stderr[-3000:]}"
    outcomes = Counter(line for line in lines if not line.startswith("case "))
    print(dict(outcomes))
    assert outcomes.total() == CASES
    assert outcomes["refused"]
    assert outcomes["failed"]
    assert outcomes["equal"]
