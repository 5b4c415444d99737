"""What each token of a generated sequence scored when it was chosen.

Shapes: N sequences, L tokens, T steps, B rows of the steps' scores, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2model.errors import InputError


def compute_transition_scores(
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The scores [N, T] of the last T tokens of sequences [N, L], which are those that generate added.

    `scores` hold one [B, V] a step, and `beam_indices` [N, T] is what a search returned, -1 behind an end, where the
    score is 0. `normalize_logits` makes log-probabilities of them first; a search's scores are that already.

    Raises InputError where these are not from one call of generate.
    """
    if not scores:
        raise InputError("scores are empty: generate with return_dict_in_generate=True and output_scores=True")
    steps = torch.stack(tuple(scores))
    if normalize_logits:
        steps = steps.log_softmax(dim=-1)
    if beam_indices is None:
        rows = torch.arange(len(sequences), device=steps.device)[:, None].expand(-1, len(steps))
    else:
        longest = int((beam_indices >= 0).sum(dim=-1).max())
        rows = beam_indices[:, :longest].to(steps.device).long()
    count = rows.shape[1]
    fits = len(rows) == len(sequences) and count <= min(len(steps), sequences.shape[1])
    if not fits or bool((rows >= steps.shape[1]).any()):
        raise InputError(
            f"sequences of shape {tuple(sequences.shape)} with {count} new tokens, scores of {len(steps)} steps for"
            f" {steps.shape[1]} rows: give what one call of generate returned, and for a search its beam_indices"
        )
    chosen = sequences[:, sequences.shape[1] - count :].to(steps.device)
    places = torch.arange(count, device=steps.device)
    # Behind a row's end there may be what is no token.
    taken = steps[places, rows.clamp(min=0), chosen.clamp(min=0)]
    return taken.masked_fill(rows < 0, 0.0)
