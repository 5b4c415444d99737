"""Greedy search and sampling: one token of each row at a time, until all rows have ended.

Shapes: B rows, T new tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt2model.errors import InputError
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.draws import Draws
from gpt2model.generation.feed import Feed
from gpt2model.generation.outputs import GenerateDecoderOnlyOutput, Trace
from gpt2model.generation.prompt import Prompt
from gpt2model.generation.rules import Ending, Scoring


class Streamer(Protocol):
    """What is told the tokens as they come: the prompts first, then one of each row at a time, all on the CPU."""

    def put(self, value: Tensor) -> Any:
        """Take ids, [B, P] or [B]."""

    def end(self) -> Any:
        """No more will come."""


@dataclass(frozen=True, slots=True)
class Search:
    """One call of generate: everything it goes by, for whichever way of choosing tokens.

    `prompt` has a row for each prompt, not for each row of the feed. `fill` is what stands behind a row's end.
    """

    options: GenerationConfig
    prompt: Prompt
    feed: Feed
    scoring: Scoring
    ending: Ending
    draws: Draws | None
    fill: int


def decode(search: Search, streamer: Streamer | None) -> GenerateDecoderOnlyOutput:
    """The likeliest token at each step, or a drawn one where there are draws. Source: transformers' `_sample`."""
    prompt = search.prompt.repeated(search.options.num_return_sequences)
    trace = Trace(search.options)
    continuations = prompt.input_ids.new_empty(len(prompt), 0)
    unfinished = torch.ones_like(prompt.max_lengths, dtype=torch.bool)
    states = search.ending.start(prompt)
    if streamer is not None:
        streamer.put(prompt.input_ids.cpu())
    reading = search.feed.begin()
    while True:
        scores = search.scoring(prompt, continuations, reading.logits)
        trace.add(reading, scores)
        tokens = _chosen(search, scores, unfinished, continuations.shape[1]).where(unfinished, search.fill)
        continuations = torch.cat((continuations, tokens[:, None]), dim=1)
        states = search.ending.step(states, tokens)
        unfinished = unfinished & ~search.ending(prompt, continuations, states, trace.scores)
        if streamer is not None:
            streamer.put(tokens.cpu())
        if not bool(unfinished.any()):
            break
        reading = search.feed.advance(tokens)
    if streamer is not None:
        streamer.end()
    return GenerateDecoderOnlyOutput(
        sequences=prompt.sequences(continuations), past_key_values=search.feed.cache, **trace.kept()
    )


def check_some_left(best: Tensor, rows: Tensor, position: int) -> None:
    """Raise InputError where the best score [B] of one of the rows that `rows` [B] marks is no number, or -inf."""
    lost = rows & ~(best > -torch.inf)
    if bool(lost.any()):
        raise InputError(
            f"no token can follow the {position} new ones of row {int(lost.nonzero()[0])}: the options or logits"
            " processors leave none, or its logits are not finite"
        )


def _chosen(search: Search, scores: Tensor, unfinished: Tensor, position: int) -> Tensor:
    """The next tokens [B]."""
    best = scores.max(dim=-1)
    check_some_left(best.values, unfinished, position)
    return best.indices if search.draws is None else search.draws(scores, position, 1)[:, 0]
