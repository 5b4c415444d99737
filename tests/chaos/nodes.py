"""A Ray cluster on this machine that lives as long as the tests: a head without cores, and nodes of one core."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from tests.chaos.processes import processes

NODES = 2
STORE_BYTES = 80 << 20
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""So that the cluster notices within seconds that a node is dead."""


class Nodes:
    """The cluster; `restore` makes it whole again after a fault."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nodes", dir="/tmp"))
        self.mark = f"PIPELINE_CHAOS_NODES={self.folder.name}"
        name, _, value = self.mark.partition("=")
        self._environment = {name: value, "TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0"}
        self._cluster = self._started(Cluster)
        self._add(num_cpus=0, include_dashboard=False, _system_config=QUICK)
        self.restore()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def restore(self) -> None:
        """Two nodes, all alive."""
        for node in list(self._cluster.worker_nodes):
            if not node.live_processes() or self._raylet(node).poll() is not None:
                self._cluster.remove_node(node, allow_graceful=False)
        while len(self._cluster.worker_nodes) > NODES:
            self._cluster.remove_node(next(iter(self._cluster.worker_nodes)))
        while len(self._cluster.worker_nodes) < NODES:
            self.join()

    def join(self) -> None:
        """One node more."""
        self._add(num_cpus=1, object_store_memory=STORE_BYTES)

    def kill(self, place: float) -> bool:
        """SIGKILL the raylet of the node at `place` (0 to 1) among those that live; False where none does.

        Its other processes are to notice; those that are stopped cannot, and go with their machine.
        In the place of the last another joins, without which a run rightly waits for ever.
        """
        alive = [node for node in self._cluster.worker_nodes if self._raylet(node).poll() is None]
        if alive:
            raylet = self._raylet(alive[int(place * len(alive))])
            stopped = [each.pid for each in processes() if each.parent == raylet.pid and each.stopped]
            for pid in (raylet.pid, *stopped):
                os.kill(pid, signal.SIGKILL)
        if len(alive) == 1:
            self.join()
        return bool(alive)

    def close(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, **options: Any) -> None:
        self._started(self._cluster.add_node, **options)

    def _started(self, make: Any, **options: Any) -> Any:
        """What `make` starts gets our environment; this process keeps its own."""
        before = dict(os.environ)
        os.environ.update(self._environment)
        try:
            return make(**options)
        finally:
            os.environ.clear()
            os.environ.update(before)

    @staticmethod
    def _raylet(node: Any) -> Any:
        return node.all_processes["raylet"][0].process
