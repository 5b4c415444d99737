"""What three rows that kill their worker cost a run of 5,000, and whether they cost any other row anything.

    python -m benchmarks.poison [--rows 5000] [--json]

A random model of GPT-2's width and half its depth, with the samples' small vocabulary, scores short texts. Beside the
times it prints which rows carry an error, and what `retry-errors` changed once nothing kills any more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.machine import describe, print_table, seconds
from pipeline.worker import Worker

SAMPLES = Path(__file__).parent.parent / "samples"
POISON = (17, 2500, 4999)
WORDS = 20
ROWS_PER_PART = 250


class Poisoned(Worker):
    """Its model kills the process over some rows."""

    def _compute(self, stage: Any, group: Any) -> Any:
        ids = group.rows.column("id").to_pylist()
        if any(row in POISON for place, row in enumerate(ids) if place not in group.set_aside):
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()
        return super()._compute(stage, group)


def prepare_job(folder: Path, rows: int) -> Path:
    """A checkpoint, rows and a job file."""
    from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    tokenizer = GPT2Tokenizer.from_pretrained(SAMPLES / "gpt2-tiny")
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=6)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = pq.read_table(SAMPLES / "reviews.parquet").column("text").to_pylist()
    cut = [f"{row} {' '.join(texts[row % len(texts)].split()[:WORDS])}" for row in range(rows)]
    pq.write_table(pa.table({"id": range(rows), "text": cut}), folder / "rows.parquet")
    job = folder / "job.yaml"
    content = {
        "task": "score",
        "model": {"path": str(folder / "model")},
        "input": {"parquet": str(folder / "rows.parquet")},
        "output": {"path": str(folder / "out"), "rows_per_part": ROWS_PER_PART},
        "cluster": {"cpus_per_worker": 1},
    }
    job.write_text(yaml.safe_dump(content))
    return job


def run(job: Path, out: Path, poisoned: bool = False, retry: bool = False) -> int:
    """One run in a process of its own; its exit code."""
    how = ["poisoned" if poisoned else "sound", "retry" if retry else "run"]
    return subprocess.run([sys.executable, "-m", "benchmarks.poison", "--one", str(job), str(out), *how]).returncode


def run_here(job: Path, out: str, poisoned: bool, retry: bool) -> int:
    """One run in this process; its exit code."""
    from pipeline.compose import load_job
    from pipeline.run import run_job

    worker = Poisoned if poisoned else Worker
    return run_job(load_job(job, [f"output.path={out}"]), worker_class=worker, retry=retry).exit_code


def read(folder: Path) -> pa.Table:
    """All parts as one table."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("part-*"))])


def measure(folder: Path, rows: int) -> Mapping[str, float | str]:
    """The three runs, and what came of them."""
    job = prepare_job(folder, rows)
    codes = list[int]()
    calm = seconds(lambda: codes.append(run(job, folder / "calm")))
    hurt = seconds(lambda: codes.append(run(job, folder / "out", poisoned=True)))
    before = read(folder / "out")
    codes.append(run(job, folder / "out", retry=True))
    after, whole = read(folder / "out"), read(folder / "calm")
    failed = [row for row, why in enumerate(before.column("error").to_pylist()) if why is not None]
    others = [row for row in range(rows) if row not in failed]
    apart = max(
        abs(one - other) / max(abs(other), 1.0)
        for one, other in zip(after["loglikelihood"].to_pylist(), whole["loglikelihood"].to_pylist(), strict=True)
    )
    return {
        "exit codes": ", ".join(map(str, codes)),
        "undisturbed, s": calm,
        "poisoned, s": hurt,
        "times": hurt / calm,
        "rows with an error": ", ".join(map(str, failed)),
        "others changed by the retry": "none" if after.take(others).equals(before.take(others)) else "some",
        "errors left": after.num_rows - after.column("error").null_count,
        "greatest relative difference to undisturbed": apart,
    }


@click.command()
@click.option("--rows", default=5000, show_default=True)
@click.option("--one", nargs=4, hidden=True)
@click.option("--json", "as_json", is_flag=True)
def main(rows: int, one: tuple[str, str, str, str] | None, as_json: bool) -> None:
    """Measure, and print a table or one JSON object."""
    if one is not None:
        sys.exit(run_here(Path(one[0]), one[1], one[2] == "poisoned", one[3] == "retry"))
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), rows)
    machine = describe(["torch", "ray"])
    if as_json:
        click.echo(json.dumps({"machine": machine, **found}))
        return
    click.echo(json.dumps(machine))
    print_table("poison", [{"figure": key, "value": str(value)} for key, value in found.items()])


if __name__ == "__main__":
    main()
