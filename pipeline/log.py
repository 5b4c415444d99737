"""What a command tells on stderr while it works: lines for people, or one JSON object a line (`--log-format json`)."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("auto", "plain", "json")
"""auto: a live line on a terminal, else plain lines; plain: lines even there; json: one object a line."""
_chosen = "auto"


def choose(log_format: str) -> None:
    """Tell everything from now on in one of FORMATS: a process has one stderr."""
    global _chosen
    assert log_format in FORMATS
    _chosen = log_format


def chosen() -> str:
    """The one of FORMATS that was chosen."""
    return _chosen


def as_json() -> bool:
    """Whether each line is to be an object."""
    return _chosen == "json"


def console() -> Console:
    """Stderr for people; a terminal is none where plain lines were asked for."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=None if _chosen == "auto" else False)


def tell(message: str, event: str = "note", level: str = "info", **figures: Any) -> None:
    """One line: the message; as JSON with the time, the level, what kind of event it is, and figures."""
    if not as_json():
        print(message, file=sys.stderr, flush=True)
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "level": level, "event": event, "message": redact(message), **figures})
    # In one call, since other threads tell things too.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def fail(message: str, exit_code: int, event: str = "failed") -> None:
    """The one paragraph that a command ends with when it fails."""
    tell(message if as_json() else f"Error: {message}", event, "error", exit_code=exit_code)
