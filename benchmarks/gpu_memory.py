"""What the engine takes of a device's memory, beside what it was asked to take for keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_generation import cache_for, requests_of, slots_of
from benchmarks.gpu_setting import GIB, Case, Row, Setting, short
from benchmarks.workloads import lognormal_prompts
from gpt2model import GPT2Config
from gpt2model.generation import Engine, GenerationConfig
from gpt2model.generation.blocks import BLOCK, bytes_per_block


def cases(setting: Setting) -> Iterator[Case]:
    """Both models, with graphs and without."""
    dtype = setting.halves[0]
    for size, config in setting.configs.items():
        for graphs in (True, False):
            name = f"{size}, {short(dtype)}, {'graphs' if graphs else 'no graphs'}"
            yield Case(name, partial(engine, setting, config, dtype, graphs))


def engine(setting: Setting, config: GPT2Config, dtype: torch.dtype, graphs: bool) -> list[Row]:
    """Memory of the weights and of the engine, and what torch still holds when the engine is gone."""
    model = setting.ours(config, dtype)
    held = setting.reserved()
    row = used(setting, model, graphs)
    after = setting.reserved()
    return [{**row, "left reserved GiB": None if held is None or after is None else after - held}]


def used(setting: Setting, model: Any, graphs: bool) -> Row:
    """Memory while the engine is there."""
    slots, weights = slots_of(setting, 128), setting.memory()
    tokens = cache_for(slots, model.config)
    made = Engine(model, GenerationConfig(eos_token_id=None), slots=slots, cache_tokens=tokens, graphs=graphs)
    holding = setting.memory()
    work = lognormal_prompts(setting.rows(384), 0, model.config)
    peak = setting.peak_memory(lambda: list(made.run(requests_of(work))))
    return {
        "weights GiB": weights,
        "cache asked for GiB": bytes_per_block(model.config, model.dtype) * (tokens // BLOCK) / GIB,
        "engine GiB": None if weights is None or holding is None else holding - weights,
        "beyond at the peak GiB": peak,
        "reserved after it GiB": setting.reserved(),
        "graphs": 0 if made._graphs is None else len(made._graphs._recorded),
    }
