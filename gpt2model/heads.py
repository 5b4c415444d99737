"""Models that predict the next token: the language-model head, alone and beside a multiple-choice head.

Shapes: B batch (any leading dimensions), L positions, T tokens of a pack, C choices, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2model.attention import AttentionImplementation
from gpt2model.cache import Cache
from gpt2model.config import GPT2Config
from gpt2model.errors import InputError
from gpt2model.generation.generate import generate
from gpt2model.generation.transitions import compute_transition_scores
from gpt2model.layers import LanguageModelHead
from gpt2model.model import GPT2Model, check_ids
from gpt2model.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    GPT2DoubleHeadsModelOutput,
)
from gpt2model.packing import Packed
from gpt2model.pretrained import GPT2PreTrainedModel
from gpt2model.summary import GPT2SequenceSummary

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

    generate = generate
    compute_transition_scores = staticmethod(compute_transition_scores)

    def __init__(self, config: GPT2Config, *, attn_implementation: AttentionImplementation = "sdpa") -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config, attn_implementation=attn_implementation)
        self.lm_head = LanguageModelHead(config)
        self.tie_weights()

    def get_output_embeddings(self) -> LanguageModelHead:
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
        return self.as_asked(output, return_dict)


class GPT2DoubleHeadsModel(GPT2PreTrainedModel):
    """A language-model head, and a head that scores each of several choices by one vector of its hidden states.

    As in transformers, the model's config says num_labels=1: one score a choice.
    """

    generate = generate
    compute_transition_scores = staticmethod(compute_transition_scores)

    def __init__(self, config: GPT2Config, *, attn_implementation: AttentionImplementation = "sdpa") -> None:
        super().__init__(config if config.num_labels == 1 else config.replace(num_labels=1))
        self.transformer = GPT2Model(self.config, attn_implementation=attn_implementation)
        self.lm_head = LanguageModelHead(self.config)
        self.multiple_choice_head = GPT2SequenceSummary(self.config)
        self.tie_weights()

    def get_output_embeddings(self) -> LanguageModelHead:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        mc_token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mc_labels: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> GPT2DoubleHeadsModelOutput | tuple[Any, ...]:
        """Next-token logits [B, C, L, V] and choice logits [B, C] for inputs [B, C, L]; the others are GPT2Model's.

        mc_token_ids [B, C] are the positions that summary_type "cls_index" reads, by default the last. labels
        [B, C, L] are as in GPT2LMHeadModel, mc_labels [B] the right choices; both losses are means.

        Raises InputError for arguments that contradict each other, the config or past_key_values.
        """
        outputs: BaseModelOutputWithPastAndCrossAttentions = self.transformer(input_ids, return_dict=True, **inputs)
        hidden = outputs.last_hidden_state
        logits = self.lm_head(hidden)
        mc_logits = self.multiple_choice_head(hidden, mc_token_ids).squeeze(-1)
        output = GPT2DoubleHeadsModelOutput(
            loss=None if labels is None else next_token_loss(logits, labels),
            mc_loss=None if mc_labels is None else class_loss(mc_logits.float(), mc_labels, "mc_labels", "choices"),
            logits=logits,
            mc_logits=mc_logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self.as_asked(output, return_dict)

    @torch.no_grad()
    def choice_logits(self, packed: Packed) -> Tensor:
        """Choice logits of every branch of a pack, or of every sequence where it has none: [branches]."""
        return self.multiple_choice_head.of_packed(self.transformer.forward_packed(packed), packed).squeeze(-1)


def class_loss(logits: Tensor, labels: Tensor, name: str, classes: str) -> Tensor:
    """Mean cross entropy, in the logits' dtype, of logits [..., K] against as many labels as they have rows.

    -100 is left out. Raises InputError, which calls the labels and their number by these names, for labels that do not
    fit.
    """
    number = logits.shape[-1]
    if labels.numel() * number != logits.numel():
        raise InputError(
            f"{name} of shape {tuple(labels.shape)}: logits of shape {tuple(logits.shape)} need one for each row of "
            f"{number}"
        )
    wanted = labels.to(logits.device).flatten()
    check_ids(wanted.where(wanted != IGNORED_LABEL, 0), number, name, classes)
    return F.cross_entropy(logits.reshape(-1, number), wanted.long(), ignore_index=IGNORED_LABEL)


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
    return class_loss(logits.float(), following, "labels", "vocab_size")
