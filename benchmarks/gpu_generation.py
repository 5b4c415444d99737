"""Generation on a device: whether greedy tokens are transformers', what steps cost, and tokens a second against it.

Prompts of lognormal length, each to a limit of its own, as in benchmarks/generate.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_peers import continuous, generated, left_padded
from benchmarks.gpu_setting import Case, Row, Setting, quickest, short
from benchmarks.workloads import Generation, lognormal_prompts
from gpt2model import GPT2Config
from gpt2model.generation import Engine, GenerationConfig, Request
from gpt2model.generation.blocks import BLOCK, blocks_for

ROWS = 1024
SLOTS = 256
PEER_ROWS = {"gpt2": 1024, "gpt2-xl": 256}
PEER_BATCHES = {"gpt2": (64, 128, 256), "gpt2-xl": (32, 64)}


def cases(setting: Setting) -> Iterator[Case]:
    """Parity, then steps, then speed: ours first, so that it is there where the budget ends among the others."""
    for dtype in setting.dtypes:
        yield Case(f"parity, {short(dtype)}", partial(parity, setting, dtype))
    dtype = setting.halves[0]
    for size, config in setting.configs.items():
        yield Case(f"steps of {size}, {short(dtype)}", partial(steps, setting, config, dtype))
        yield Case(f"speed of {size}, {short(dtype)}", partial(speed, setting, config, dtype))
    for size, config in setting.configs.items():
        yield Case(f"peers of {size}, {short(dtype)}", partial(peer_speed, setting, size, config, dtype))
        yield Case(f"continuous peer of {size}, {short(dtype)}", partial(continuous_speed, setting, config, dtype))
    for dtype in setting.halves[1:]:
        for size, config in setting.configs.items():
            yield Case(f"speed of {size}, {short(dtype)}", partial(speed, setting, config, dtype))


def slots_of(setting: Setting, count: int = SLOTS) -> int:
    return count if setting.size == "gpt2" else 8


def cache_for(slots: int, config: GPT2Config) -> int:
    """Positions for half the context of every slot, about twice what the prompts come to."""
    return BLOCK * (slots * blocks_for(config.n_positions) // 2 + blocks_for(config.n_positions) + 1)


def requests_of(work: Generation) -> list[Request]:
    """The longest limits first, so that all end at about the same time."""
    order = sorted(range(len(work.prompts)), key=lambda row: -work.limits[row])
    return [Request(work.prompts[row], work.limits[row], row, row=row) for row in order]


@dataclass
class Recordings:
    """How many graphs an engine recorded, and the seconds that it took."""

    graphs: int = 0
    seconds: float = 0.0
    sizes: list[str] = field(default_factory=list)


def engine_of(setting: Setting, model: Any, slots: int, graphs: bool) -> tuple[Engine, Recordings]:
    """An engine, and what it tells of its recordings."""
    tokens, config = cache_for(slots, model.config), GenerationConfig(eos_token_id=None)
    engine = Engine(model, config, slots=slots, cache_tokens=tokens, graphs=graphs)
    told = Recordings()
    held = engine._graphs
    if held is not None:
        record = held._recording

        def timed(sizes: Any, numbers: Any) -> Any:
            setting.wait()
            began = time.perf_counter()
            recorded = record(sizes, numbers)
            setting.wait()
            told.graphs += recorded is not None
            told.seconds += time.perf_counter() - began
            told.sizes.append(f"{sizes.rows}/{sizes.blocks}/{sizes.depth}")
            return recorded

        held._recording = timed  # type: ignore[method-assign]
    return engine, told


def parity(setting: Setting, dtype: torch.dtype) -> list[Row]:
    """Greedy tokens of 48 prompts, with graphs and without, against transformers' generate in one padded batch."""
    config = setting.small
    work = lognormal_prompts(setting.rows(48), 0, config)
    limit = 64 if setting.size == "gpt2" else 12
    work = Generation(work.name, [each[:200] for each in work.prompts], [limit] * len(work.prompts), 0)
    model = setting.ours(config, dtype)
    theirs = generated(setting.theirs(model), *left_padded(work.prompts, setting.device), limit)
    found = {}
    for graphs in (True, False):
        engine, _ = engine_of(setting, model, min(slots_of(setting), 32), graphs)
        answers = {answer.request.ticket: answer.token_ids for answer in engine.run(requests_of(work))}
        found["graphs" if graphs else "no graphs"] = np.stack([answers[row] for row in range(len(answers))])
    alike = {"graphs and no graphs": (found["graphs"], found["no graphs"])}
    alike |= {f"{name} and transformers": (each, theirs) for name, each in found.items()}
    return [{"of": name, **agreement(*pair)} for name, pair in alike.items()]


