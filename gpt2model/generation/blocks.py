"""The engine's key/value cache: blocks of a few positions, allocated once and lent to sequences.

Shapes: N blocks, H heads, S positions of a block, K size of one head, T tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2model.cache import KeyValue
from gpt2model.config import GPT2Config

BLOCK = 32
"""Positions of a block: a sequence wastes half of one on average, and costs a few operations each."""


class BlockPool:
    """Keys and values of all layers in `blocks` blocks, and who may have which.

    Blocks are promised before they are taken, so that a sequence that has begun is never out of them. The lowest free
    block is taken first: what is in use lies close together, and attention may run over the pool as it lies.
    """

    def __init__(self, config: GPT2Config, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        # One more, behind the others, for what nobody reads.
        shape = (config.n_layer, blocks + 1, config.n_head, BLOCK, config.n_embd // config.n_head)
        self.blocks = blocks
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._free = list(range(blocks))
        self._promised = 0
        self._unsound: set[int] = set()

    @property
    def unpromised(self) -> int:
        """Blocks that may be promised."""
        return len(self._free) - self._promised

    @property
    def taken(self) -> int:
        """Blocks that sequences hold."""
        return self.blocks - len(self._free)

    def promise(self, count: int) -> None:
        """Set so many blocks aside."""
        assert count <= self.unpromised
        self._promised += count

    def release(self, count: int) -> None:
        """Take back the promise of so many blocks."""
        self._promised -= count

    def take(self) -> int:
        """One of the blocks that were promised."""
        self._promised -= 1
        block = heapq.heappop(self._free)
        if block in self._unsound:
            self._unsound.remove(block)
            self._keys[:, block] = 0
            self._values[:, block] = 0
        return block

    def give_back(self, blocks: Sequence[int], *, sound: bool = True) -> None:
        """Blocks that nobody reads any more; what is not sound in them must not be read by the next owner.

        Positions behind a sequence's end have no weight in attention, but no weight times NaN is NaN.
        """
        for block in blocks:
            heapq.heappush(self._free, block)
        if not sound:
            self._unsound.update(blocks)

    def write(self, layer: int, blocks: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keys and values [T, H, K] of a layer to places [T] in blocks [T]."""
        self._keys[layer][blocks, :, offsets] = keys
        self._values[layer][blocks, :, offsets] = values

    def first(self, layer: int, blocks: int) -> KeyValue:
        """Views of the keys and values, [blocks, H, S, K] each, in the first blocks of the pool."""
        return self._keys[layer, :blocks], self._values[layer, :blocks]

    def joined(self, layer: int, blocks: Tensor, length: int) -> KeyValue:
        """A copy of the first `length` keys and values that the blocks hold in this order: [H, length, K] each."""
        keys, values = (pool[layer][blocks].transpose(0, 1).flatten(1, 2) for pool in (self._keys, self._values))
        return keys[:, :length], values[:, :length]


def blocks_for(positions: int) -> int:
    """Blocks that hold so many positions."""
    return -(-positions // BLOCK)


def bytes_per_block(config: GPT2Config, dtype: torch.dtype) -> int:
    """Memory of one block in all layers."""
    return 2 * config.n_layer * config.n_embd * BLOCK * dtype.itemsize
