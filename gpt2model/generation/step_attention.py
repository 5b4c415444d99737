"""Attention of one step of the engine: sequences that take one token each, and prompts that are read whole.

Shapes: T tokens of the step, B sequences that take one token, N blocks of the pool, S positions of a block, J blocks of
the longest sequence, M sequences behind one prefix, P tokens of a prefix, H heads, K size of one head, D width = H * K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2model.attention import GPT2Attention
from gpt2model.cache import KeyValue
from gpt2model.generation.blocks import BlockPool
from gpt2model.packing import Packed, PackedAttention

# Stands for minus infinity where the difference of two must not be NaN.
UNSEEN = -1e30


@dataclass(frozen=True, slots=True)
class Behind:
    """A prefix that sequences of a step go on from: its blocks [blocks of P], P, and who they are.

    rows are the places [M] among the B sequences; prompts the spans of T in which prompts behind it lie. hidden, [P],
    is UNSEEN where P goes beyond the prefix, else 0; without it P is the prefix.
    """

    blocks: Tensor
    length: int
    rows: Tensor
    prompts: Sequence[slice]
    hidden: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """The B sequences that take one token, over the first N blocks of the pool.

    owners is [N]: the sequence that a block belongs to, any where it belongs to none. hidden is [N, 1, S], UNSEEN where
    a position holds nothing of its owner, else 0. table is [B, J]: a sequence's blocks in their order. In it, N + b is
    what sequence b sees of its prefix, and N + B nothing at all.
    """

    owners: Tensor
    hidden: Tensor
    table: Tensor


class StepAttention:
    """The attention of one step, for all layers.

    The tokens are those of the B sequences, then the prompts of `packed`, then the prompts behind prefixes; blocks and
    offsets, [T] each, say where their keys and values go. A sequence's values are summed over its blocks in their
    order, and nothing else depends on who its neighbours are.
    """

    def __init__(
        self,
        pool: BlockPool,
        blocks: Tensor,
        offsets: Tensor,
        decoding: Decoding | None,
        packed: Packed | None,
        behind: Sequence[Behind],
    ) -> None:
        self._pool, self._blocks, self._offsets = pool, blocks, offsets
        self._decoding, self._behind = decoding, behind
        self._sequences = 0 if decoding is None else len(decoding.table)
        self._packed_end = self._sequences + (0 if packed is None else len(packed.input_ids))
        self._packed = None if packed is None else PackedAttention(packed)

    def __call__(self, projected: Tensor, layer: GPT2Attention) -> Tensor:
        """Queries, keys and values side by side, [T, 3 * D], to mixed values [T, D]."""
        tokens, width = projected.shape[0], projected.shape[1] // 3
        heads = projected.view(tokens, 3, layer.n_head, width // layer.n_head)
        query, key, value = heads.unbind(1)
        self._pool.write(layer.layer, self._blocks, self._offsets, key, value)
        prefixes = [self._pool.joined(layer.layer, each.blocks, each.length) for each in self._behind]
        mixed = projected.new_zeros(tokens, layer.n_head, width // layer.n_head)
        if self._decoding is not None:
            own = query[: self._sequences]
            mixed[: self._sequences] = self._decode(own, self._decoding, prefixes, layer)
        if self._packed is not None:
            span = slice(self._sequences, self._packed_end)
            mixed[span] = self._packed(projected[span], layer).view_as(mixed[span])
        for each, prefix in zip(self._behind, prefixes, strict=True):
            for span in each.prompts:
                mixed[span] = _attend_behind(heads[span], prefix, layer.scale)
        return mixed.view(tokens, width)

    def _decode(self, query: Tensor, decoding: Decoding, prefixes: Sequence[KeyValue], layer: GPT2Attention) -> Tensor:
        """Queries [B, H, K] to mixed values [B, H, K].

        Each block, and each prefix, gives its part of the softmax for itself; the parts of a sequence are then weighed
        by their greatest scores (Dao et al., 2023, "Flash-Decoding").
        """
        blocks, sequences = len(decoding.owners), len(query)
        parts = _Parts(blocks + sequences + 1, query)
        keys, values = self._pool.first(layer.layer, blocks)
        own = query[decoding.owners][:, :, None]
        top, total, sums = _attend(own, keys, values, layer.scale, decoding.hidden[:, None])
        parts.put(slice(0, blocks), top[:, :, 0], total[:, :, 0], sums[:, :, 0])
        for each, (key, value) in zip(self._behind, prefixes, strict=True):
            if len(each.rows):
                many = query[each.rows].transpose(0, 1)
                top, total, sums = _attend(many, key, value, layer.scale, each.hidden)
                parts.put(blocks + each.rows, top.T, total.T, sums.transpose(0, 1))
        return parts.gathered(decoding.table)


class _Parts:
    """Parts of softmaxes: the greatest score [R, H], the sum of exponentials [R, H], the weighed values [R, H, K]."""

    def __init__(self, rows: int, like: Tensor) -> None:
        heads, size = like.shape[1:]
        self._top = torch.full((rows, heads), UNSEEN, dtype=torch.float32, device=like.device)
        # A sequence that sees nothing at all gets zeros, and not what is 0 divided by 0.
        self._total = torch.ones_like(self._top)
        self._sums = torch.zeros(rows, heads, size, dtype=torch.float32, device=like.device)

    def put(self, rows: slice | Tensor, top: Tensor, total: Tensor, sums: Tensor) -> None:
        self._top[rows], self._total[rows], self._sums[rows] = top, total, sums.float()

    def gathered(self, table: Tensor) -> Tensor:
        """The parts that table [B, J] names, put together: [B, H, K]."""
        rows, heads, size = self._sums.shape
        top = self._top[table]
        weights = (top - top.amax(dim=1, keepdim=True)).exp_()
        # One after the other: a sum over J that is longer for a neighbour's sake must not be rounded otherwise.
        total = (weights * self._total[table]).cumsum(dim=1)[:, -1]
        places = table[:, None] * heads + torch.arange(heads, device=table.device)[:, None]
        sums = F.embedding_bag(
            places.flatten(0, 1),
            self._sums.view(rows * heads, size),
            mode="sum",
            per_sample_weights=weights.transpose(1, 2).flatten(0, 1),
        )
        return sums.view(len(table), heads, size) / total[:, :, None]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [..., M, K] over keys and values [..., P, K]: greatest score, sum of exponentials, weighed values."""
    scores = ((query * scale) @ key.transpose(-1, -2)).float()
    if hidden is not None:
        scores += hidden
    top = scores.amax(dim=-1)
    weights = scores.sub_(top[..., None]).exp_()
    return top, weights.sum(dim=-1), weights.to(value.dtype) @ value


def _attend_behind(heads: Tensor, prefix: KeyValue, scale: float) -> Tensor:
    """Causal attention of one prompt [L, 3, H, K] that follows a prefix: [L, H, K]."""
    query, key, value = heads.permute(1, 2, 0, 3)
    key, value = torch.cat((prefix[0], key), dim=1), torch.cat((prefix[1], value), dim=1)
    length, total = query.shape[1], key.shape[1]
    seen = torch.ones(length, total, dtype=torch.bool, device=heads.device).tril(total - length)
    out = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=seen, scale=scale)
    return out[0].transpose(0, 1)
