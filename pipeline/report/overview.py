"""What the report says of the run as a whole: what ran, on what, how long, how fast."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml

from pipeline.figures import format_duration, format_figure
from pipeline.report.gather import Findings
from pipeline.report.steps import INPUTS
from pipeline.report.values import cut

Pair = tuple[str, str]
MOST_RATES, FEWEST_FOR_RATES = 60, 40
MOST_FIGURES = 60
LONGEST_JOB = 12_000
LONGEST = 200


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the figures at the top."""

    name: str
    value: str
    note: str = ""
    bad: bool = False


def title(findings: Findings) -> str:
    """What the page is called."""
    names = [step.step.name for step in findings.steps] or [findings.folder.status.task or "run"]
    return cut(" + ".join(names), 80)


def notices(findings: Findings) -> list[str]:
    """What a reader must know before the figures."""
    status, told = findings.folder.status, []
    if status.state == "running":
        told.append("The run goes on: this is what was committed when the report was written.")
    if status.state == "stopped":
        told.append(f"The run is not finished: {status.reason or 'it was stopped'}".removesuffix(".") + ".")
    if status.state == "died":
        told.append("The run is not finished: its driver is gone. The same pipeline run goes on from here.")
    if not findings.totals.parts:
        told.append("No part is committed yet, so there are no rows to tell of.")
    if findings.left_out:
        names = ", ".join(step.name for step in findings.left_out)
        told.append(cut(f"Steps that are not shown, since there are too many: {names}", 400))
    return told


def tiles(findings: Findings) -> list[Tile]:
    """The figures at the top."""
    totals, status = findings.totals, findings.folder.status
    tokens = sum(value for name, value in totals.figures.items() if name.rpartition(".")[2] == "tokens")
    rate = findings.folder.progress.get("tokens_a_second")
    return [
        Tile("rows", format_figure(totals.rows), _of(status.rows_total)),
        Tile(
            "rows with an error", format_figure(totals.errors), percent(totals.errors, totals.rows), totals.errors > 0
        ),
        Tile("parts", format_figure(len(totals.parts)), _of(status.parts_planned)),
        *([Tile("tokens", _short(tokens), f"{format_figure(round(rate))} a second" if rate else "")] if tokens else []),
        *_time_tile(findings),
        Tile("output", _size(totals.bytes), "Parquet"),
    ]


def _of(planned: int | None) -> str:
    return "" if planned is None else f"of {planned:,} planned"


def percent(part: int, whole: int) -> str:
    """A share as people read it."""
    if not part or not whole:
        return "none" if whole else ""
    share = 100 * part / whole
    return "under 0.01 %" if share < 0.01 else f"{share:.3g} %"


def _short(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return format_figure(round(count))


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _time_tile(findings: Findings) -> list[Tile]:
    began, ended = span(findings)
    return [Tile("time", format_duration(ended - began), "from start to last part")] if ended > began else []


def span(findings: Findings) -> tuple[float, float]:
    """When the run began and when its last part came, in Unix seconds; zeros where nothing tells."""
    times = [part.modified for part in findings.totals.parts if part.modified]
    if not times:
        return 0.0, 0.0
    started = findings.folder.progress.get("started")
    # What stands in progress.json is of the last command: of a run that was resumed it began after the first part.
    return min([*times, *([float(started)] if isinstance(started, int | float) else [])]), max(times)


def progress(findings: Findings) -> list[tuple[float, int]]:
    """Seconds since the start, and the rows that were done then: a point for each part; nothing of fewer than three."""
    began, ended = span(findings)
    parts = sorted((part.modified, part.rows) for part in findings.totals.parts if part.modified)
    if len(parts) < 3 or ended - parts[0][0] < 0.01:
        return []
    points, done = [(0.0, 0)], 0
    for modified, rows in parts:
        done += rows
        points.append((modified - began, done))
    return points


def rates(points: Sequence[tuple[float, int]]) -> list[tuple[float, float, float]]:
    """Seconds from, seconds to, and rows a second between; nothing where there are too few parts for that."""
    if len(points) < FEWEST_FOR_RATES:
        return []
    count = min(MOST_RATES, len(points) // 4)
    edges = np.linspace(0.0, points[-1][0], count + 1)
    times, done = np.array(points).T
    rows = np.diff(np.interp(edges, times, done))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), (rows / np.diff(edges)).tolist(), strict=True))


def facts(findings: Findings) -> list[Pair]:
    """What ran, and on what."""
    folder, totals = findings.folder, findings.totals
    began, ended = span(findings)
    model = folder.plan.get("identity", {}).get("model")
    quantization = model.get("quantization") if isinstance(model, Mapping) else None
    listed: list[tuple[str, Any]] = [
        ("task", ", ".join(dict.fromkeys(step.step.task for step in findings.steps)) or folder.status.task),
        ("model", _counted(totals.facts.get("model", {})) or folder.status.model),
        ("revision", _counted(totals.facts.get("revision", {}))),
        ("dtype", _counted(totals.facts.get("dtype", {}))),
        ("quantization", json.dumps(quantization) if isinstance(quantization, dict) else quantization),
        ("device", _counted(totals.facts.get("device", {}))),
        ("input", _input(folder.plan.get("splits") or [])),
        ("output", folder.status.output),
        ("first start", _moment(began)),
        ("last part", _moment(ended)),
        ("state", folder.status.state),
        ("fingerprint", folder.status.fingerprint[:10]),
        ("gpt2-pipeline", _counted(totals.facts.get("version", {}))),
    ]
    return [(name, cut(str(value), LONGEST)) for name, value in listed if value]


def _counted(values: Mapping[str, int]) -> str:
    if len(values) < 2:
        return "".join(values)
    return ", ".join(f"{value} ({count:,} parts)" for value, count in values.items())


def _input(splits: list[Mapping[str, Any]]) -> str:
    names = [cut(str(split.get("name")), 90) for split in splits[:2]]
    more = f" and {len(splits) - 2:,} more" if len(splits) > 2 else ""
    return ", ".join(names) + more


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else ""


def now() -> str:
    """When the report is written."""
    return _moment(time.time())


def figures(findings: Findings) -> list[Pair]:
    """What the run said at its end, without what stands elsewhere on the page."""
    told = {
        name: value
        for name, value in findings.folder.summary.items()
        if name not in ELSEWHERE
        and not name.rpartition(": ")[2].startswith(COUNTED)  # behind the name of a step
        and isinstance(value, int | float | str)
    }
    return [(cut(name, 80), cut(format_figure(value), LONGEST)) for name, value in _first(told.items())]


ELSEWHERE = {"rows", "rows with an error", "output"}
COUNTED = ("rows labelled ", "entities ")


def _first(items: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [item for _, item in zip(range(MOST_FIGURES), items, strict=False)]


def job_text(findings: Findings) -> str:
    """The job as it was resolved, without the options of tasks that did not run."""
    job = findings.folder.job
    if not job:
        return cut(findings.folder.job_text, LONGEST_JOB)
    ran = {step.step.task for step in findings.steps} or set(INPUTS)
    held = {key: value for key, value in job.items() if key not in INPUTS or key in ran}
    return cut(yaml.safe_dump(held, sort_keys=False, allow_unicode=True), LONGEST_JOB)
