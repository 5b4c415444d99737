"""What `pipeline plan` tells of a prepared job."""

from __future__ import annotations

from itertools import islice

import pyarrow as pa
import torch
import yaml

from pipeline.figures import format_figure
from pipeline.growth import NAMED
from pipeline.memory import cache_size
from pipeline.preflight import Prepared
from pipeline.run import resolved_job

SAMPLED_ROWS = 200


def describe(prepared: Prepared) -> str:
    """Parts, rows, estimated tokens, model, output schema and the resolved job, as text."""
    plan, spec = prepared.plan, prepared.spec
    parts = sum(1 for _ in plan.parts())
    streamed = any(split.rows is None for split in plan.splits)
    opened = spec.store.opened(plan)
    standing = [counted.rows for _, counted in spec.store.committed(plan)] if opened else []
    committed = len(standing)
    checkpoint = prepared.checkpoint
    parameters = format_figure(checkpoint.num_parameters)
    held = spec.dtype if checkpoint.quantization is None else f"{checkpoint.quantization.method} and {spec.dtype}"
    lines = [
        f"fingerprint       {plan.fingerprint}",
        f"input             {len(plan.splits):,} splits, {_count(plan.rows)} rows",
        f"parts             {f'{parts:,}' if not streamed else f'at least {parts:,}'}, "
        f"up to {plan.rows_per_part:,} rows each; {committed:,} committed",
        *_round(prepared, parts - committed, sum(standing)),
        f"tokens            {_tokens(prepared)}",
        f"model             {spec.architecture}, {parameters} parameters, {held} on {spec.device}",
        f"memory            {_megabytes(checkpoint.bytes_in_memory)} of weights a worker; "
        f"{_megabytes(checkpoint.bytes_full)} in float32",
        *_cache(prepared),
        f"output            {spec.store.folder.uri}",
        "",
        "output columns:",
        *(f"  {field.name}: {field.type}" for field in plan.schema),
        "",
        "job:",
        *(f"  {line}" for line in yaml.safe_dump(resolved_job(prepared.job), sort_keys=False).splitlines()),
    ]
    return "\n".join(lines)


def _round(prepared: Prepared, parts: int, done: int) -> list[str]:
    """Of an incremental run, what the next round does."""
    growth = prepared.growth
    if growth is None:
        return []
    new = growth.since(prepared.plan).splits
    return [
        f"round             {growth.told(prepared.plan, done)}; {parts:,} parts to do",
        *(f"                  new: {split.name}, {split.rows:,} rows" for split in new[:NAMED]),
        *([f"                  and {len(new) - NAMED:,} more"] if len(new) > NAMED else []),
        *(f"                  {note}" for note in growth.notes()),
    ]


def _cache(prepared: Prepared) -> list[str]:
    """Of a task that continues rows, what a worker keeps beside the weights."""
    if prepared.job.task != "generate" or prepared.job.generate.num_beams > 1:
        return []
    spec = prepared.spec
    dtype = getattr(torch, spec.dtype)
    size = cache_size(prepared.job, prepared.checkpoint.config, dtype, spec.device, spec.threads)
    positions, rows = size.engines * size.tokens, size.engines * size.sequences
    about = f"keys and values of {positions:,} positions, for {rows} rows at once"
    return [f"cache             {_megabytes(size.bytes)} a worker at most: {about}"]


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _count(rows: int | None) -> str:
    return "unknown (streamed)" if rows is None else f"{rows:,}"


def _tokens(prepared: Prepared) -> str:
    """Tokens a row in the first rows, times the rows."""
    plan, spec = prepared.plan, prepared.spec
    if prepared.growth is not None:
        plan = prepared.growth.since(plan)
    part = next(iter(plan.parts()), None)
    if part is None:
        return "0"
    names: dict[str, str] = plan.identity["input"]["columns"]
    stop = min(part.stop, SAMPLED_ROWS)
    batches = list(islice(spec.source.read(part.split, 0, stop, list(dict.fromkeys(names.values()))), SAMPLED_ROWS))
    table = pa.Table.from_batches(batches) if batches else None
    if table is None or table.num_rows == 0:
        return "0"
    inputs = pa.table([table.column(column) for column in names.values()], names=list(names))
    task_rows = prepared.task.prepare(inputs)
    mean = prepared.task.num_tokens(task_rows) / table.num_rows
    more = _new_tokens(prepared)
    if plan.rows is None:
        return f"about {mean:,.0f} a row{more}"
    return f"about {mean * plan.rows:,.0f} ({mean:,.0f} a row in the first {table.num_rows}){more}"


def _new_tokens(prepared: Prepared) -> str:
    """Of generate, what is written besides what is read."""
    options = prepared.job.generate
    if prepared.job.task != "generate":
        return ""
    several = f"{options.num_return_sequences} times " if options.num_return_sequences > 1 else ""
    limit = (
        "each row's own max_new_tokens" if "max_new_tokens" in prepared.job.input.columns else options.max_new_tokens
    )
    return f" read, {several}{limit} a row at most to write"
