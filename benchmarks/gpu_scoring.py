"""Scoring speed on a device: packs of 16,384 tokens, against transformers sorted and padded at its best batch size.

Where ours spends its time is told apart: the blocks alone, and the head, beside another way to compute the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_setting import PACK_TOKENS, Case, Row, Setting, batches_of, packs_of, padded, quickest, short
from benchmarks.workloads import Scoring, lognormal_texts
from gpt2model import GPT2Config, pack, scoring
from gpt2model.scoring import token_logprobs

ROWS = {"gpt2": 2048, "gpt2-xl": 256}
PEER_ROWS = {"gpt2": 1024, "gpt2-xl": 128}
BATCHES = (8, 16, 32, 64, 128, 256)
CHUNK = 1024


def cases(setting: Setting) -> Iterator[Case]:
    """Both sizes in all dtypes, half precision first."""
    for dtype in setting.halves:
        for size, config in setting.configs.items():
            yield Case(f"{size}, {short(dtype)}", partial(score, setting, size, config, dtype))
    yield Case(f"head, {short(setting.halves[0])}", partial(head, setting, setting.halves[0]))
    for size, config in setting.configs.items():
        if torch.float32 not in setting.halves:
            yield Case(f"{size}, float32", partial(score, setting, size, config, torch.float32))


@torch.inference_mode()
def score(setting: Setting, size: str, config: GPT2Config, dtype: torch.dtype) -> list[Row]:
    """Ours and theirs, and the parts of ours."""
    work = lognormal_texts(config, setting.rows(ROWS.get(size, 1024)))
    some = work.first(setting.rows(PEER_ROWS.get(size, 512)))
    model = setting.ours(config, dtype)
    rate = setting.matrix_rate(dtype)
    packs = packs_of([ids[:-1] for ids in work.sequences])
    rows = [
        told(setting, config, "ours", work, rate, partial(packed_sum, setting, model, work)),
        told(setting, config, "ours, the blocks alone", work, rate, partial(blocks, setting, model, packs), head=False),
    ]
    peer = setting.theirs(model)
    best, took = quickest(BATCHES, lambda size: setting.seconds(partial(padded_sum, setting, peer, some, size)))
    theirs = told(
        setting, config, f"transformers, batches of {best}", some, rate, partial(padded_sum, setting, peer, some, best)
    )
    mine, other = packed_sum(setting, model, some), padded_sum(setting, peer, some, best)
    theirs["tokens/s by batch"] = {batch: round(some.tokens / each) for batch, each in took.items()}
    theirs["sum against ours"] = other / mine - 1
    return [*rows, theirs]


def told(
    setting: Setting,
    config: GPT2Config,
    name: str,
    work: Scoring,
    rate: float,
    call: Callable[[], object],
    *,
    head: bool = True,
) -> Row:
    """Speed, and the memory beyond the weights."""
    peak = setting.peak_memory(call)
    took = setting.median_seconds(call, 2, warm=True)
    return {
        "engine": name,
        "tokens/s": work.tokens / took,
        "matrix TFLOP/s": rate / 1e12,
        "share of it": work.operations(config, head=head) / took / rate,
        "peak GiB": peak,
    }


def packed_sum(setting: Setting, model: Any, work: Scoring) -> float:
    """Sum of log-probabilities, as a worker computes them; all packs are under way before one is waited for."""
    sums = []
    for chosen in packs_of(work.sequences, PACK_TOKENS):
        targets = torch.from_numpy(np.concatenate([each[1:] for each in chosen])).to(setting.device)
        packed = pack([each[:-1] for each in chosen]).to(setting.device)
        sums.append(token_logprobs(model, packed, targets)[0].double().sum())
    return float(torch.stack(sums).sum())


def blocks(setting: Setting, model: Any, packs: Sequence[Sequence[Any]]) -> None:
    """The hidden states of all packs."""
    for chosen in packs:
        model.transformer.forward_packed(pack(chosen).to(setting.device))


def padded_sum(setting: Setting, model: Any, work: Scoring, batch: int) -> float:
    """The same by transformers; cross entropy in the logits' dtype, which is the quickest, and summed in float64."""
    sums = []
    for chosen in batches_of(work.sequences, batch):
        ids, mask = padded(chosen, setting.device)
        logits = model(ids[:, :-1], attention_mask=mask[:, 1:], use_cache=False).logits
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        sums.append(-losses.double().sum())
    return float(torch.stack(sums).sum())


@torch.inference_mode()
def head(setting: Setting, dtype: torch.dtype) -> list[Row]:
    """The head of one pack, as it is and with torch's log_softmax that reads half precision and sums in float32."""
    config = setting.small
    model = setting.ours(config, dtype)
    weight, tokens = model.lm_head.weight, PACK_TOKENS if setting.on_gpu else 512
    states = torch.randn(tokens, config.n_embd, device=setting.device).to(dtype)
    ids = torch.randint(config.vocab_size, (tokens,), device=setting.device)
    work = 2.0 * tokens * weight.numel()
    rate = setting.matrix_rate(dtype)
    ways = {"as it is": as_it_is, "log_softmax": by_log_softmax, "products alone": products}
    rows = []
    for name, way in ways.items():
        for chunk in (512, 1024, 2048, 4096):
            took = setting.median_seconds(partial(way, states, ids, weight, chunk))
            row: Row = {"way": name, "chunk": chunk, "us a token": took / tokens * 1e6}
            rows.append({**row, "share of matrix rate": work / took / rate})
    return rows


def as_it_is(states: Tensor, ids: Tensor, weight: Tensor, chunk: int) -> None:
    for some, wanted in zip(torch.split(states, chunk), torch.split(ids, chunk), strict=True):
        scoring._score(some, wanted, weight, greedy=False)


def by_log_softmax(states: Tensor, ids: Tensor, weight: Tensor, chunk: int) -> None:
    for some, wanted in zip(torch.split(states, chunk), torch.split(ids, chunk), strict=True):
        (some @ weight.T).log_softmax(dim=1, dtype=torch.float32).gather(1, wanted[:, None])


def products(states: Tensor, ids: Tensor, weight: Tensor, chunk: int) -> None:
    for some in torch.split(states, chunk):
        _ = some @ weight.T
