"""How many cores this process may use: the affinity, and a container's quota."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cpus() -> int:
    """Whole cores, at least one."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        cores = min(cores, math.floor(int(quota) / int(period)))
    except (OSError, ValueError):
        return cores  # no such control group, or "max": no quota
    return max(1, cores)
