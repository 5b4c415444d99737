"""Rounds of an incremental run, done in this process: all of `run_job` but Ray."""

import contextlib
import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline.run
from pipeline.compose import load_job
from pipeline.driver import Failure
from pipeline.errors import SourceError
from pipeline.job import ClusterOptions, Job
from pipeline.messages import Counts, PartReport, WorkerSpec
from pipeline.plan import Part, Plan
from pipeline.preflight import prepare
from pipeline.run import Outcome, run_job
from pipeline.verify import Verdict, verify
from pipeline.worker import Worker


class DriverHere:
    """Does one part after another in this process, by a worker that was pickled as for another node."""

    def __init__(
        self,
        spec: WorkerSpec,
        plan: Plan,
        waiting: Iterable[Part],
        num_gpus: float,
        tick: Callable[[Any], None],
        done: Callable[[PartReport], None],
        tell: Callable[[str], None],
        worker_class: type[Worker] = Worker,
    ) -> None:
        self.worker = worker_class(pickle.loads(pickle.dumps(spec)))
        self.waiting, self.done, self.tick = waiting, done, tick
        self.failures: list[Failure] = []
        self.needs: dict[str, float] = {}
        self.counts, self.device, self.tokens, self.workers = Counts(), "", 0, 1
        self.began = self.ended = 0.0
        self.stopping = False

    def room(self) -> int:
        return 1

    def run(self) -> None:
        self.device = self.worker.start()
        for part in self.waiting:
            self.tick(self)
            try:
                self.done(self.worker.retry(part) if part.retry else self.worker.run(part))
            except SourceError as error:
                self.failures.append(Failure(part, str(error)))


@contextlib.contextmanager
def no_cluster(cluster: ClusterOptions, debug: bool = False) -> Iterator[None]:
    yield


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test happen in this process."""
    monkeypatch.setattr(pipeline.run, "Driver", DriverHere)
    monkeypatch.setattr(pipeline.run, "connected", no_cluster)


def put(file: Path, ids: Iterable[int], texts: list[str | None] | None = None) -> Path:
    """A Parquet file with those rows; a text in place of theirs may be given."""
    numbers = list(ids)
    words = texts if texts is not None else [f"row {number} goes on" for number in numbers]
    table = pa.table({"id": pa.array(numbers, pa.int64()), "text": pa.array(words, pa.string())})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file.with_name(f".{file.name}"), row_group_size=13)
    return file.with_name(f".{file.name}").rename(file)


@dataclass(frozen=True)
class Rounds:
    """An input folder that grows, the job over it, and its output."""

    job_file: Path
    input: Path
    out: Path

    def job(self, *overrides: str) -> Job:
        return load_job(self.job_file, overrides)

    def run(self, *overrides: str, retry: bool = False) -> Outcome:
        return run_job(self.job(*overrides), retry=retry)

    def verify(self, *overrides: str) -> Verdict:
        return verify(prepare(self.job(*overrides), to_run=False))

    def put(self, name: str, ids: Iterable[int], texts: list[str | None] | None = None) -> Path:
        return put(self.input / name, ids, texts)

    @property
    def parts(self) -> list[Path]:
        return sorted(self.out.glob("part-*"))

    @property
    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.out / "_pipeline" / "plan.json").read_text())
        return content

    def ids(self) -> list[int]:
        """Of the rows in the output, in the order of the parts."""
        return [row for part in self.parts for row in pq.read_table(part).column("id").to_pylist()]

    def digests(self) -> dict[str, str]:
        return {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in self.parts}

    def untouched(self, before: dict[str, str]) -> bool:
        """Whether the parts that were there are there as they were."""
        return before.items() <= self.digests().items()


@pytest.fixture
def rounds(tmp_path: Path, checkpoint: Path) -> Rounds:
    (tmp_path / "in").mkdir()
    content = {
        "task": "score",
        "model": {"path": str(checkpoint)},
        "input": {"parquet": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out"), "mode": "incremental", "rows_per_part": 10},
        "cluster": {"cpus_per_worker": 1},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    return Rounds(tmp_path / "job.yaml", tmp_path / "in", tmp_path / "out")
