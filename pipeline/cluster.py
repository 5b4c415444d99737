"""The Ray that the workers live in: a cluster that is named, or a local one for the time of the command."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import ray

import gpt2model
import pipeline
from pipeline.cores import available_cpus
from pipeline.errors import JobError
from pipeline.job import ClusterOptions

OBJECT_STORE_BYTES = 100 << 20
"""Nothing but parts' names and counts passes through Ray, so the object store can be near Ray's smallest."""


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
        yield
    finally:
        ray.shutdown()
