"""From the logits of many rows to their next tokens.

Shapes: B rows, V vocabulary, C candidates of each row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import Context
from gpt2model.generation.filters import filters_of
from gpt2model.generation.noise import gumbel
from gpt2model.generation.processors import processors_of

# Up to this top_k, the filters see the best candidates alone.
_MOST_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """Next tokens, int64 [B]; whether each was chosen by a finite score, and had a finite logit, bool [B] each.

    `logprobs`, float32 [B], are by the model's own distribution, where they were asked for.
    """

    tokens: Tensor
    sound: Tensor
    clean: Tensor
    logprobs: Tensor | None


class Chooser:
    """The options of one GenerationConfig, ready for steps of rows at any state."""

    def __init__(self, config: GenerationConfig, *, logprobs: bool) -> None:
        self.config = config
        self.needs_context = bool(processors_of(config))
        self._processors = processors_of(config)
        self._filters = filters_of(config)
        self._logprobs = logprobs

    def __call__(self, logits: Tensor, context: Context | None, keys: Tensor) -> Choice:
        """Choose after float32 logits [B, V]; context where it is needed, keys [B] of this step's noise."""
        scores = logits
        for processor in self._processors:
            assert context is not None
            scores = processor(context, scores)
        tokens, best = self._sampled(scores, keys) if self.config.do_sample else _greatest(scores)
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        logprobs = chosen - logits.logsumexp(dim=1) if self._logprobs else None
        return Choice(tokens, best.isfinite(), chosen.isfinite(), logprobs)

    def _sampled(self, scores: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        ids = self._candidates(scores)
        kept = scores if ids is None else scores.gather(1, ids)
        for each in self._filters:
            kept = each(kept)
        tokens = torch.arange(scores.shape[1], device=scores.device) if ids is None else ids
        places, best = _greatest(kept + gumbel(keys, tokens))
        return places if ids is None else ids.gather(1, places[:, None])[:, 0], best

    def _candidates(self, scores: Tensor) -> Tensor | None:
        """The ids [B, C] that top_k can leave, ties included; None where all must be looked at.

        Filters do not mind which tokens they see, and those that top_k removes have no weight for the filters after it.
        What comes before it keeps the order.
        """
        top_k = self.config.top_k
        count = top_k + top_k // 2 + 8
        if not 0 < top_k <= _MOST_CANDIDATES or count >= scores.shape[1] or self.config.top_h is not None:
            return None
        values, ids = scores.topk(count, dim=1)
        tied = values[:, -1] == values[:, top_k - 1]
        # Where nothing but infinity is left the tie is among what is removed anyway.
        return None if bool((tied & values[:, -1].isfinite()).any()) else ids


def _greatest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the greatest scores of each row, [B], and the score itself; a NaN counts as the greatest."""
    best = scores.max(dim=1)
    return best.indices, best.values
