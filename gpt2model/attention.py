"""Attention of GPT-2: what a position may see, the kernels, and the module around them.

Shapes: B batch, L query positions, S key positions, H heads, K size of one head, D width = H * K.
Queries, keys and values are [B, H, L or S, K]; an attention mask broadcasts to [B, H, L, S].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2model.cache import Cache, KeyValue
from gpt2model.config import GPT2Config
from gpt2model.errors import ConfigError, InputError
from gpt2model.layers import Conv1D

AttentionImplementation = Literal["eager", "sdpa"]


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """Which keys each query sees: all, those up to its own place (`causal`, where L equals S), or what `allowed` says.

    `allowed` is boolean (True: seen) or floating (added to the scores); with it, `causal` is False.
    """

    allowed: Tensor | None = None
    causal: bool = False

    def added_to(self, scores: Tensor) -> Tensor:
        """Scores [B, H, L, S] with the least finite number where a key is not seen."""
        allowed = self.allowed
        if self.causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if allowed is None:
            return scores
        if allowed.dtype == torch.bool:
            return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        return scores + allowed


def check_implementation(name: str) -> AttentionImplementation:
    """`name`, if it is an attention implementation; raises ConfigError otherwise."""
    for known in get_args(AttentionImplementation):
        if name == known:
            return known  # type: ignore[no-any-return]  # get_args is untyped
    raise ConfigError(f"attn_implementation={name!r}: choose one of {', '.join(get_args(AttentionImplementation))}")


def self_attention_mask(
    attention_mask: Tensor | None,
    segments: Tensor | None,
    *,
    batch: int,
    length: int,
    past: int,
    device: torch.device,
) -> AttentionMask:
    """The mask of causal attention for `length` new positions after `past` ones.

    attention_mask is 2-D, [B, past + L] with 0 for padding, or 4-D (boolean or added to the scores) and then used as it
    is, causality included. segments, [B, L], keeps positions of different segments apart; it goes with past = 0.
    """
    total = past + length
    if attention_mask is not None and attention_mask.ndim == 4:
        return AttentionMask(_ready_mask(attention_mask, batch, length, total, device))
    padding = _padding_mask(attention_mask, batch, total, device)
    if padding is None and segments is None and (past == 0 or length == 1):
        return AttentionMask(causal=length > 1)
    allowed = torch.ones(length, total, dtype=torch.bool, device=device).tril(past)[None, None]
    if segments is not None:
        allowed = allowed & (segments[:, None, :, None] == segments[:, None, None, :])
    if padding is not None:
        allowed = allowed & padding[:, None, None, :]
    return AttentionMask(allowed)


def cross_attention_mask(
    attention_mask: Tensor | None, *, batch: int, length: int, total: int, device: torch.device
) -> AttentionMask:
    """The mask of attention to an encoder's `total` positions; attention_mask is 2-D, [B, S], or 4-D as above."""
    if attention_mask is not None and attention_mask.ndim == 4:
        return AttentionMask(_ready_mask(attention_mask, batch, length, total, device))
    padding = _padding_mask(attention_mask, batch, total, device)
    return AttentionMask(None if padding is None else padding[:, None, None, :])


def _padding_mask(attention_mask: Tensor | None, batch: int, total: int, device: torch.device) -> Tensor | None:
    """A boolean [B, S], or None where nothing is padding: then the faster kernels apply."""
    if attention_mask is None:
        return None
    if attention_mask.numel() != batch * total:
        raise InputError(
            f"attention_mask of shape {tuple(attention_mask.shape)}: {batch} rows of {total} positions are needed"
            " (those in past_key_values count)"
        )
    padding = attention_mask.reshape(batch, total).to(device=device, dtype=torch.bool)
    return None if bool(padding.all()) else padding


def _ready_mask(mask: Tensor, batch: int, length: int, total: int, device: torch.device) -> Tensor:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise InputError(f"a 4-D attention_mask is boolean or added to the scores, not {mask.dtype}: convert it")
    if mask.shape[0] not in (1, batch) or mask.shape[2] not in (1, length) or mask.shape[3] != total:
        raise InputError(
            f"a 4-D attention_mask of shape {tuple(mask.shape)} does not fit [{batch}, heads, {length}, {total}]"
        )
    return mask.to(device)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float, upcast: bool
) -> tuple[Tensor, Tensor]:
    """Attention written out, with its weights [B, H, L, S]; `upcast` computes scores and weights in float32."""
    if upcast:
        query, key = query.float(), key.float()
    scores = mask.added_to(query @ key.transpose(-1, -2) * scale)
    weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
    return weights @ value, weights


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> Tensor:
    """Attention by torch's fused kernels, all of which keep scores and weights in float32 whatever the dtype."""
    allowed = mask.allowed
    if allowed is not None and allowed.dtype != torch.bool:
        allowed = allowed.to(query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=dropout, is_causal=mask.causal, scale=scale
    )


class GPT2Attention(nn.Module):
    """Self-attention, or attention to an encoder's states, of one block."""

    def __init__(self, config: GPT2Config, layer: int, implementation: AttentionImplementation, *, cross: bool) -> None:
        super().__init__()
        self.layer = layer
        self.implementation = implementation
        self.n_head = config.n_head
        self.upcast = config.reorder_and_upcast_attn
        self.scale = attention_scale(config, layer)
        self.c_attn = Conv1D(config.n_embd, (2 if cross else 3) * config.n_embd)
        if cross:
            self.q_attn = Conv1D(config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden: Tensor,
        mask: AttentionMask,
        *,
        cache: Cache | None = None,
        encoder_states: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, L, D] -> [B, L, D], and the weights [B, H, L, S] where they are needed or computed anyway."""
        if encoder_states is None:
            query, key, value = self._heads(self.c_attn(hidden), 3)
            if cache is not None:
                key, value = cache.update(key, value, self.layer)
        else:
            (query,) = self._heads(self.q_attn(hidden), 1)
            key, value = self._encoded(encoder_states, cache)
        mixed, weights = self._attend(query, key, value, mask, need_weights)
        out: Tensor = self.resid_dropout(self.c_proj(mixed.transpose(1, 2).flatten(-2)))
        return out, weights

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, L, parts * D] -> that many views [B, H, L, K]."""
        batch, length, width = projected.shape
        heads = projected.view(batch, length, parts, self.n_head, width // (parts * self.n_head))
        return tuple(heads.permute(2, 0, 3, 1, 4))

    def _encoded(self, encoder_states: Tensor, cache: Cache | None) -> KeyValue:
        """Keys and values of the encoder's states: computed once where there is a cache."""
        stored = None if cache is None else cache.cross(self.layer)
        if stored is not None:
            return stored
        key, value = self._heads(self.c_attn(encoder_states), 2)
        if cache is not None:
            cache.store_cross(key, value, self.layer)
        return key, value

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.attn_dropout.p if self.training else 0.0
        if need_weights or self.implementation == "eager":
            return eager_attention(query, key, value, mask, scale=self.scale, dropout=dropout, upcast=self.upcast)
        return sdpa_attention(query, key, value, mask, scale=self.scale, dropout=dropout), None


def attention_scale(config: GPT2Config, layer: int) -> float:
    """What the products of queries and keys are multiplied by."""
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale
