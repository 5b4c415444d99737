"""Nodes join a running job and leave it: the workers follow, and every value is the same."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.compose import load_job
from pipeline.job import Job
from pipeline.messages import PartReport
from pipeline.plan import Part
from pipeline.run import Outcome, run_job
from pipeline.worker import Worker
from tests.chaos.cases import undisturbed
from tests.pipeline.conftest import JobWriter

SECONDS = 120.0
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""So that the cluster notices within two seconds that a node is dead."""


@pytest.fixture(scope="module")
def standing() -> Iterator[Cluster]:
    """A head without cores, which this process is connected to, and one node with a core."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK},
    )
    made.add_node(num_cpus=1)
    ray.init(made.address, logging_level="ERROR", log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def cluster(standing: Cluster) -> Iterator[Cluster]:
    """The standing cluster; nodes that a test adds are taken away after it."""
    before = set(standing.worker_nodes)
    yield standing
    for node in set(standing.worker_nodes) - before:
        standing.remove_node(node, allow_graceful=False)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)


def read(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("part-*"))])


def held_back(gate: Path) -> type[Worker]:
    """A worker that signs in `gate` with its process id and does no part before `open` is there."""

    class HeldBack(Worker):
        def run(self, part: Part) -> PartReport:
            (gate / str(self.process_id())).touch()
            until((gate / "open").exists)
            return super().run(part)

    return HeldBack


class Running:
    """A job that runs in a thread, and whose workers wait until they may go on."""

    def __init__(self, job: Job, gate: Path, pool: ThreadPoolExecutor) -> None:
        gate.mkdir()
        self.gate = gate
        self._outcome = pool.submit(run_job, job, worker_class=held_back(gate))

    def wait_for_workers(self, count: int) -> None:
        """Until so many hold a part."""
        until(lambda: len(list(self.gate.iterdir())) >= count or self._outcome.done())

    def go_on(self) -> Outcome:
        (self.gate / "open").touch()
        return self._outcome.result(SECONDS)


@pytest.fixture
def start(write_job: JobWriter, tmp_path: Path) -> Iterator[Callable[[], Running]]:
    """Starts the job with its workers held back."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda: Running(load_job(write_job(), ()), tmp_path / "gate", pool)


@pytest.fixture
def calm(write_job: JobWriter, tmp_path: Path) -> pa.Table:
    """What the job gives without any cluster."""
    undisturbed(write_job(output={"path": str(tmp_path / "calm")}))
    return read(tmp_path / "calm")


def test_a_node_that_joins_a_running_job_gets_a_worker(
    cluster: Cluster, start: Callable[[], Running], calm: pa.Table, tmp_path: Path
) -> None:
    running = start()
    running.wait_for_workers(1)
    cluster.add_node(num_cpus=1)
    running.wait_for_workers(2)
    assert running.go_on().rows == calm.num_rows
    assert read(tmp_path / "out").equals(calm)


def leave(cluster: Cluster, node: ray._private.node.Node) -> None:
    cluster.remove_node(node)


def kill_raylet(cluster: Cluster, node: ray._private.node.Node) -> None:
    node.all_processes["raylet"][0].process.kill()


@pytest.mark.parametrize(("lose", "count"), [(leave, 1), (kill_raylet, 1), (kill_raylet, 2)])
def test_nodes_that_are_lost_lose_no_row_and_change_none(
    cluster: Cluster,
    start: Callable[[], Running],
    calm: pa.Table,
    tmp_path: Path,
    lose: Callable[[Cluster, ray._private.node.Node], None],
    count: int,
) -> None:
    lost = [cluster.add_node(num_cpus=1) for _ in range(count)]
    running = start()
    running.wait_for_workers(1 + count)
    for node in lost:
        lose(cluster, node)
    assert running.go_on().rows == calm.num_rows
    assert read(tmp_path / "out").equals(calm)
