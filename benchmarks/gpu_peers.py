"""How transformers continues many prompts on a device: its generate over padded batches, its continuous batching."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from benchmarks.gpu_setting import padded
from benchmarks.workloads import Generation, Ids


def left_padded(prompts: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as generate wants them."""
    return padded(prompts, device, left=True)


def generated(model: Any, ids: Tensor, mask: Tensor, limit: int) -> np.ndarray[Any, Any]:
    """Exactly `limit` greedy tokens of each row, [B, limit]."""
    model.generation_config.eos_token_id = None
    found = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=0)
    assert found.shape == (len(ids), ids.shape[1] + limit)
    new: np.ndarray[Any, Any] = found[:, ids.shape[1] :].cpu().numpy()
    return new


@torch.no_grad()
def continuous(model: Any, work: Generation, seconds: float) -> tuple[float, float, int]:
    """Seconds from the first request to the last answer, seconds before it, and new tokens, by transformers' manager.

    The manager behind generate_batch, which itself takes one limit for all. Stops waiting after so many seconds. Raises
    RuntimeError where nothing was answered.
    """
    from transformers.generation.continuous_batching.utils import WorkloadHints

    options = transformers.GenerationConfig(do_sample=False, max_new_tokens=max(work.limits), pad_token_id=0)
    options.eos_token_id = -1  # none
    # By itself it takes nine tenths of the memory, which on a CPU is the machine's.
    sizes = {} if model.device.type == "cuda" else {"num_blocks": 32, "max_batch_tokens": 512}
    hints = WorkloadHints(max(map(len, work.prompts)), max(work.limits), len(work.prompts))
    began = time.perf_counter()
    with model.continuous_batching_context_manager(
        generation_config=options,
        continuous_batching_config=transformers.ContinuousBatchingConfig(**sizes),
        block=True,
        timeout=5,
        workload_hints=hints,
    ) as manager:
        ready = time.perf_counter() - began
        began, last, tokens = time.perf_counter(), 0.0, 0
        errors: list[str] = []
        order = sorted(range(len(work.prompts)), key=lambda row: -work.limits[row])
        for row in order:
            manager.add_request(work.prompts[row].tolist(), max_new_tokens=work.limits[row], eos_token_id=-1)
        left = len(order)
        while left and not errors and time.perf_counter() - began < seconds and manager.is_running():
            answer = manager.get_result(timeout=0.5)
            if answer is not None and answer.is_finished():
                left, tokens, last = left - 1, tokens + len(answer.generated_tokens), time.perf_counter() - began
                errors += [answer.error] if answer.error else []
    if errors or not tokens:
        raise RuntimeError(f"{len(errors)} of {len(order)} requests failed, {left} had no answer: {errors[:1]}")
    return last, ready, tokens
