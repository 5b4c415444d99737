"""Log-probabilities of given tokens, without ever holding the logits of all of them.

Shapes: T positions of a pack, M positions of one chunk, D width, V vocabulary, C entries of one block of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2model import onednn
from gpt2model.errors import InputError
from gpt2model.heads import IGNORED_LABEL, GPT2DoubleHeadsModel, GPT2LMHeadModel
from gpt2model.model import check_ids
from gpt2model.packing import Packed, TokenIds, as_ids, pack_branches

LanguageModel = GPT2LMHeadModel | GPT2DoubleHeadsModel

# Logits held at once. On a CPU a block stays near the caches; a CUDA device wants few, large kernels.
_CPU_BLOCK = 2**21
_CUDA_BLOCK = 2**27
# Of a block, what the passes over it take at once: a megabyte, half of a usual second-level cache.
_CPU_CACHED = 2**18
# Rows whose logits are held whole where the quick sum overflows.
_EXACT_ROWS = 16


@torch.inference_mode()
def token_logprobs(
    model: LanguageModel, packed: Packed, targets: Tensor, *, greedy: bool = False, chunk: int = 1024
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
    logprobs = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    is_argmax = torch.zeros_like(targets, dtype=torch.bool) if greedy else None
    logprobs[scored], leads = _logprobs_at(model, packed, scored, targets[scored], greedy=greedy, chunk=chunk)
    if is_argmax is not None and leads is not None:
        is_argmax[scored] = leads
    return logprobs, is_argmax


@torch.inference_mode()
def continuation_logprobs(
    model: LanguageModel,
    prompts: Sequence[TokenIds],
    continuations: Sequence[Sequence[TokenIds]],
    *,
    chunk: int = 1024,
) -> list[list[Tensor]]:
    """log p of each token of each prompt's continuations, in nats: a float32 [its length] each, on the CPU.

    A prompt is computed once for all its continuations. Each continuation gets what token_logprobs gives it behind the
    prompt alone. Raises InputError for an empty prompt, for what does not fit into n_positions (the last token of a
    continuation takes no place), and for ids outside the vocabulary.
    """
    given = [[as_ids(each, place) for each in own] for place, own in enumerate(continuations)]
    packed = pack_branches(prompts, [[each[:-1] for each in own] for own in given])
    places, wanted, start = [], [np.empty(0, dtype=np.int64)], 0
    for trunk, own in zip(packed.trunks, given, strict=True):
        last, start = start + trunk - 1, start + trunk
        for each in own:
            follows = max(len(each) - 1, 0)
            places += [last] * (len(each) > 0) + list(range(start, start + follows))
            wanted.append(each)
            start += follows
    where = torch.tensor(places, dtype=torch.int64, device=model.device)
    ids = torch.from_numpy(np.concatenate(wanted)).to(model.device)
    found, _ = _logprobs_at(model, packed.to(model.device), where, ids, greedy=False, chunk=chunk)
    each_one = iter(torch.split(found.cpu(), [len(each) for own in given for each in own]))
    return [[next(each_one) for _ in own] for own in given]


def _logprobs_at(
    model: LanguageModel, packed: Packed, places: Tensor, ids: Tensor, *, greedy: bool, chunk: int
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [M] of ids [M] after the places [M] of a pack, and whether each leads."""
    check_ids(ids, model.config.vocab_size, "targets", "vocab_size")
    if len(places) == 0:
        return ids.new_empty(0, dtype=torch.float32), ids.new_empty(0, dtype=torch.bool) if greedy else None
    hidden = model.transformer.forward_packed(packed, only=places)
    scores = [
        _score(states, some, model.lm_head.weight, greedy=greedy)
        for states, some in zip(torch.split(hidden, chunk), torch.split(ids, chunk), strict=True)
    ]
    leads = [lead for _, lead in scores if lead is not None]
    return torch.cat([logprobs for logprobs, _ in scores]), torch.cat(leads) if greedy else None


def _score(states: Tensor, ids: Tensor, weight: Tensor, *, greedy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [M] of ids [M] after the states [M, D], and whether each leads; weight is the head's [V, D].

    The passes over a block's logits take a few rows at a time on a CPU, so that all but the first find them in the
    cache.
    """
    rows, entries, on_cpu = len(states), len(weight), states.device.type == "cpu"
    block = min(entries, max(256, (_CPU_BLOCK if on_cpu else _CUDA_BLOCK) // rows))
    memory = states.new_empty(0 if onednn.takes(states) else rows * block)
    few = max(1, _CPU_CACHED // block) if on_cpu else rows
    seen = [_Seen(part, greedy=greedy) for part in torch.split(ids, few)]
    for first in range(0, entries, block):
        part = weight[first : first + block]
        logits = _logits(states, part, memory)
        for each, some in zip(seen, torch.split(logits, few), strict=True):
            each.add(some.float(), first)
    logprobs = torch.cat([each.logprobs() for each in seen])
    overflowed = (~logprobs.isfinite()).nonzero()[:, 0]
    for places in torch.split(overflowed, _EXACT_ROWS):
        exact = torch.mm(states[places], weight.T).float().log_softmax(dim=1)
        logprobs[places] = exact.gather(1, ids[places][:, None])[:, 0]
    return logprobs, torch.cat([each.leads for each in seen if each.leads is not None]) if greedy else None


def _logits(states: Tensor, part: Tensor, memory: Tensor) -> Tensor:
    """states [M, D] times a part [C, D] of the head: [M, C], in `memory` where torch.mm computes it."""
    if onednn.takes(states):
        return onednn.linear(states, part)
    return torch.mm(states, part.T, out=memory[: len(states) * len(part)].view(len(states), len(part)))


class _Seen:
    """What the blocks of the vocabulary so far say about the chosen ids.

    shift [M] is the greatest logit of the first block, total [M] the sum of exponentials relative to it, chosen [M] the
    logit of the chosen id. That saves the search for the greatest in every block; where a later logit is more than 88
    above the shift the total is infinite, and the row is for the caller to compute anew.
    With greedy, greatest [M] is the greatest logit so far and leads [M] whether the chosen one is the first of those.
    """

    def __init__(self, ids: Tensor, *, greedy: bool) -> None:
        self._ids = ids
        self._shift: Tensor | None = None
        self._total = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        self._chosen = torch.zeros_like(self._total)
        self._greatest = torch.full_like(self._total, -torch.inf)
        self.leads = torch.zeros_like(ids, dtype=torch.bool) if greedy else None

    def add(self, logits: Tensor, first: int) -> None:
        """Take in the logits [M, C] of the entries from `first` on, and write over them."""
        place = self._ids - first
        inside = (place >= 0) & (place < logits.shape[1])
        at_place = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self._chosen = torch.where(inside, at_place, self._chosen)
        if self.leads is not None:
            self._lead(logits, at_place, inside, place)
        if self._shift is None:
            self._shift = logits.amax(dim=1)
        self._total += logits.sub_(self._shift[:, None]).exp_().sum(dim=1)

    def _lead(self, logits: Tensor, at_place: Tensor, inside: Tensor, place: Tensor) -> None:
        assert self.leads is not None
        top = logits.amax(dim=1)
        higher = top > self._greatest
        self.leads &= ~higher
        candidates = (inside & higher & (at_place == top)).nonzero()[:, 0]
        self.leads[candidates] = logits[candidates].argmax(dim=1) == place[candidates]
        self._greatest = torch.maximum(top, self._greatest)

    def logprobs(self) -> Tensor:
        """Log-probabilities [M] of the chosen ids; not finite where the total overflowed."""
        assert self._shift is not None
        return self._chosen - self._shift - self._total.log()
