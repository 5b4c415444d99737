"""Many sequences in one row of tokens, without padding; a sequence may end in branches that share its beginning.

Shapes: T tokens of all sequences, N sequences, B branches, H heads, K size of one head, D width = H * K.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2model.errors import InputError

if TYPE_CHECKING:
    from gpt2model.attention import GPT2Attention

# Queries at a time in attention on a CPU.
_BLOCK = 64


@cache
def varlen_kernel() -> Callable[..., Tensor] | None:
    """torch's variable-length attention; torch 2.10 has none that takes a scale, and older ones have none.

    Sought where it is needed first, since it brings torch's compiler, which takes seconds to import.
    """
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    kernel: Callable[..., Tensor] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return kernel if "window_size" in inspect.signature(kernel).parameters else None


# Sequences given as ids: a list of integers, an integer array or an integer tensor, one-dimensional each.
TokenIds = Sequence[int] | np.ndarray[Any, np.dtype[np.integer[Any]]] | Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences one after the other: sequence i has the tokens cu_seqlens[i] to cu_seqlens[i + 1].

    input_ids and position_ids are int64 [T], cu_seqlens is int32 [N + 1]; lengths are on the host. Where sequences
    branch, branches holds the branches' lengths of each; they lie behind the trunk, one after the other, and each sees
    the trunk and itself.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    max_seqlen: int
    branches: tuple[tuple[int, ...], ...] | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same sequences on another device."""
        return type(self)(
            self.input_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.cu_seqlens.to(device, non_blocking=True),
            self.lengths,
            self.max_seqlen,
            self.branches,
        )

    @property
    def trunks(self) -> tuple[int, ...]:
        """Tokens of each sequence before its branches: all of them where it has none."""
        if self.branches is None:
            return self.lengths
        return tuple(length - sum(own) for length, own in zip(self.lengths, self.branches, strict=True))

    @property
    def depths(self) -> tuple[int, ...]:
        """Positions on the longest way from each sequence's beginning to an end: what n_positions limits."""
        if self.branches is None:
            return self.lengths
        return tuple(trunk + max(own, default=0) for trunk, own in zip(self.trunks, self.branches, strict=True))

    def ends(self) -> tuple[Tensor, Tensor]:
        """The places of the first and the last token of each branch's way, or of each sequence: int64 [B or N] each.

        A way begins with the trunk. Raises InputError for an empty sequence, or an empty branch.
        """
        spans = [(trunk.start, (own or trunk).stop - 1) for trunk, own in self._ways()]
        firsts, lasts = torch.tensor(spans, dtype=torch.int64, device=self.input_ids.device).view(-1, 2).unbind(1)
        return firsts, lasts

    def means(self, hidden: Tensor) -> Tensor:
        """Mean of hidden states [T, D] over each branch's way, or over each sequence: [B or N, D].

        Summed in float32. Raises InputError for an empty sequence, or an empty branch.
        """
        means = []
        for trunk, own in self._ways():
            total = hidden[trunk].float().sum(dim=0)
            count = trunk.stop - trunk.start
            if own is not None:
                total, count = total + hidden[own].float().sum(dim=0), count + own.stop - own.start
            means.append((total / count).to(hidden.dtype))
        return torch.stack(means) if means else hidden.new_empty(0, hidden.shape[1])

    def _ways(self) -> Iterator[tuple[slice, slice | None]]:
        """The trunk's and the branch's tokens, branch by branch; of a sequence without branches its own alone."""
        start = 0
        for place, trunk_length in enumerate(self.trunks):
            trunk = slice(start, start + trunk_length)
            if trunk_length == 0:
                raise InputError(f"sequence {place} of the pack is empty: there is no token to read")
            start = trunk.stop
            if self.branches is None:
                yield trunk, None
                continue
            for length in self.branches[place]:
                if length == 0:
                    raise InputError(f"sequence {place} of the pack has an empty branch: there is no token to read")
                yield trunk, slice(start, start + length)
                start += length


