"""Log-probabilities of given tokens, without ever holding the logits of all of them.

Shapes: T positions of a pack, M positions of one chunk, D width, V vocabulary, C entries of one block of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2model.errors import InputError
from gpt2model.heads import IGNORED_LABEL, GPT2LMHeadModel
from gpt2model.model import check_ids
from gpt2model.packing import Packed

# Logits held at once. On a CPU a block stays near the caches; a CUDA device wants few, large kernels.
_CPU_BLOCK = 2**21
_CUDA_BLOCK = 2**27


@torch.inference_mode()
def token_logprobs(
    model: GPT2LMHeadModel, packed: Packed, targets: Tensor, *, greedy: bool = False, chunk: int = 1024
) -> tuple[Tensor, Tensor | None]:
    """log p(targets[t] | its sequence up to and with position t), in nats: float32 [T].

    targets are int64 [T], on the device of the pack and the model. A position whose target is -100 costs nothing in
    the head and gets 0. With `greedy`, the second result is a boolean [T]: whether the target is what greedy decoding
    takes, the lowest id among equals; False where there is no target. The head runs on `chunk` positions at a time.

    Raises InputError for targets that are not one a position, or that are outside the vocabulary.
    """
    if targets.shape != packed.input_ids.shape:
        raise InputError(f"targets of shape {tuple(targets.shape)}: the pack has {len(packed.input_ids)} positions")
    scored = (targets != IGNORED_LABEL).nonzero()[:, 0]
    wanted = targets[scored]
    check_ids(wanted, model.config.vocab_size, "targets", "vocab_size")
    logprobs = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    is_argmax = torch.zeros_like(targets, dtype=torch.bool) if greedy else None
    if len(scored) == 0:
        return logprobs, is_argmax
    hidden = model.transformer.forward_packed(packed)
    if len(scored) < len(targets):
        hidden = hidden[scored]
    for places, states, ids in zip(*(torch.split(whole, chunk) for whole in (scored, hidden, wanted)), strict=True):
        logprobs[places], leads = _score(states, ids, model.lm_head.weight, greedy=greedy)
        if is_argmax is not None and leads is not None:
            is_argmax[places] = leads
    return logprobs, is_argmax


def _score(states: Tensor, ids: Tensor, weight: Tensor, *, greedy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [M] of ids [M] after the states [M, D], and whether each leads; weight is the head's [V, D]."""
    rows, entries = len(states), len(weight)
    block = max(256, (_CPU_BLOCK if states.device.type == "cpu" else _CUDA_BLOCK) // rows)
    memory = states.new_empty(rows * min(block, entries))
    seen = _Seen(ids, greedy=greedy)
    for first in range(0, entries, block):
        part = weight[first : first + block]
        logits = torch.mm(states, part.T, out=memory[: rows * len(part)].view(rows, len(part)))
        seen.add(logits.float(), first)
    return seen.chosen - seen.greatest - seen.total.log(), seen.leads


class _Seen:
    """What the blocks of the vocabulary so far say about the chosen ids.

    greatest [M] is the greatest logit, total [M] the sum of exponentials relative to it (Milakov and Gimelshein, 2018,
    algorithm 3), chosen [M] the logit of the chosen id, leads [M] whether that is the first of the greatest.
    """

    def __init__(self, ids: Tensor, *, greedy: bool) -> None:
        self._ids = ids
        self.greatest = torch.full(ids.shape, -torch.inf, dtype=torch.float32, device=ids.device)
        self.total = torch.zeros_like(self.greatest)
        self.chosen = torch.zeros_like(self.greatest)
        self.leads = torch.zeros_like(ids, dtype=torch.bool) if greedy else None

    def add(self, logits: Tensor, first: int) -> None:
        """Take in the logits [M, C] of the entries from `first` on, and write over them."""
        place = self._ids - first
        inside = (place >= 0) & (place < logits.shape[1])
        at_place = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.chosen = torch.where(inside, at_place, self.chosen)
        top = logits.amax(dim=1)
        if self.leads is not None:
            higher = top > self.greatest
            self.leads &= ~higher
            candidates = (inside & higher & (at_place == top)).nonzero()[:, 0]
            self.leads[candidates] = logits[candidates].argmax(dim=1) == place[candidates]
        top = torch.maximum(top, self.greatest)
        rescaled = self.total * (self.greatest - top).exp()
        self.total = rescaled + logits.sub_(top[:, None]).exp_().sum(dim=1)
        self.greatest = top
