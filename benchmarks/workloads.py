"""What the benchmarks have models do: texts to score, prompts to continue. Random tokens of a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gpt2model import GPT2Config

Ids = npt.NDArray[np.int64]
Order = Literal["prompt", "limit"]


@dataclass(frozen=True)
class Scoring:
    """Sequences to score, each begun by the end-of-text token."""

    name: str
    sequences: Sequence[Ids]

    @property
    def tokens(self) -> int:
        """Tokens that are read, so also predictions that are made."""
        return sum(len(ids) - 1 for ids in self.sequences)

    def operations(self, config: GPT2Config, *, head: bool = True) -> float:
        """Floating-point operations of the matrix products: 2 a weight and token, and causal attention."""
        weights = 12 * config.n_layer * config.n_embd**2 + head * config.vocab_size * config.n_embd
        attention = sum(2 * (len(ids) - 1) ** 2 for ids in self.sequences) * config.n_embd * config.n_layer
        return 2.0 * weights * self.tokens + attention

    def first(self, rows: int) -> Scoring:
        """The first rows alone."""
        return Scoring(self.name, self.sequences[:rows])


@dataclass(frozen=True, slots=True)
class Generation:
    """Prompts, how many tokens each is to get, and how many tokens all of them begin with."""

    name: str
    prompts: Sequence[Ids]
    limits: Sequence[int]
    prefix: int

    @property
    def new_tokens(self) -> int:
        return sum(self.limits)

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    def first(self, rows: int) -> Generation:
        """The first rows alone."""
        return Generation(self.name, self.prompts[:rows], self.limits[:rows], self.prefix)

    def batches(self, size: int, order: Order) -> Iterator[tuple[list[Ids], int]]:
        """Rows in batches, sorted, with each batch's greatest limit."""
        keys = [len(prompt) for prompt in self.prompts] if order == "prompt" else self.limits
        ordered = sorted(range(len(keys)), key=lambda row: keys[row])
        for start in range(0, len(ordered), size):
            rows = ordered[start : start + size]
            yield [self.prompts[row] for row in rows], max(self.limits[row] for row in rows)


def lognormal_texts(config: GPT2Config, rows: int = 64) -> Scoring:
    """Sequences of random tokens, lengths lognormal with mean 123 and within the model's context."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.5, 0.8, rows), 8, config.n_positions - 1).astype(int)
    return Scoring("lognormal", [random.integers(0, config.vocab_size, length + 1) for length in lengths])


def lognormal_prompts(rows: int, prefix: int, config: GPT2Config | None = None) -> Generation:
    """Random tokens: prompts of lognormal length (mean 123) behind a prefix, limits lognormal from 4 to 256.

    In a context of fewer positions than GPT-2's, limits end at a quarter of it.
    """
    config = config or GPT2Config()
    most, vocabulary = config.n_positions // 4, config.vocab_size
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.5, 0.8, rows), 8, config.n_positions - 1 - most - prefix).astype(int)
    limits = np.clip(random.lognormal(3.9, 0.8, rows), 4, most).astype(int)
    shared = random.integers(0, vocabulary, prefix)
    prompts = [np.concatenate([shared, random.integers(0, vocabulary, length)]) for length in lengths]
    name = f"prefix of {prefix} tokens" if prefix else "nothing shared"
    return Generation(name, prompts, limits.tolist(), prefix)
