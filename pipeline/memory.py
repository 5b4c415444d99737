"""What memory a worker has, and how large its cache may be where it continues rows."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpt2model.generation.blocks import BLOCK, blocks_for, bytes_per_block
from pipeline.cores import available_cpus

if TYPE_CHECKING:
    from gpt2model import GPT2Config
    from pipeline.job import Job

SEQUENCES_AT_ONCE = {"cpu": 64, "cuda": 256}
CPU_SHARE = 0.25
CUDA_SHARE = 0.9
MEMINFO = Path("/proc/meminfo")
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What each engine of a worker has: keys and values of `tokens` positions, for `sequences` at once."""

    engines: int
    sequences: int
    tokens: int
    bytes: int
    """Of all engines together."""


def cache_size(
    job: Job, config: GPT2Config, dtype: torch.dtype, device: str, threads: int, among: int = 1
) -> CacheSize:
    """What the job asks for; where it says auto, what its sequences can need at most, within the device's memory.

    On a CPU there is an engine for each of the `threads`, and a worker's share of the free memory is its share of the
    cores. One sequence of the model's whole context always has room. `among` steps share the memory.
    """
    cluster, engines = job.cluster, threads if device == "cpu" else 1
    sequences = SEQUENCES_AT_ONCE[device]
    if cluster.sequences_at_once != "auto":
        sequences = -(-cluster.sequences_at_once // engines)
    least, block = 1 + blocks_for(config.n_positions), bytes_per_block(config, dtype)
    blocks = sequences * blocks_for(config.n_positions) + 1
    if cluster.cache_tokens != "auto":
        blocks = blocks_for(-(-cluster.cache_tokens // engines))
    elif (free := _free_on_cuda(job) if device == "cuda" else _free_on_cpu(threads)) is not None:
        blocks = min(blocks, int(free // among // block // engines))
    blocks = max(blocks, least)
    return CacheSize(engines, sequences, blocks * BLOCK, engines * blocks * block)


def memory_in_all(device: str, gpus: float) -> float | None:
    """Bytes that a worker with so much of a GPU can have at all, used by others or not; None where nobody tells."""
    if device == "cuda":
        if not torch.cuda.is_available():
            return None
        return float(torch.cuda.get_device_properties(0).total_memory) * min(1.0, gpus)
    found = math.inf
    if MEMINFO.is_file():
        found = int(_meminfo()["MemTotal"].split()[0]) * 1024.0
    with contextlib.suppress(OSError, ValueError):  # no such control group, or "max": no limit
        found = min(found, int(LIMIT.read_text()))
    return found if found < math.inf else None


def _meminfo() -> dict[str, str]:
    return dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())


def _free_on_cuda(job: Job) -> float | None:
    """None where this machine, which plans for another, has no such device."""
    if not torch.cuda.is_available():
        return None
    gpus = job.cluster.gpus_per_worker
    free, _ = torch.cuda.mem_get_info()
    return CUDA_SHARE * free * min(1.0, 1.0 if gpus is None else gpus)


def _free_on_cpu(threads: int) -> float | None:
    """The share of what is free in this machine, or in the container that it is; None where it does not say."""
    free = math.inf
    if MEMINFO.is_file():
        free = int(_meminfo()["MemAvailable"].split()[0]) * 1024.0
    with contextlib.suppress(OSError, ValueError):  # no such control group, or "max": no limit
        free = min(free, int(LIMIT.read_text()) - int(USED.read_text()))
    return CPU_SHARE * free * min(1.0, threads / available_cpus()) if free < math.inf else None
