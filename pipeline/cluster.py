"""The Ray that the workers live in: a cluster that is named, or a local one for the time of the command."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import ray
import ray._private.worker

import gpt2model
import pipeline
from pipeline import log
from pipeline.cores import available_cpus
from pipeline.errors import JobError, PipelineError
from pipeline.job import ClusterOptions

OBJECT_STORE_BYTES = 100 << 20
"""Nothing but parts' names and counts passes through Ray, so the object store can be near Ray's smallest."""
START_ATTEMPTS = 3
TOO_SLOW = "timed out during startup"
"""What Ray says when its processes take longer to start than it waits: a matter of the machine's load."""
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
    # The driver tells of deaths in words of its own. Ray's paragraphs on them do not heed log_to_driver, and its switch
    # for them (RAY_DEDUP_LOGS_SKIP_REGEX) is read when Ray is imported, in --debug as well.
    ray._private.worker._worker_logs_enabled = debug
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    level = "INFO" if debug else "ERROR"
    try:
        if address:
            ray.init(
                address,
                runtime_env={} if _brought_modules() else {"py_modules": own_packages()},
                logging_level=level,
                log_to_driver=debug,
                namespace="pipeline",
            )
        else:
            _start_local(level, debug)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        where = f"cluster.address {address}" if address else "a local Ray"
        raise JobError(f"{where} can't be reached: {' '.join(str(error).split())}") from error
    try:
        with _watched(f"the cluster at {address}" if address else "the local Ray of this command"):
            yield
    finally:
        ray.shutdown()


def _start_local(level: str, debug: bool) -> None:
    """Start a Ray on this machine. Raises PipelineError where it does not come up, time and again."""
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                "local",
                num_cpus=available_cpus(),
                include_dashboard=False,
                logging_level=level,
                log_to_driver=debug,
                object_store_memory=OBJECT_STORE_BYTES,
            )
        except Exception as error:  # Ray raises no class of its own where its processes were too slow
            if TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise PipelineError(
                    f"a local Ray did not start within Ray's own limit, {attempt} times: this machine is overloaded. "
                    "Try again when it has less to do; the same command goes on from there"
                ) from error
        else:
            return


def own_packages() -> list[str]:
    """The folders of the packages that workers import, as Ray's `py_modules` take them."""
    return [str(Path(str(each.__file__)).parent) for each in (pipeline, gpt2model)]


def _brought_modules() -> bool:
    """Whether Ray's job server started this process with `py_modules`: Ray refuses to be given them twice."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return bool((config.get("runtime_env") or {}).get("py_modules"))


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
