"""What runs here, as /proc tells it: a command's processes, Ray's workers, shared memory that nobody uses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")
"""Ray's own processes, which may outlive by a minute a node that is killed, and then end."""
SHARED_MEMORY = Path("/dev/shm")
UNMAPPED_SECONDS = 5.0
"""Well above the moment between the making of such a file and its mapping."""


@dataclass(frozen=True, slots=True)
class Process:
    """One living process."""

    pid: int
    parent: int
    session: int
    stopped: bool
    title: str
    environment: bytes


def processes() -> Iterator[Process]:
    """All processes but zombies."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if fields[0] != "Z":
            yield Process(int(entry.name), int(fields[1]), int(fields[3]), fields[0] == "T", title, environment)


def of_session(leader: int) -> list[Process]:
    """The processes of a command that was started in a session of its own."""
    return [each for each in processes() if each.session == leader]


def raylets() -> set[int]:
    """Ray's node processes, whose children the workers are."""
    return {each.pid for each in processes() if "/raylet/raylet " in each.title}


def ray_workers(mark: str) -> list[Process]:
    """The actors of our class whose environment, which they have from their node, holds `mark`."""
    return [each for each in processes() if each.title.startswith("ray::Worker") and mark.encode() in each.environment]


def unused_shared_memory(before: set[str]) -> list[str]:
    """Files in /dev/shm that were not there before, that no process has mapped, and that stay."""
    end = time.monotonic() + UNMAPPED_SECONDS
    while (unused := _unused(before)) and time.monotonic() < end:
        time.sleep(0.1)
    return unused


def _unused(before: set[str]) -> list[str]:
    new = {file.name for file in SHARED_MEMORY.iterdir()} - before
    if not new:
        return []
    mapped = " ".join(_maps())
    return sorted(name for name in new if f"{SHARED_MEMORY}/{name}" not in mapped)


def _maps() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/maps"):
        try:
            yield file.read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
