"""Models that label what they read: a whole sequence, each token, or the span that answers a question.

Shapes: B batch, L positions, T tokens of a pack, N sequences of a pack, D width, K labels.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2model.attention import AttentionImplementation
from gpt2model.config import GPT2Config
from gpt2model.errors import InputError
from gpt2model.heads import IGNORED_LABEL, ModelInputs, class_loss
from gpt2model.model import GPT2Model
from gpt2model.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from gpt2model.packing import Packed
from gpt2model.pretrained import GPT2PreTrainedModel

DEFAULT_DROPOUT = 0.1


class GPT2ForSequenceClassification(GPT2PreTrainedModel):
    """One set of logits for a sequence, read from its last token."""

    def __init__(self, config: GPT2Config, *, attn_implementation: AttentionImplementation = "sdpa") -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config, attn_implementation=attn_implementation)
        self.score = _linear(config, config.num_labels, bias=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Logits [B, K] at the last position that attention_mask [B, L] leaves, or the last of all without a mask.

        labels are [B] of class ids, [B, K] of 0 and 1 for a multi-label model, or [B] or [B, K] of numbers for a
        regression. What they are follows from config.problem_type, or, where it is None, from K and their dtype as in
        transformers; the loss is the mean of cross entropy, binary cross entropy or squared error.

        Raises InputError for arguments that contradict each other, the config or past_key_values.
        """
        outputs: BaseModelOutputWithPastAndCrossAttentions = self.transformer(input_ids, return_dict=True, **inputs)
        hidden = outputs.last_hidden_state
        logits = self.score(hidden[torch.arange(len(hidden)), _last_positions(hidden, inputs.get("attention_mask"))])
        output = SequenceClassifierOutputWithPast(
            loss=None if labels is None else _sequence_loss(logits, labels.to(logits.device), self.config),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self.as_asked(output, return_dict)

    @torch.no_grad()
    def forward_packed(self, packed: Packed) -> Tensor:
        """Logits [N, K] of each sequence of a pack; raises InputError for an empty sequence."""
        _, lasts = packed.ends()
        logits: Tensor = self.score(self.transformer.forward_packed(packed, only=lasts))
        return logits


class GPT2ForTokenClassification(GPT2PreTrainedModel):
    """Logits for every token."""

    def __init__(self, config: GPT2Config, *, attn_implementation: AttentionImplementation = "sdpa") -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config, attn_implementation=attn_implementation)
        named = (config.classifier_dropout, config.hidden_dropout, DEFAULT_DROPOUT)
        self.dropout = nn.Dropout(next(each for each in named if each is not None))
        self.classifier = _linear(config, config.num_labels)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Logits [B, L, K]; the loss is the mean cross entropy of labels [B, L], -100 left out.

        Raises InputError for arguments that contradict each other, the config or past_key_values.
        """
        outputs: BaseModelOutputWithPastAndCrossAttentions = self.transformer(input_ids, return_dict=True, **inputs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        output = TokenClassifierOutput(
            loss=None if labels is None else class_loss(logits, labels, "labels", "num_labels"),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self.as_asked(output, return_dict)

    @torch.no_grad()
    def forward_packed(self, packed: Packed) -> Tensor:
        """Logits [T, K] of each token of a pack."""
        logits: Tensor = self.classifier(self.transformer.forward_packed(packed))
        return logits


class GPT2ForQuestionAnswering(GPT2PreTrainedModel):
    """For every token, how well the answer starts and ends there."""

    def __init__(self, config: GPT2Config, *, attn_implementation: AttentionImplementation = "sdpa") -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config, attn_implementation=attn_implementation)
        self.qa_outputs = _linear(config, 2)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Start and end logits [B, L] each; the loss is the mean of the two cross entropies.

        start_positions and end_positions are [B] or [B, 1]; those outside the input are clamped to its length, which is
        left out of the loss.

        Raises InputError for arguments that contradict each other, the config or past_key_values.
        """
        outputs: BaseModelOutputWithPastAndCrossAttentions = self.transformer(input_ids, return_dict=True, **inputs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = _position_loss(start_logits, start_positions, "start_positions")
            loss = (start_loss + _position_loss(end_logits, end_positions, "end_positions")) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self.as_asked(output, return_dict)

    @torch.no_grad()
    def forward_packed(self, packed: Packed) -> Tensor:
        """Start and end logits [T, 2] of each token of a pack."""
        logits: Tensor = self.qa_outputs(self.transformer.forward_packed(packed))
        return logits


def _linear(config: GPT2Config, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A head [D] -> [outputs] in GPT-2's scheme."""
    head = nn.Linear(config.n_embd, outputs, bias=bias)
    nn.init.normal_(head.weight, std=config.initializer_range)
    if bias:
        nn.init.zeros_(head.bias)
    return head


def _last_positions(hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The last position [B] that a mask leaves in each row of hidden states [B, L, D]; the last of all without one.

    With past_key_values the mask is longer than the input, and its end is the input's.
    """
    if hidden.ndim != 3:
        raise InputError(f"an input of shape {tuple(hidden.shape[:-1])}: rows of positions, [B, L], are classified")
    batch, length, _ = hidden.shape
    if attention_mask is None or attention_mask.ndim == 4:
        return torch.full((batch,), length - 1, device=hidden.device)
    kept = attention_mask.reshape(batch, -1)[:, -length:].bool().to(hidden.device)
    return torch.where(kept, torch.arange(length, device=hidden.device), 0).amax(dim=-1)


def _sequence_loss(logits: Tensor, labels: Tensor, config: GPT2Config) -> Tensor:
    problem = config.problem_type or _problem_type(labels, config.num_labels)
    if problem == "single_label_classification":
        return class_loss(logits, labels, "labels", "num_labels")
    if problem == "regression" and logits.shape[-1] == 1:
        labels = labels.reshape(logits.shape) if labels.numel() == logits.numel() else labels
    if labels.shape != logits.shape:
        raise InputError(
            f"labels of shape {tuple(labels.shape)}: {problem} compares them with logits of shape {tuple(logits.shape)}"
        )
    if problem == "regression":
        return F.mse_loss(logits, labels.to(logits.dtype))
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def _problem_type(labels: Tensor, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    return "single_label_classification" if labels.dtype in (torch.int64, torch.int32) else "multi_label_classification"


def _position_loss(logits: Tensor, positions: Tensor, name: str) -> Tensor:
    """Mean cross entropy of logits [B, L] against positions [B] or [B, 1]."""
    length = logits.shape[-1]
    wanted = positions.to(logits.device).flatten().clamp(0, length)
    return class_loss(logits, wanted.where(wanted < length, IGNORED_LABEL), name, "length")
