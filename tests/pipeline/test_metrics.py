"""What a run tells Prometheus, by way of Ray; that it can't never fails the run."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline import metrics
from pipeline.compose import load_job
from pipeline.messages import Counts
from pipeline.metrics import COUNTERS, GAUGES, TAGS, Metrics
from pipeline.pace import Pace, pace_of
from pipeline.plan import Plan
from pipeline.preflight import prepare
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter
from tests.pipeline.ray_head import answers, free_ports, ray_head
from tests.pipeline.test_store import make_plan

DONE = Counts(rows=30, errors=2, tokens=600, slots=600)


@dataclass
class Told:
    """What was told to stand-ins for Ray's classes."""

    added: dict[str, list[float]]
    last: dict[str, float | None]
    tags: list[dict[str, str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told({}, {}, [])

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            self.name, self.keys = name, tag_keys

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0
            assert {*tags} == {*self.keys}
            told.added.setdefault(self.name, []).append(value)
            told.tags.append(tags)

        def set(self, value: float | None, tags: dict[str, str]) -> None:
            assert {*tags} == {*self.keys}
            told.last[self.name] = value

    monkeypatch.setattr(metrics, "Counter", Metric)
    monkeypatch.setattr(metrics, "Gauge", Metric)
    return told


def counted(plan: Plan, warned: list[str]) -> Metrics:
    return Metrics(plan, "/out", lambda message, event: warned.append(f"{event}: {message}"))


def pace(counts: Counts) -> Pace:
    return pace_of(counts, before=100, total=280, seconds=10.0, workers=2)


def test_counters_add_up_to_the_work_of_the_command_and_never_fall(told: Told) -> None:
    plan = make_plan()
    with counted(plan, []) as made:
        for rows in (0, 30, 30, 20, 45):  # 20: what a dead worker last said may be less than it had said
            made.update(replace(DONE, rows=rows), pace(DONE))
        made.committed()
        made.update(replace(DONE, rows=45), pace(DONE))
    assert {name: sum(added) for name, added in told.added.items()} == {
        "pipeline_rows": 45,
        "pipeline_errors": 2,
        "pipeline_tokens": 600,
        "pipeline_parts": 1,
    }
    assert told.tags[0] == {"task": "score", "run": plan.fingerprint[:10], "output": "/out"}


def test_gauges_follow_the_pace_and_end_at_zero(told: Told) -> None:
    with counted(make_plan(), []) as made:
        made.update(Counts(), Pace())
        assert set(told.last.values()) == {None, 0}
        made.update(DONE, pace(DONE))
        assert told.last == {
            "pipeline_workers": 2,
            "pipeline_rows_per_second": 3.0,
            "pipeline_tokens_per_second": 60.0,
            "pipeline_seconds_left": 50.0,
        }
    assert {*told.last.values()} == {0.0}


def test_metrics_that_fail_are_told_once_and_fail_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no such tag")

    monkeypatch.setattr(metrics, "Counter", refuse)
    warned: list[str] = []
    with counted(make_plan(), warned) as made:
        for _ in range(3):
            made.update(DONE, pace(DONE))
            made.committed()
    assert warned == ["metrics_lost: no more metrics: ValueError: no such tag; the run goes on"]


def test_names_are_prometheus_names() -> None:
    for name in (*COUNTERS, *GAUGES):
        assert re.fullmatch("[a-z][a-z_]*[a-z]", name)
        assert not name.endswith("_total"), "Ray adds it to counters"


@pytest.fixture
def head() -> Iterator[tuple[str, int]]:
    """A Ray head in processes of its own: its address, and the port of its metrics."""
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="a node exports metrics by ray[default]")
    port, metrics_port = free_ports(2)
    address = f"127.0.0.1:{port}"
    options = [f"--port={port}", f"--metrics-export-port={metrics_port}", "--num-cpus=1", "--include-dashboard=false"]
    with ray_head(
        lambda: answers(address) and answers(f"127.0.0.1:{metrics_port}"),
        *options,
        RAY_metrics_report_interval_ms="200",
    ):
        yield address, metrics_port


def scraped(port: int) -> dict[str, float]:
    """The values of our metrics, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for each in filter(None, (re.fullmatch(r"ray_(pipeline_\w+)\{(.*)\} (\S+)", line) for line in lines)):
        labels = ",".join(label for label in each[2].split(",") if label.split("=")[0] in TAGS)
        found[f"{each[1]}{{{labels}}}"] = float(each[3])
    return found


def begun(job: Path) -> Plan:
    """The plan of a job whose first part was committed by an earlier command."""
    prepared = prepare(load_job(job))
    prepared.store.create()
    prepared.store.write_record("plan.json", prepared.plan.to_json())
    worker = Worker(prepared.spec)
    worker.start()
    worker.run(next(prepared.plan.parts()))
    return prepared.plan


def test_a_head_offers_to_prometheus_what_a_command_did_and_not_what_was_done_before(
    head: tuple[str, int], write_job: JobWriter, tmp_path: Path
) -> None:
    address, port = head
    job = write_job(cluster={"address": address, "cpus_per_worker": 1}, input={"limit": 250})
    run, seen = begun(job).fingerprint[:10], dict[str, float]()
    with subprocess.Popen([sys.executable, "-m", "pipeline", "run", str(job)], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            seen |= scraped(port)
    assert process.returncode == 0
    labels = f'{{output="{tmp_path}/out",run="{run}",task="score"}}'
    assert f"pipeline_workers{labels}" in seen
    found = scraped(port)
    assert found[f"pipeline_rows_total{labels}"] == 150
    assert found[f"pipeline_parts_total{labels}"] == 2
    assert found[f"pipeline_tokens_total{labels}"] > 150
    assert f"pipeline_errors_total{labels}" not in found
