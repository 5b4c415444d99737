"""Why a worker is gone, in words for people: Ray tells it in a paragraph."""

from __future__ import annotations

from dataclasses import dataclass

from ray.exceptions import OutOfMemoryError

WORDS = {
    "its node has died": "its node was lost",
    "SIGTERM": "its process was ended by SIGTERM",
    "connection error code 2": "its process was killed (as when memory runs out) or crashed",
    "killed by `ray.kill`": "it was killed through Ray",
}
"""What Ray's text holds -> what is said of it."""
INNOCENT = {"its node has died", "SIGTERM", "killed by `ray.kill`"}
"""What somebody did to the worker from outside."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended."""

    reason: str
    innocent: bool = False
    """Whether nothing that it was computing can have been the cause."""


def death_of(error: Exception) -> Death:
    """What an error of Ray's says of the worker's end."""
    if isinstance(error, OutOfMemoryError):
        return Death("Ray killed it, since its node was running out of memory")
    text = str(error)
    for held, words in WORDS.items():
        if held in text:
            return Death(words, innocent=held in INNOCENT)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return Death(lines[-1] if lines else type(error).__name__)
