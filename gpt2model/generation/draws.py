"""Draws tokens at random, the same for the same prompt, sample and position in whatever batch.

Shapes: B rows, C things to draw from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2model.errors import InputError
from gpt2model.generation.noise import gumbel, step_keys, stream_keys

# A sort costs as much as the noise for a few times as many numbers.
_WORTH_A_SORT = 4


class Draws:
    """The random numbers of a batch: of each of its prompts, several samples one after the other."""

    def __init__(self, seed: int, prompts: int, samples: int, device: torch.device) -> None:
        if not -(2**63) <= seed < 2**63:
            raise InputError(f"seed={seed}: give an integer from -2**63 to 2**63 - 1")
        rows = torch.arange(prompts, device=device).repeat_interleave(samples)
        numbers = torch.arange(samples, device=device).repeat(prompts)
        self._streams = stream_keys(torch.full_like(rows, seed), rows, numbers)

    def __call__(self, scores: Tensor, position: int, count: int) -> Tensor:
        """`count` different columns [B, count] of scores [B, C], drawn one by one by the softmax of what is left.

        What is -inf comes last. The draw is that of the position, counted from the first new token.
        """
        keys = step_keys(self._streams, torch.full_like(self._streams, position))
        possible = max(count, int((scores > -torch.inf).sum(dim=-1).max()))
        if possible * _WORTH_A_SORT > scores.shape[-1]:
            columns = torch.arange(scores.shape[-1], device=scores.device)
            return (scores + gumbel(keys, columns)).topk(count).indices
        best, columns = scores.topk(possible)
        return columns.gather(-1, (best + gumbel(keys, columns)).topk(count).indices)
