"""Models with a head on GPT2Model.

Shapes: B batch (any leading dimensions), L positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2model.attention import AttentionImplementation
from gpt2model.cache import Cache
from gpt2model.config import GPT2Config
from gpt2model.errors import InputError
from gpt2model.model import GPT2Model, GPT2PreTrainedModel
from gpt2model.outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions

IGNORED_LABEL = -100


class ModelInputs(TypedDict, total=False):
    """What a head hands on to GPT2Model.forward, which explains it."""

    past_key_values: Cache | None
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None
    encoder_hidden_states: Tensor | None
    encoder_attention_mask: Tensor | None
    use_cache: bool | None
    output_attentions: bool | None
    output_hidden_states: bool | None


class GPT2LMHeadModel(GPT2PreTrainedModel):
    """GPT2Model and the language-model head: logits of the next token at every position."""

    def __init__(self, config: GPT2Config, *, attn_implementation: AttentionImplementation = "sdpa") -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config, attn_implementation=attn_implementation)
        # On "meta" nothing is allocated or drawn: the weight is the embedding's, or drawn in GPT-2's scheme below.
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False, device="meta")
        if config.tie_word_embeddings:
            self.tie_weights()
        else:
            weight = torch.empty(config.vocab_size, config.n_embd)
            self.lm_head.weight = nn.Parameter(weight.normal_(std=config.initializer_range))

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Logits [B, L, V] for the input, and the loss where labels are given; the other inputs are GPT2Model's.

        labels [B, L] are the input's own ids: they are shifted here, -100 is left out, the loss is the mean in float32.
        logits_to_keep is a number of last positions (0: all), a 1-D tensor of positions, a 2-D one with positions for
        each row, or a boolean [B, L], which gives logits [kept, V]; labels are then those of the kept positions.

        Raises InputError for arguments that contradict each other, the config or past_key_values.
        """
        outputs: BaseModelOutputWithPastAndCrossAttentions = self.transformer(input_ids, return_dict=True, **inputs)
        logits = self.lm_head(kept_positions(outputs.last_hidden_state, logits_to_keep))
        output = CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else next_token_loss(logits, labels),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )
        as_record = self.config.return_dict if return_dict is None else return_dict
        return output if as_record else output.to_tuple()


def kept_positions(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The positions of hidden states [B, L, D] whose logits are wanted; see GPT2LMHeadModel.forward."""
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise InputError(f"logits_to_keep={logits_to_keep}: give 0 for all positions, or how many of the last")
        return hidden[..., -logits_to_keep:, :]
    if logits_to_keep.ndim == 2 and logits_to_keep.dtype == torch.bool:
        return hidden[logits_to_keep]
    if logits_to_keep.ndim == 2:
        return hidden.take_along_dim(logits_to_keep[..., None], dim=-2)
    return hidden[..., logits_to_keep, :]


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy, float32, of logits [B, L, V] against the labels [B, L] one position further on."""
    if labels.shape != logits.shape[:-1]:
        raise InputError(
            f"labels of shape {tuple(labels.shape)}: logits are kept for {tuple(logits.shape[:-1])}; they must agree"
        )
    following = F.pad(labels[..., 1:], (0, 1), value=IGNORED_LABEL)
    return F.cross_entropy(
        logits.flatten(0, -2).float(), following.flatten().to(logits.device), ignore_index=IGNORED_LABEL
    )
