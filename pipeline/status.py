"""What `pipeline status` tells, from the output folder alone: no job file, no Ray, no model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline import lease
from pipeline.committed import committed_parts
from pipeline.errors import OutputRefused
from pipeline.figures import format_duration, format_figure
from pipeline.identity import tasks_of
from pipeline.locations import locate
from pipeline.records import PROGRESS
from pipeline.store import Store

WATCH_SECONDS = 2.0
ENDED = {"finished": "finished", "failed": "stopped", "interrupted": "stopped"}


@dataclass(frozen=True, slots=True)
class Status:
    """One look at an output folder. Rows and rates are those of `updated`; None where nobody said."""

    output: str
    fingerprint: str
    task: str | None
    model: str | None
    state: str
    """running, finished, stopped (it failed, or was told to stop: see `reason`) or died (its driver is gone)."""
    reason: str | None
    parts_committed: int
    parts_planned: int | None
    """None where only reading can tell, as `rows_total`."""
    rows: int | None
    rows_total: int | None
    errors: int | None
    rows_a_second: float | None
    tokens_a_second: float | None
    seconds_left: float | None
    workers: int | None
    started: float | None
    """Unix seconds, as `updated`."""
    updated: float | None
    last_event: str | None
    lease_holder: str | None
    """Who works here, or did when it died."""


def read_status(output: str, wait: Callable[[float], object] = time.sleep) -> Status:
    """Look at the folder (a path or URI). Raises OutputRefused where it holds no run.

    Where only the renewal of a lease tells whether a driver on another host lives, that is waited for by `wait`.
    """
    store = Store(locate(output, "OUT"))
    plan = store.read_record("plan.json")
    if plan is None or "fingerprint" not in plan:
        raise OutputRefused(f"{store.folder.uri} holds no run (no _pipeline/plan.json in it): give a run's output.path")
    held, told = lease.held(store), _progress(store)
    state = (
        "running" if held is not None and lease.lives(held, store, wait) else ENDED.get(told.get("state", ""), "died")
    )
    events = told.get("events") or [(None, None)]
    return Status(
        output=store.folder.uri,
        fingerprint=plan["fingerprint"],
        task=tasks_of(plan.get("identity", {})),
        model=_model(store),
        state=state,
        reason=told.get("reason") if state == "stopped" else None,
        parts_committed=len(committed_parts(store.listing(), plan)),
        parts_planned=plan.get("parts"),
        rows=told.get("rows"),
        rows_total=plan.get("rows"),
        errors=told.get("errors"),
        rows_a_second=told.get("rows_a_second"),
        tokens_a_second=told.get("tokens_a_second"),
        seconds_left=told.get("seconds_left") if state == "running" else None,
        workers=told.get("workers") if state == "running" else 0,
        started=told.get("started"),
        updated=told.get("updated"),
        last_event=events[-1][1],
        lease_holder=None if held is None else f"process {held['pid']} on {held['host']}",
    )


def _progress(store: Store) -> dict[str, Any]:
    """What the driver wrote down last; nothing where that is torn."""
    try:
        return store.read_record(PROGRESS) or {}
    except OutputRefused:
        return {}


def _model(store: Store) -> str | None:
    """What the job calls its model, or its steps' models."""
    record = store.records.child("job.yaml")
    try:
        with record.filesystem.open_input_file(record.path) as stream:
            job = yaml.safe_load(stream.read())
        steps = [step["model"] or job["model"] for step in job.get("steps", {}).values()]
        return ", ".join(dict.fromkeys(str(model["path"]) for model in steps or [job["model"]]))
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None


def describe(status: Status) -> str:
    """The status for people to read."""
    planned = "so far" if status.parts_planned is None else f"of {status.parts_planned:,}"
    total = "so far" if status.rows_total is None else f"of {status.rows_total:,}"
    rates = f"{format_figure(status.rows_a_second)} rows/s, {format_figure(status.tokens_a_second)} tokens/s"
    lines = [
        f"state        {status.state}{_why(status)}",
        f"output       {status.output}",
        f"run          {status.fingerprint[:10]}: {status.task} by {status.model}",
        f"parts        {status.parts_committed:,} {planned} committed",
        f"rows         {format_figure(status.rows)} {total}, {format_figure(status.errors)} with an error",
        f"speed        {rates}",
    ]
    if status.state == "running":
        left = "unknown" if status.seconds_left is None else format_duration(status.seconds_left)
        lines += [f"time left    {left}", f"workers      {format_figure(status.workers)}"]
    if status.updated is not None:
        lines.append(f"as of        {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.updated))}")
    if status.last_event is not None:
        lines.append(f"last event   {status.last_event}")
    if status.lease_holder is not None:
        lines.append(f"lease        {status.lease_holder}")
    return "\n".join(lines)


def _why(status: Status) -> str:
    if status.state == "died":
        return ": its driver is gone; what was committed stays, and the same `pipeline run` goes on from there"
    return f": {status.reason}" if status.reason else ""


def as_json(status: Status) -> str:
    """One object of named figures, on one line."""
    return json.dumps(asdict(status))


def looks(output: str, seconds: float = WATCH_SECONDS) -> Iterator[Status]:
    """The status again and again, until nobody works on the folder."""
    while (status := read_status(output)).state == "running":
        yield status
        time.sleep(seconds)
    yield status


def watch(output: str, told: Callable[[Status], str], console: Console) -> None:
    """Tell the status until the run has ended: in place where `console` is a terminal, else line under line."""
    if not console.is_terminal:
        for status in looks(output):
            console.out(told(status), highlight=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        for status in looks(output):
            live.update(Text(told(status)), refresh=True)
