"""One block of GPT-2, over a padded batch or over a pack.

Shapes: B batch, L positions, T tokens of a pack, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from gpt2model import onednn
from gpt2model.attention import AttentionImplementation, AttentionMask, GPT2Attention
from gpt2model.cache import Cache
from gpt2model.config import GPT2Config
from gpt2model.layers import GPT2MLP, activated_projection, add_projected, inner_width, project

Attend = Callable[[Tensor, GPT2Attention], Tensor]
"""From queries, keys and values side by side, [T, 3 * D], and the layer they are of, to mixed values [T, D]."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory that the blocks of one packed pass share, where torch.mm fills it; elsewhere there is none."""

    qkv: Tensor | None
    inner: Tensor | None

    @classmethod
    def beside(cls, hidden: Tensor, config: GPT2Config) -> Scratch:
        if hidden.device.type != "cpu" or onednn.takes(hidden):
            return cls(None, None)
        tokens = hidden.shape[0]
        return cls(hidden.new_empty(tokens, 3 * config.n_embd), hidden.new_empty(tokens, inner_width(config)))


class GPT2Block(nn.Module):
    """Attention, attention to an encoder where the config adds it, and the feed-forward layer, each with a residual."""

    def __init__(self, config: GPT2Config, layer: int, implementation: AttentionImplementation) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer, implementation, cross=False)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if config.add_cross_attention:
            self.crossattention = GPT2Attention(config, layer, implementation, cross=True)
            self.ln_cross_attn = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(
        self,
        hidden: Tensor,
        mask: AttentionMask,
        *,
        cache: Cache | None = None,
        encoder_states: Tensor | None = None,
        encoder_mask: AttentionMask | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[B, L, D] -> [B, L, D], the attention weights and the cross-attention weights where there are any."""
        attended, weights = self.attn(self.ln_1(hidden), mask, cache=cache, need_weights=need_weights)
        hidden = hidden + attended
        cross_weights = None
        if encoder_states is not None:
            attended, cross_weights = self.crossattention(
                self.ln_cross_attn(hidden),
                encoder_mask,
                cache=cache,
                encoder_states=encoder_states,
                need_weights=need_weights,
            )
            hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden)), weights, cross_weights

    def forward_tokens(self, hidden: Tensor, attend: Attend, scratch: Scratch, only: Tensor | None = None) -> Tensor:
        """[T, D] -> [T, D] for T tokens of any sequences; writes over its input and leaves dropout out.

        Of the places `only` [M] alone: [M, D]; keys and values are those of all tokens.
        """
        attn, mlp = self.attn, self.mlp
        mixed = attend(project(attn.c_attn, self.ln_1(hidden), scratch.qkv), attn)
        if only is not None:
            hidden, mixed = hidden[only], mixed[only]
        hidden = add_projected(hidden, attn.c_proj, mixed)
        fitting = None if scratch.inner is None else scratch.inner[: len(hidden)]
        inner = activated_projection(mlp.act, mlp.c_fc, self.ln_2(hidden), fitting)
        return add_projected(hidden, mlp.c_proj, inner)
