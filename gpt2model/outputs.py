"""What forward returns: frozen records with transformers' field names, that also read like tuples.

Shapes: B batch (any leading dimensions), L positions, S positions with the past, H heads, D width,
V vocabulary, C choices, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from gpt2model.cache import Cache


class ModelOutput:
    """Base of the records; `out[0]`, `out[:2]` and `to_tuple()` see only the fields that are not None."""

    __slots__ = ()

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in their order."""
        return tuple(value for value in map(self._value, self._names()) if value is not None)

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            if key not in self._names() or self._value(key) is None:
                raise KeyError(key)
            return self._value(key)
        return self.to_tuple()[key]

    def _names(self) -> tuple[str, ...]:
        return tuple(field.name for field in fields(self))  # type: ignore[arg-type]  # each subclass is a dataclass

    def _value(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """Result of GPT2Model.

    last_hidden_state is [B, L, D], after the last layer norm. hidden_states holds n_layer + 1 of these: what enters
    each block, and last_hidden_state itself. attentions and cross_attentions hold one [B, H, L, S] a block.
    """

    last_hidden_state: Tensor
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Result of GPT2LMHeadModel: loss is a float32 scalar, logits are [B, L, V]; the rest as in GPT2Model's."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class GPT2DoubleHeadsModelOutput(ModelOutput):
    """Result of GPT2DoubleHeadsModel: losses are float32 scalars, logits [B, C, L, V], mc_logits [B, C].

    The rest is GPT2Model's.
    """

    loss: Tensor | None = None
    mc_loss: Tensor | None = None
    logits: Tensor | None = None
    mc_logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class SequenceClassifierOutputWithPast(ModelOutput):
    """Result of GPT2ForSequenceClassification: loss is a scalar, logits are [B, K]; the rest is GPT2Model's."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenClassifierOutput(ModelOutput):
    """Result of GPT2ForTokenClassification: loss is a scalar, logits are [B, L, K]; the rest is GPT2Model's."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class QuestionAnsweringModelOutput(ModelOutput):
    """Result of GPT2ForQuestionAnswering: loss is a scalar, the logits are [B, L] each; the rest is GPT2Model's."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
