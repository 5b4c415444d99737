"""GPT2Model: token ids or embeddings to hidden states, over padded batches and over packs.

Shapes: B batch, L new positions, S positions with the past, D width, V vocabulary. Inputs may have more leading
dimensions than one: they are flattened into B on the way in and restored on the way out.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2model.attention import (
    AttentionImplementation,
    AttentionMask,
    check_implementation,
    cross_attention_mask,
    self_attention_mask,
)
from gpt2model.block import Attend, GPT2Block, Scratch
from gpt2model.cache import Cache, DynamicCache
from gpt2model.config import GPT2Config
from gpt2model.errors import InputError
from gpt2model.outputs import BaseModelOutputWithPastAndCrossAttentions
from gpt2model.packing import Packed, PackedAttention
from gpt2model.pretrained import GPT2PreTrainedModel


class GPT2Model(GPT2PreTrainedModel):
    """The transformer: token ids or embeddings to hidden states."""

    def __init__(self, config: GPT2Config, *, attn_implementation: AttentionImplementation = "sdpa") -> None:
        super().__init__(config)
        implementation = check_implementation(attn_implementation)
        self.wte = _embedding(config.vocab_size, config.n_embd)
        self.wpe = _embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPT2Block(config, layer, implementation) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Hidden states of the input, which is either `input_ids` [..., L] or `inputs_embeds` [..., L, D].

        attention_mask is [..., S] with 0 for padding, or 4-D and then used as it is: True or 0 where a key is seen.
        position_ids [..., L] default to counting from the length of past_key_values, padding included; where they are
        given without mask and cache, a position that does not follow the one before it starts a sequence of its own.
        token_type_ids [..., L] are looked up in the token embedding. encoder_hidden_states [B, S', D] need a config
        with add_cross_attention. Attention weights are computed eagerly for the call that wants them.

        Raises InputError for arguments that contradict each other, the config or past_key_values.
        """
        config = self.config
        caching = _given(use_cache, config.use_cache)
        cache = _cache(past_key_values, create=caching)
        past = 0 if cache is None else cache.get_seq_length()
        embeds, leading = self._token_embeds(input_ids, inputs_embeds)
        batch, length, _ = embeds.shape
        positions = self._positions(position_ids, past, batch, length)
        hidden = embeds + self.wpe(positions)
        if token_type_ids is not None:
            hidden = hidden + self._lookup(_rows(token_type_ids, "token_type_ids", batch, length), "token_type_ids")
        alone = position_ids is not None and attention_mask is None and cache is None
        segments = _segments(positions) if alone else None
        mask = self_attention_mask(
            attention_mask, segments, batch=batch, length=length, past=past, device=hidden.device
        )
        encoder_mask = self._encoder_mask(encoder_hidden_states, encoder_attention_mask, batch, length)
        run = _Run(
            need_weights=_given(output_attentions, config.output_attentions),
            keep_hidden=_given(output_hidden_states, config.output_hidden_states),
        )
        hidden = self.drop(hidden)
        for block in self.h:
            run.enter(hidden)
            hidden, weights, cross_weights = block(
                hidden,
                mask,
                cache=cache,
                encoder_states=encoder_hidden_states,
                encoder_mask=encoder_mask,
                need_weights=run.need_weights,
            )
            run.leave(weights, cross_weights)
        last = self.ln_f(hidden).unflatten(0, leading)
        output = run.output(last, cache if caching else None)
        return self.as_asked(output, return_dict)

    @torch.no_grad()
    def forward_packed(self, packed: Packed, *, layer: int = -1, only: Tensor | None = None) -> Tensor:
        """Hidden states [T, D] of a pack, by default after the last layer norm: each sequence sees itself alone.

        Equals forward on each sequence, without padding and without masks; on a branch, forward on its trunk and the
        branch behind it. `layer` counts as in forward's hidden_states: 0 is what enters the first block, -1 or n_layer
        the last hidden state; blocks beyond it are not computed. Of the places `only` [M] alone it gives [M, D], and
        spares the last block the others. For inference: no gradients, no dropout, no cross attention.

        Raises InputError for a sequence longer than n_positions, an id outside the vocabulary, a layer there isn't.
        """
        depth = self._depth(layer)
        longest = max(packed.depths, default=0)
        if longest > self.config.n_positions:
            raise InputError(
                f"sequence {packed.depths.index(longest)} of the pack has {longest} tokens,"
                f" n_positions is {self.config.n_positions}: shorten it, or slide a window over it"
            )
        hidden = self._through(packed.input_ids, packed.position_ids, PackedAttention(packed), depth, only)
        last: Tensor = self.ln_f(hidden) if depth == self.config.n_layer else hidden
        return last

    @torch.no_grad()
    def forward_tokens(
        self, input_ids: Tensor, position_ids: Tensor, attend: Attend, only: Tensor | None = None
    ) -> Tensor:
        """Hidden states [T, D], after the last layer norm, of tokens [T] at positions [T]; `attend` mixes them.

        For inference, and with `only`, as forward_packed. Raises InputError for an id outside the vocabulary.
        """
        last: Tensor = self.ln_f(self._through(input_ids, position_ids, attend, self.config.n_layer, only))
        return last

    def _through(
        self, input_ids: Tensor, position_ids: Tensor, attend: Attend, depth: int, only: Tensor | None
    ) -> Tensor:
        """What comes out of the first `depth` blocks, [T, D], or [M, D] at the places `only`."""
        hidden = self._lookup(input_ids, "input_ids").add_(self.wpe(position_ids))
        scratch = Scratch.beside(hidden, self.config)
        early = only if depth and only is not None and len(only) < len(hidden) else None
        for number, block in enumerate(cast("list[GPT2Block]", self.h[:depth]), 1):
            hidden = block.forward_tokens(hidden, attend, scratch, early if number == depth else None)
        return hidden if only is None or early is not None else hidden[only]

    def _depth(self, layer: int) -> int:
        """How many blocks lie before the hidden states of that number."""
        layers = self.config.n_layer + 1
        if not -layers <= layer < layers:
            raise InputError(f"layer={layer}: the model has hidden states {-layers} to {layers - 1}")
        return layer % layers

    def _token_embeds(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[Tensor, torch.Size]:
        """Embeddings [B, L, D] of the one input that was given, and the leading dimensions that B stands for."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds, and not both")
        embeds = inputs_embeds if input_ids is None else self._lookup(input_ids, "input_ids")
        assert embeds is not None
        if embeds.ndim < 3 or embeds.shape[-1] != self.config.n_embd or embeds.shape[-2] == 0:
            source, ids = ("inputs_embeds", 0) if input_ids is None else ("input_ids", 1)
            given = tuple(embeds.shape[: embeds.ndim - ids])
            needed = "[batch, length]" if ids else f"[batch, length, {self.config.n_embd}]"
            raise InputError(f"{source} of shape {given}: {needed} is needed, with a length of at least 1")
        return embeds.flatten(0, -3), embeds.shape[:-2]

    def _lookup(self, ids: Tensor, name: str) -> Tensor:
        """Rows of the token embedding: [...] -> [..., D]."""
        check_ids(ids, self.config.vocab_size, name, "vocab_size")
        rows: Tensor = self.wte(ids)
        return rows

    def _positions(self, position_ids: Tensor | None, past: int, batch: int, length: int) -> Tensor:
        """Position ids [1 or B, L]."""
        limit = self.config.n_positions
        if position_ids is not None:
            check_ids(position_ids, limit, "position_ids", "n_positions")
            return _rows(position_ids, "position_ids", batch, length)
        if past + length > limit:
            held = f" after {past} in past_key_values" if past else ""
            raise InputError(
                f"the input has {length} positions{held}, n_positions is {limit}: shorten it, or slide a window over it"
            )
        return torch.arange(past, past + length, device=self.wpe.weight.device)[None]

    def _encoder_mask(
        self, states: Tensor | None, attention_mask: Tensor | None, batch: int, length: int
    ) -> AttentionMask | None:
        if states is None:
            if attention_mask is not None:
                raise InputError("encoder_attention_mask without encoder_hidden_states: give both")
            return None
        if not self.config.add_cross_attention:
            raise InputError("encoder_hidden_states need a model whose config has add_cross_attention=True")
        if states.ndim != 3 or states.shape[0] != batch or states.shape[2] != self.config.n_embd:
            raise InputError(
                f"encoder_hidden_states of shape {tuple(states.shape)}:"
                f" [{batch}, length, {self.config.n_embd}] is needed"
            )
        return cross_attention_mask(
            attention_mask, batch=batch, length=length, total=states.shape[1], device=states.device
        )


class _Run:
    """What one forward pass gathers on its way through the blocks."""

    def __init__(self, *, need_weights: bool, keep_hidden: bool) -> None:
        self.need_weights = need_weights
        self._hidden: list[Tensor] | None = [] if keep_hidden else None
        self._weights: list[Tensor] = []
        self._cross_weights: list[Tensor] = []

    def enter(self, hidden: Tensor) -> None:
        if self._hidden is not None:
            self._hidden.append(hidden)

    def leave(self, weights: Tensor | None, cross_weights: Tensor | None) -> None:
        if self.need_weights and weights is not None:
            self._weights.append(weights)
        if self.need_weights and cross_weights is not None:
            self._cross_weights.append(cross_weights)

    def output(self, last: Tensor, cache: Cache | None) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=last,
            past_key_values=cache,
            hidden_states=None if self._hidden is None else (*self._hidden, last),
            attentions=tuple(self._weights) if self.need_weights else None,
            cross_attentions=tuple(self._cross_weights) if self.need_weights else None,
        )


def check_ids(ids: Tensor, limit: int, name: str, option: str) -> None:
    """Raise InputError for ids that are no integers from 0 to limit - 1; values are looked at on the CPU only.

    On a CUDA device the look would wait for all work queued there, and torch itself asserts on a wrong index.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{name} are {ids.dtype}: they must be torch.int64 or torch.int32")
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= limit:
        wrong = low if low < 0 else high
        raise InputError(f"{name} hold {wrong}, {option} is {limit}: ids run from 0 to {limit - 1}")


def _rows(ids: Tensor, name: str, batch: int, length: int) -> Tensor:
    """Ids [..., L] as [1 or B, L]."""
    if ids.shape[-1:] != (length,) or ids.numel() not in (length, batch * length):
        raise InputError(f"{name} of shape {tuple(ids.shape)}: the input has {batch} rows of {length} positions")
    return ids.reshape(-1, length)


def _cache(past_key_values: Cache | None, *, create: bool) -> Cache | None:
    if past_key_values is None:
        return DynamicCache() if create else None
    if not isinstance(past_key_values, Cache):
        raise InputError(f"past_key_values is a {type(past_key_values).__name__}: give a DynamicCache or a StaticCache")
    return past_key_values


def _segments(positions: Tensor) -> Tensor | None:
    """Numbers the runs of consecutive positions, [1 or B, L]; None where every row is one run."""
    breaks = positions.diff(dim=-1) != 1
    return F.pad(breaks.cumsum(-1), (1, 0)) if bool(breaks.any()) else None


def _embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding whose weights are left to init_weights: torch would draw them once more."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def _given(value: bool | None, default: bool) -> bool:
    return default if value is None else value