def pack(sequences: Sequence[TokenIds]) -> Packed:
    """Put sequences one after the other, in their order; positions count from 0 in each.

    Short sequences of equal length beside each other are computed as one batch where no variable-length kernel applies:
    sort by length.
    """
    arrays = [as_ids(sequence, place) for place, sequence in enumerate(sequences)]
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    ends = lengths.cumsum()
    total = int(ends[-1]) if arrays else 0
    positions = np.arange(total) - np.repeat(ends - lengths, lengths)
    return Packed(
        input_ids=torch.from_numpy(np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)),
        lengths=tuple(lengths.tolist()),
        max_seqlen=int(lengths.max(initial=0)),
    )


def pack_branches(trunks: Sequence[TokenIds], branches: Sequence[Sequence[TokenIds]]) -> Packed:
    """Put sequences one after the other, each a trunk and the branches that go on from it.

    Each branch is computed as if it alone followed its trunk, and the trunk is computed once. Raises InputError for an
    empty trunk.
    """
    sequences: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    positions: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for place, (trunk, own) in enumerate(zip(trunks, branches, strict=True)):
        arrays = [as_ids(each, place) for each in (trunk, *own)]
        start = len(arrays[0])
        if start == 0:
            raise InputError(f"trunk {place} is empty: its branches have nothing to follow")
        sequences.append(np.concatenate(arrays))
        counted = [np.arange(start), *(np.arange(start, start + len(array)) for array in arrays[1:])]
        positions.append(np.concatenate(counted))
    packed = pack(sequences)
    return replace(
        packed,
        position_ids=torch.from_numpy(np.concatenate(positions) if positions else np.empty(0, dtype=np.int64)),
        branches=tuple(tuple(len(branch) for branch in own) for own in branches),
    )


def as_ids(sequence: TokenIds, place: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The ids of one sequence as an array; raises InputError, which names its place, for what is none."""
    array = sequence.numpy(force=True) if isinstance(sequence, Tensor) else np.asarray(sequence)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"sequence {place} is {array.dtype} of shape {array.shape}: token ids are one row of integers")
    return array.astype(np.int64, copy=False)


class PackedAttention:
    """Causal attention inside each sequence of a pack, for all layers of one forward pass."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._branching: tuple[_Branching, ...] = ()
        if packed.branches is None:
            self._runs = _equal_length_runs(packed.lengths)
        else:
            self._branching = tuple(_branchings(packed.trunks, packed.branches, packed.input_ids.device))
            self._runs = tuple((each.first, 1, each.trunk) for each in self._branching)

    def __call__(self, projected: Tensor, layer: GPT2Attention) -> Tensor:
        """Queries, keys and values side by side, [T, 3 * D], to mixed values [T, D]; scores are kept in float32."""
        tokens, width = projected.shape[0], projected.shape[1] // 3
        heads, scale = projected.view(tokens, 3, layer.n_head, width // layer.n_head), layer.scale
        if not self._branching and _varlen_takes(heads) and (kernel := varlen_kernel()) is not None:
            ends, longest = self._packed.cu_seqlens, self._packed.max_seqlen
            mixed = kernel(*heads.unbind(1), ends, ends, longest, longest, scale=scale, window_size=(-1, 0))
        else:
            mixed = self._run_by_run(heads, scale)
        return mixed.view(tokens, width)

    def _run_by_run(self, heads: Tensor, scale: float) -> Tensor:
        """[T, 3, H, K] -> [T, H, K], where no kernel takes variable lengths."""
        mixed = torch.empty_like(heads[:, 0], memory_format=torch.contiguous_format)
        in_blocks = heads.device.type == "cpu" and heads.dtype == torch.float32
        scratch = heads.new_empty(_BLOCK * self._packed.max_seqlen * heads.shape[2]) if in_blocks else None
        for first, rows, length in self._runs:
            run = slice(first, first + rows * length)
            run_heads = heads[run].view(rows, length, *heads.shape[1:])
            run_mixed = mixed[run].view(rows, length, *mixed.shape[1:])
            if scratch is not None and length >= _BLOCK // 2:
                for row in range(rows):
                    _attend_in_blocks(run_heads[row], run_mixed[row], scale, scratch)
            else:
                query, key, value = run_heads.permute(2, 0, 3, 1, 4)
                out = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1, scale=scale)
                run_mixed.copy_(out.transpose(1, 2))
        for each in self._branching:
            _attend_from_branches(heads, mixed, each, scale)
        return mixed


def _attend_in_blocks(heads: Tensor, mixed: Tensor, scale: float, scratch: Tensor) -> None:
    """Causal attention of one sequence, [L, 3, H, K] to mixed [L, H, K], some queries at a time.

    On a CPU, batched products over all heads take two thirds of the time of torch's fused kernel, whose products are
    tiny; scratch holds the scores of one block.
    """
    length, _, n_head, _ = heads.shape
    query, key, value = heads.permute(1, 2, 0, 3)
    future = heads.new_full((_BLOCK, _BLOCK), -torch.inf).triu_(1)
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        rows = end - start
        scores = scratch[: n_head * rows * end].view(n_head, rows, end)
        seen_keys = key[:, :end].transpose(1, 2)
        torch.baddbmm(scores, query[:, start:end], seen_keys, beta=0, alpha=scale, out=scores)
        scores[:, :, start:] += future[:rows, :rows]
        torch.softmax(scores, dim=-1, out=scores)
        mixed[start:end] = torch.bmm(scores, value[:, :end]).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class _Branching:
    """One sequence that branches: its first token, the length of its trunk, what each branch token sees.

    seen is boolean [tokens of the branches, tokens of the sequence].
    """

    first: int
    trunk: int
    seen: Tensor


def _branchings(
    trunks: tuple[int, ...], branches: tuple[tuple[int, ...], ...], device: torch.device
) -> Iterator[_Branching]:
    first = 0
    for trunk, lengths in zip(trunks, branches, strict=True):
        total = sum(lengths)
        seen = torch.zeros(total, trunk + total, dtype=torch.bool)
        seen[:, :trunk] = True
        start = 0
        for length in lengths:
            seen[start : start + length, trunk + start : trunk + start + length] = True
            start += length
        yield _Branching(first, trunk, seen.tril_(trunk).to(device))
        first += trunk + total


def _attend_from_branches(heads: Tensor, mixed: Tensor, branching: _Branching, scale: float) -> None:
    """Attention of the branches' tokens of one sequence, from heads [T, 3, H, K] into mixed [T, H, K]."""
    own, total = branching.seen.shape
    if own == 0:
        return
    end = branching.first + total
    query, key, value = heads[branching.first : end].permute(1, 2, 0, 3)
    out = F.scaled_dot_product_attention(query[None, :, -own:], key[None], value[None], branching.seen, scale=scale)
    mixed[end - own : end] = out[0].transpose(0, 1)


def _equal_length_runs(lengths: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Neighbours of equal length: first token, number of sequences, length of each; empty sequences are left out."""
    runs, first = [], 0
    for length, group in groupby(lengths):
        rows = len(list(group))
        if length:
            runs.append((first, rows, length))
        first += rows * length
    return tuple(runs)


def _varlen_takes(heads: Tensor) -> bool:
    """Whether flash attention computes such heads: half precision, on Ampere or newer."""
    size = heads.shape[-1]
    return (
        heads.is_cuda
        and len(heads) > 0
        and heads.dtype in (torch.float16, torch.bfloat16)
        and size % 8 == 0
        and size <= 256
        and torch.cuda.get_device_capability(heads.device) >= (8, 0)
    )
