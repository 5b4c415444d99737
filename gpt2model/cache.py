"""Key/value caches: what the attention of earlier tokens left behind.

Shapes: B batch, H heads, L new positions, S positions held, K size of one head.
Both caches number a token by its place in the cache, padding included, as transformers does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gpt2model.config import GPT2Config
from gpt2model.errors import InputError

KeyValue = tuple[Tensor, Tensor]


class Cache(ABC):
    """What GPT2Model asks of a cache; DynamicCache and StaticCache differ in where they keep self-attention's keys."""

    def __init__(self) -> None:
        self._cross: dict[int, KeyValue] = {}

    @abstractmethod
    def update(self, key: Tensor, value: Tensor, layer: int) -> KeyValue:
        """Append keys and values, both [B, H, L, K], to a layer; returns all it holds, both [B, H, S, K]."""

    @abstractmethod
    def get_seq_length(self) -> int:
        """Positions held, padding included."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Keep the first `length` positions; raises InputError where fewer are held."""

    @abstractmethod
    def reorder(self, beam_idx: Tensor) -> None:
        """Make row i what row beam_idx[i] was; beam_idx is [B]."""

    def cross(self, layer: int) -> KeyValue | None:
        """The keys and values of the encoder's states for a layer, both [B, H, S, K], once they were stored."""
        return self._cross.get(layer)

    def store_cross(self, key: Tensor, value: Tensor, layer: int) -> None:
        """Keep the encoder's keys and values for a layer, so that later steps need not compute them again."""
        self._cross[layer] = key, value

    def _reorder_cross(self, beam_idx: Tensor) -> None:
        self._cross = {layer: _select(pair, beam_idx) for layer, pair in self._cross.items()}

    def _check_crop(self, length: int) -> None:
        held = self.get_seq_length()
        if not 0 <= length <= held:
            raise InputError(f"crop({length}): the cache holds {held} positions; give a length from 0 to {held}")


class DynamicCache(Cache):
    """A cache that grows with what it is given; gradients flow through it."""

    def __init__(self) -> None:
        super().__init__()
        self._layers: dict[int, KeyValue] = {}

    def update(self, key: Tensor, value: Tensor, layer: int) -> KeyValue:
        if layer in self._layers:
            past_key, past_value = self._layers[layer]
            _check_rows(past_key.shape[0], key.shape[0])
            key, value = torch.cat((past_key, key), dim=-2), torch.cat((past_value, value), dim=-2)
        self._layers[layer] = key, value
        return key, value

    def get_seq_length(self) -> int:
        return self._layers[0][0].shape[-2] if self._layers else 0

    def crop(self, length: int) -> None:
        self._check_crop(length)
        self._layers = {layer: (k[..., :length, :], v[..., :length, :]) for layer, (k, v) in self._layers.items()}

    def reorder(self, beam_idx: Tensor) -> None:
        self._layers = {layer: _select(pair, beam_idx) for layer, pair in self._layers.items()}
        self._reorder_cross(beam_idx)


class StaticCache(Cache):
    """A cache allocated once for `max_length` positions, written in place: nothing is copied when a token is added.

    Takes 2 * n_layer * n_embd * batch_size * max_length numbers. For inference only.
    """

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, max_length, head_size)
        self.max_length = max_length
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._lengths = [0] * config.n_layer

    def update(self, key: Tensor, value: Tensor, layer: int) -> KeyValue:
        if key.requires_grad:
            raise InputError("StaticCache keeps no gradients: run under torch.inference_mode(), or take DynamicCache")
        _check_rows(self._keys.shape[1], key.shape[0])
        start = self._lengths[layer]
        end = start + key.shape[-2]
        if end > self.max_length:
            raise InputError(
                f"StaticCache holds {self.max_length} positions, {end} are needed: make it with a larger max_length"
            )
        self._keys[layer, :, :, start:end] = key
        self._values[layer, :, :, start:end] = value
        self._lengths[layer] = end
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def get_seq_length(self) -> int:
        return self._lengths[0]

    def crop(self, length: int) -> None:
        self._check_crop(length)
        self._lengths = [length] * len(self._lengths)

    def reorder(self, beam_idx: Tensor) -> None:
        held = self.get_seq_length()
        index = beam_idx.to(self._keys.device)
        for buffer in (self._keys, self._values):
            buffer[..., :held, :] = buffer[..., :held, :].index_select(1, index)
        self._reorder_cross(beam_idx)


def _select(pair: KeyValue, rows: Tensor) -> KeyValue:
    index = rows.to(pair[0].device)
    return pair[0].index_select(0, index), pair[1].index_select(0, index)


def _check_rows(held: int, given: int) -> None:
    if held != given:
        raise InputError(f"past_key_values holds {held} rows, the input has {given}: they must be the same batch")
