"""What scores a row's next token gets, and when a row ends: the options' rules and those that generate was given.

Shapes: B rows, P ids of the prompts, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.filters import filters_of
from gpt2model.generation.processors import PrefixConstrained, processors_of
from gpt2model.generation.prompt import Prompt
from gpt2model.generation.stopping import StopStrings, deadline, ended_by_length, ended_by_token

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""From ids [B, P + T] and scores [B, V] to new scores, as transformers' class of that name."""

StoppingCriteria = Callable[[Tensor, tuple[Tensor, ...] | None], Tensor | bool]
"""From ids [B, P + T], and the scores of all steps where they are kept, to whether rows end: bool [B] or one bool."""


class Scoring:
    """What becomes of a step's logits: the options' processors, then the caller's, then the options' filters."""

    def __init__(
        self, options: GenerationConfig, constraint: PrefixConstrained | None, given: Sequence[LogitsProcessor]
    ) -> None:
        self._processors = processors_of(options, constraint)
        self._given = tuple(given)
        self._filters = filters_of(options)

    def __call__(self, prompt: Prompt, continuations: Tensor, logits: Tensor) -> Tensor:
        """Scores [B, V] of the tokens that may follow continuations [B, T]; the logits [B, V] are not written to."""
        scores = logits
        if self._processors:
            context = prompt.context(continuations)
            for processor in self._processors:
                scores = processor(context, scores)
        if self._given:
            # Many of transformers' processors write to what they get.
            scores, ids = scores.clone(), prompt.sequences(continuations)
            for given in self._given:
                scores = given(ids, scores)
        for each in self._filters:
            scores = each(scores)
        return scores


class Ending:
    """When a row ends: at an eos token, a stop string, its greatest length, a deadline, or where the caller says so.

    The deadline counts from here. `states` are where rows stand in the stop strings, int64 [B].
    """

    def __init__(self, options: GenerationConfig, stop: StopStrings | None, given: Sequence[StoppingCriteria]) -> None:
        self._eos = options.eos_token_id or ()
        self._late = deadline(options.max_time)
        self._stop = stop
        self._given = tuple(given)

    def start(self, prompt: Prompt) -> Tensor:
        """The states after the prompts."""
        states = torch.zeros_like(prompt.max_lengths)
        return states if self._stop is None else self._stop.after(states, prompt.ids)

    def step(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states after one more token of each row, [B]."""
        return states if self._stop is None else self._stop.step(states, tokens)

    def __call__(
        self, prompt: Prompt, continuations: Tensor, states: Tensor, scores: tuple[Tensor, ...] | None
    ) -> Tensor:
        """Whether a row ends with continuations [B, T], bool [B]; `scores` are those of all steps, if they are kept."""
        context = prompt.context(continuations)
        ended = ended_by_length(context) | ended_by_token(context, self._eos) | self._late()
        if self._stop is not None:
            ended = ended | self._stop.found(states)
        if self._given:
            ids = prompt.sequences(continuations)
            for given in self._given:
                ended = ended | torch.as_tensor(given(ids, scores), device=ended.device).bool()
        return ended
