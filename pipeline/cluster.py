"""The Ray that the workers live in: a cluster that is named, or a local one for the time of the command."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import ray

import gpt2model
import pipeline
from pipeline import log
from pipeline.cores import available_cpus
from pipeline.errors import JobError
from pipeline.job import ClusterOptions

OBJECT_STORE_BYTES = 100 << 20
"""Nothing but parts' names and counts passes through Ray, so the object store can be near Ray's smallest."""
KNOCK_SECONDS = 2.0
GONE_SECONDS = 20.0
"""Well below the minute after which Ray ends this process by itself, if at all, with a line of C++."""


@contextlib.contextmanager
def connected(cluster: ClusterOptions, debug: bool = False) -> Iterator[None]:
    """Inside, Ray is connected. A connection that was there before is used and left as it was."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    level = "INFO" if debug else "ERROR"
    try:
        if address:
            packages = [str(Path(str(each.__file__)).parent) for each in (pipeline, gpt2model)]
            ray.init(
                address,
                runtime_env={"py_modules": packages},
                logging_level=level,
                log_to_driver=debug,
                namespace="pipeline",
            )
        else:
            ray.init(
                "local",
                num_cpus=available_cpus(),
                include_dashboard=False,
                logging_level=level,
                log_to_driver=debug,
                object_store_memory=OBJECT_STORE_BYTES,
            )
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        where = f"cluster.address {address}" if address else "a local Ray"
        raise JobError(f"{where} can't be reached: {' '.join(str(error).split())}") from error
    try:
        with _watched(f"the cluster at {address}" if address else "the local Ray of this command"):
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _watched(ray_name: str) -> Iterator[None]:
    """End this process with a word when the Ray it is connected to has been gone for GONE_SECONDS.

    Nothing gentler is left then: the driver hangs inside Ray's calls, where no exception reaches it.
    """
    ended, doors = threading.Event(), _doors()

    def watch() -> None:
        heard = time.monotonic()
        while not ended.wait(KNOCK_SECONDS):
            silent = [name for name, door in doors.items() if not _answers(door)]
            if not silent:
                heard = time.monotonic()
            elif time.monotonic() - heard > GONE_SECONDS and not ended.is_set():
                _give_up(ray_name, silent[0])

    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _doors() -> Mapping[str, tuple[str, int]]:
    """Where the two processes listen that a driver can't do without."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return {
        "head": (host.strip("[]"), int(port)),
        "node on this machine": (here["NodeManagerAddress"], here["NodeManagerPort"]),
    }


def _answers(door: tuple[str, int]) -> bool:
    try:
        socket.create_connection(door, timeout=KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def _give_up(ray_name: str, silent: str) -> None:
    log.console().show_cursor()
    log.fail(
        f"{ray_name} is gone: its {silent} has not answered for {GONE_SECONDS:.0f} s. What was committed stays: "
        "the same command goes on from there, on any Ray that runs",
        exit_code=1,
    )
    os._exit(1)
