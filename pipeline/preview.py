"""What `pipeline plan` tells of a prepared job."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import torch
import yaml

from gpt2model import onednn
from pipeline.figures import format_figure
from pipeline.growth import NAMED
from pipeline.job import Step
from pipeline.memory import cache_size
from pipeline.plan import Plan
from pipeline.preflight import Prepared
from pipeline.run import resolved_job
from pipeline.tasks import by_engine
from pipeline.tasks.generate_options import GenerateOptions

SAMPLED_ROWS = 200


def describe(prepared: Prepared) -> str:
    """Parts, rows, estimated tokens, models, output schema and the resolved job, as text."""
    plan, spec = prepared.plan, prepared.spec
    parts = sum(1 for _ in plan.parts())
    streamed = any(split.rows is None for split in plan.splits)
    opened = spec.store.opened(plan)
    standing = [counted.rows for _, counted in spec.store.committed(plan)] if opened else []
    committed = len(standing)
    lines = [
        f"fingerprint       {plan.fingerprint}",
        f"input             {len(plan.splits):,} splits, {_count(plan.rows)} rows",
        f"parts             {f'{parts:,}' if not streamed else f'at least {parts:,}'}, "
        f"up to {plan.rows_per_part:,} rows each; {committed:,} committed",
        *_round(prepared, parts - committed, sum(standing)),
        *_steps(prepared),
        _memory(prepared),
        *_caches(prepared),
        *_heads(prepared),
        f"output            {spec.store.folder.uri}",
        "",
        "output columns:",
        *(f"  {field.name}: {field.type}" for field in plan.schema),
        "",
        "job:",
        *(f"  {line}" for line in yaml.safe_dump(resolved_job(prepared.job), sort_keys=False).splitlines()),
    ]
    return "\n".join(lines)


def _steps(prepared: Prepared) -> Iterator[str]:
    """Each step's name where there are several, its tokens and its model."""
    rows = _first_rows(prepared)
    for place, each in enumerate(prepared.steps):
        if each.step.name:
            yield f"step {each.step.name:<12} {each.step.task}"
        yield f"tokens            {_tokens(prepared, place, rows)}"
        checkpoint = each.checkpoint
        held = each.dtype if checkpoint.quantization is None else f"{checkpoint.quantization.method} and {each.dtype}"
        parameters = format_figure(checkpoint.num_parameters)
        yield f"model             {each.architecture}, {parameters} parameters, {held} on {prepared.spec.device}"


def _memory(prepared: Prepared) -> str:
    weights = prepared.weights
    several = "".join(f"; one backbone serves {' and '.join(names)}" for names in weights.shared)
    held = f"{_megabytes(weights.bytes_in_memory)} of weights a worker"
    return f"memory            {held}; {_megabytes(weights.bytes_full)} in float32{several}"


def _caches(prepared: Prepared) -> Iterator[str]:
    """Of tasks that continue rows, what a worker keeps beside the weights."""
    spec, continuing = prepared.spec, [each for each in prepared.steps if by_engine(each.task)]
    for each in continuing:
        dtype, config = getattr(torch, each.dtype), each.checkpoint.config
        size = cache_size(prepared.job, config, dtype, spec.device, spec.threads, len(continuing))
        positions, rows = size.engines * size.tokens, size.engines * size.sequences
        about = f"keys and values of {positions:,} positions, for {rows} rows at once"
        yield f"cache             {_megabytes(size.bytes)} a worker at most: {about}"


def _heads(prepared: Prepared) -> Iterator[str]:
    """Of tasks that continue rows, the language-model heads that a worker keeps once more where oneDNN computes."""
    spec, copies = prepared.spec, dict[object, int]()
    for each, told in zip(prepared.steps, spec.steps, strict=True):
        state = torch.empty(1, each.checkpoint.config.n_embd, dtype=getattr(torch, each.dtype))
        if by_engine(each.task) and spec.device == "cpu" and onednn.takes(state):
            copies[told.weights, told.architecture] = each.checkpoint.config.vocab_size * state.nbytes
    if copies:
        size = _megabytes(sum(copies.values()))
        yield f"head              {size} a worker: the language model's once more, laid out for products with few rows"


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


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _count(rows: int | None) -> str:
    return "unknown (streamed)" if rows is None else f"{rows:,}"


def _planned(prepared: Prepared) -> Plan:
    """What is to be done: of an incremental run the splits that are new."""
    return prepared.plan if prepared.growth is None else prepared.growth.since(prepared.plan)


def _first_rows(prepared: Prepared) -> pa.Table | None:
    """What the tasks read of the first rows that are new; None where there are none."""
    spec, part = prepared.spec, next(iter(_planned(prepared).parts()), None)
    if part is None:
        return None
    columns = list(dict.fromkeys(spec.task_columns))
    batches = list(islice(spec.source.read(part.split, 0, min(part.stop, SAMPLED_ROWS), columns), SAMPLED_ROWS))
    table = pa.Table.from_batches(batches) if batches else None
    return table if table is not None and table.num_rows else None


def _tokens(prepared: Prepared, place: int, rows: pa.Table | None) -> str:
    """Tokens a row in the first rows, times the rows."""
    if rows is None:
        return "0"
    plan, task, names = _planned(prepared), prepared.steps[place].task, prepared.plan.task_columns[place]
    inputs = pa.table([rows.column(column) for column in names.values()], names=list(names))
    mean = task.num_tokens(task.prepare(inputs)) / rows.num_rows
    more = _new_tokens(prepared.steps[place].step)
    if plan.rows is None:
        return f"about {mean:,.0f} a row{more}"
    return f"about {mean * plan.rows:,.0f} ({mean:,.0f} a row in the first {rows.num_rows}){more}"


def _new_tokens(step: Step) -> str:
    """Of generate, what is written besides what is read."""
    options = step.options
    if not isinstance(options, GenerateOptions):
        return ""
    several = f"{options.num_return_sequences} times " if options.num_return_sequences > 1 else ""
    limit = "each row's own max_new_tokens" if "max_new_tokens" in step.columns else options.max_new_tokens
    return f" read, {several}{limit} a row at most to write"