def agreement(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Row:
    """Shares of equal rows, and of the tokens before rows [N, L] first differ."""
    differs = one != other
    before = np.where(differs.any(axis=1), differs.argmax(axis=1), one.shape[1])
    return {"equal rows": float((~differs.any(axis=1)).mean()), "tokens before": float(before.mean() / one.shape[1])}


def steps(setting: Setting, config: GPT2Config, dtype: torch.dtype) -> list[Row]:
    """Milliseconds of a step in which all slots take a token and none begins or ends, and of its graph alone."""
    model = setting.ours(config, dtype)
    copy_rate, prompt = setting.copy_rate(), min(160, config.n_positions // 4)
    rows: list[Row] = []
    for slots in (16, 64, slots_of(setting)) if setting.size == "gpt2" else (slots_of(setting),):
        random = np.random.default_rng(0)
        prompts = [random.integers(1, config.vocab_size, prompt) for _ in range(slots)]
        for graphs in (True, False):
            engine, told = engine_of(setting, model, slots, graphs)
            engine.submit(Request(each, 60, row, row=row) for row, each in enumerate(prompts))
            while len(engine._schedule.waiting) or not engine.counts.steps:
                engine.step()
            for _ in range(8):
                engine.step()
            before = (engine.counts.filled_steps, told.graphs)
            took = [setting.seconds(engine.step) for _ in range(20)]
            read = (engine.counts.filled_steps - before[0]) / 20 * per_position(config, dtype) + weight_bytes(model)
            row: Row = {"slots": slots, "graphs": graphs, "ms a step": 1e3 * float(np.median(took))}
            row["share of copy rate"] = read / float(np.median(took)) / copy_rate
            row["ms of the graph alone"] = replay_ms(setting, engine)
            rows.append({**row, "recorded meanwhile": told.graphs - before[1], "ms at most": 1e3 * max(took)})
    return rows


def replay_ms(setting: Setting, engine: Engine) -> float | None:
    """Milliseconds of the newest graph; it does its last step once more."""
    recorded = list(engine._graphs._recorded.values()) if engine._graphs is not None else []
    if not recorded:
        return None
    with torch.inference_mode():
        return 1e3 / 10 * setting.median_seconds(partial(again, recorded[-1].replay, 10))


def again(work: Callable[[], object], times: int) -> None:
    """Do work so many times."""
    for _ in range(times):
        work()


def per_position(config: GPT2Config, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one position."""
    return 2 * config.n_layer * config.n_embd * dtype.itemsize


def weight_bytes(model: Any) -> int:
    """Bytes of the weights that a step reads: all but the position embedding."""
    return sum(int(each.nbytes) for each in model.parameters()) - int(model.transformer.wpe.weight.nbytes)


def speed(setting: Setting, config: GPT2Config, dtype: torch.dtype) -> list[Row]:
    """The whole workload by our engine, with graphs and without."""
    model, copy_rate = setting.ours(config, dtype), setting.copy_rate()
    work = lognormal_prompts(setting.rows(ROWS), 0, config)
    warm_up, _ = engine_of(setting, model, 16, graphs=False)
    list(warm_up.run(requests_of(work.first(16))))
    del warm_up
    return [ours(setting, model, work, graphs, copy_rate) for graphs in (True, False)]


def ours(setting: Setting, model: Any, work: Generation, graphs: bool, copy_rate: float) -> Row:
    """Our engine's figures; the share of the copy rate counts weights, keys and values, without reading prompts."""
    slots = slots_of(setting)
    engine, told = engine_of(setting, model, slots, graphs)
    took = setting.seconds(lambda: list(engine.run(requests_of(work))))
    counts = engine.counts
    assert counts.new_tokens == work.new_tokens
    read = counts.steps * weight_bytes(model) + counts.filled_steps * per_position(model.config, model.dtype)
    return {
        "engine": f"ours, {slots} slots, {'graphs' if graphs else 'no graphs'}",
        "new tokens/s": work.new_tokens / took,
        "s": took,
        "prompt tokens": counts.prompt_tokens,
        "steps": counts.steps,
        "replayed": counts.replayed_steps / counts.steps,
        "graphs": told.graphs,
        "s recording": told.seconds,
        "tokens/s without recording": work.new_tokens / (took - told.seconds),
        "share of copy rate": read / took / copy_rate,
        "slots in use": counts.busy_rows / max(1, counts.busy_steps) / slots,
    }


def peer_speed(setting: Setting, size: str, config: GPT2Config, dtype: torch.dtype) -> list[Row]:
    """transformers' generate, batch by batch sorted by limit, at its best batch size."""
    work = every(lognormal_prompts(setting.rows(ROWS), 0, config), setting.rows(PEER_ROWS.get(size, 256)))
    peer = setting.theirs(setting.ours(config, dtype))
    generated(peer, *left_padded(work.prompts[:2], setting.device), 4)

    def run(batch: int) -> None:
        for prompts, limit in work.batches(batch, "limit"):
            generated(peer, *left_padded(prompts, setting.device), limit)

    batches: Sequence[int] = PEER_BATCHES.get(size, (4, 8))
    best, took = quickest(batches, lambda batch: setting.seconds(partial(run, batch)))
    rates = {batch: round(work.new_tokens / each, 1) for batch, each in took.items()}
    row: Row = {"engine": f"transformers, batches of {best}", "new tokens/s": work.new_tokens / took[best]}
    return [{**row, "s": took[best], "rows": len(work.prompts), "by batch": rates}]


def every(work: Generation, rows: int) -> Generation:
    """So many rows of a workload, from all over it."""
    places = np.linspace(0, len(work.prompts) - 1, rows).astype(int)
    return Generation(work.name, [work.prompts[row] for row in places], [work.limits[row] for row in places], 0)


def continuous_speed(setting: Setting, config: GPT2Config, dtype: torch.dtype) -> list[Row]:
    """transformers' own continuous batching over the whole workload."""
    work = lognormal_prompts(setting.rows(ROWS), 0, config)
    peer = setting.theirs(setting.ours(config, dtype))
    took, ready, tokens = continuous(peer, work, seconds=25.0)
    row: Row = {"engine": "transformers, continuous batching", "new tokens/s": tokens / took, "s": took}
    return [{**row, "s before the first request": ready, "answered": tokens / work.new_tokens}]
