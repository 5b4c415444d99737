"""What the engine is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

LEAST_SHARED = 32
"""Tokens that a shared beginning has at least."""
RUN_COST = 256
"""Tokens that sharing must save: a beginning costs operations in every step and layer, however few are behind it."""

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The beginning that several prompts share; it is the same prefix where it is the same object."""

    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One continuation to be made."""

    prompt_ids: Ids
    """At least one token; the prefix counts."""
    max_new_tokens: int
    """At least 1; the context's edge may end the continuation earlier."""
    ticket: Any = None
    """The caller's own, handed back with the answer."""
    seed: int = 0
    row: int = 0
    sample: int = 0
    prefix: Prefix | None = None
    """Shorter than the prompt, so that a token is left to read."""


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """What was made of a request."""

    request: Request
    token_ids: Ids
    """New tokens, the ending eos token included."""
    finish_reason: FinishReason
    logprobs: npt.NDArray[np.float32] | None
    """Of each new token, in nats, by the model's own distribution; where they were asked for."""
    error: str | None = None
    """Why it broke off."""


def share_prefixes(prompts: Sequence[Ids], least: int = LEAST_SHARED, cost: int = RUN_COST) -> list[Prefix | None]:
    """For each prompt the beginning that it shares with others, where sharing saves the most tokens.

    A beginning has `least` tokens at least, and leaves each prompt one of its own. n prompts that share L tokens save
    (n - 1) * L, less what a beginning costs. Sorted, prompts with a common beginning are neighbours, so that a table
    over the sorted prompts, of what the first j of them can save, finds the best division into runs.
    """
    order = sorted(range(len(prompts)), key=lambda place: prompts[place].astype(">i8").tobytes())
    ranked = [prompts[place] for place in order]
    common = np.array([_shared(one, other) for one, other in pairwise(ranked)], np.int64)
    common[common < least] = 0
    prefixes: list[Prefix | None] = [None] * len(prompts)
    for first, end in _best_runs(common, cost):
        prefix = Prefix(ranked[first][: common[first : end - 1].min()].copy())
        for place in order[first:end]:
            prefixes[place] = prefix
    return prefixes


def _shared(one: Ids, other: Ids) -> int:
    """Tokens that two prompts begin with in common, one left to each."""
    length = max(min(len(one), len(other)) - 1, 0)
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _best_runs(common: npt.NDArray[np.int64], cost: int) -> list[tuple[int, int]]:
    """The runs [first, end) of two and more neighbours that save the most; i and i + 1 share common[i] tokens."""
    runs, start = [], 0
    # Where neighbours share nothing no run goes across: the table's time grows with the square of what lies between.
    for stop in [*np.flatnonzero(common == 0).tolist(), len(common)]:
        runs += [(start + first, start + end) for first, end in _best_division(common[start:stop], cost)]
        start = stop + 1
    return runs


def _best_division(common: npt.NDArray[np.int64], cost: int) -> list[tuple[int, int]]:
    count = len(common) + 1
    saved = np.zeros(count + 1, np.int64)
    begins = np.arange(-1, count)
    for last in range(1, count):
        least_shared = np.minimum.accumulate(common[:last][::-1])[::-1]
        with_run = saved[:last] + np.arange(last, 0, -1) * least_shared - cost
        first = int(with_run.argmax())
        saved[last + 1] = max(saved[last], with_run[first])
        begins[last + 1] = first if with_run[first] > saved[last] else last
    runs, end = [], count
    while end > 0:
        first = int(begins[end])
        if end - first > 1:
            runs.append((first, end))
        end = first
    return runs
