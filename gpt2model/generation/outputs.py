"""What generate returns when it is asked for more than tokens: frozen records with transformers' field names.

Shapes: B rows (prompts * num_return_sequences; in a search, of the steps' fields, prompts * num_beams), L tokens, T new
tokens, V vocabulary, H heads, S positions with the past, D width. A step's input has the prompt's length once, then 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from gpt2model.cache import Cache
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.feed import Reading
from gpt2model.outputs import ModelOutput

LayerStates = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class GenerateDecoderOnlyOutput(ModelOutput):
    """Result of greedy search and sampling.

    sequences are int64 [B, L], prompts included. Each of the others holds one entry a step: scores and logits float32
    [B, V], what was chosen from and what the model said; attentions [B, H, step's input, S] for each block, and
    hidden_states [B, step's input, D] for each layer and the last hidden state.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[LayerStates, ...] | None = None
    hidden_states: tuple[LayerStates, ...] | None = None
    past_key_values: Cache | None = None


@dataclass(frozen=True, slots=True)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Result of beam search and beam sampling.

    sequences_scores are float32 [B], the sums of the chosen tokens' scores by length_penalty. scores are
    log-probabilities as processed, before those of a beam's past are added. beam_indices int32 [B, T] are the rows of
    each step's scores that a sequence took its tokens from, -1 behind its end.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[LayerStates, ...] | None = None
    hidden_states: tuple[LayerStates, ...] | None = None
    past_key_values: Cache | None = None


GenerateOutput = GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


class Trace:
    """Gathers step by step what a record is to hold; nothing where only tokens are wanted."""

    def __init__(self, config: GenerationConfig) -> None:
        record = config.return_dict_in_generate
        self._scores: list[Tensor] | None = [] if record and config.output_scores else None
        self._logits: list[Tensor] | None = [] if record and config.output_logits else None
        self._attentions: list[LayerStates] | None = [] if record and config.output_attentions else None
        self._hidden: list[LayerStates] | None = [] if record and config.output_hidden_states else None

    def add(self, reading: Reading, scores: Tensor) -> None:
        """Keep a step: what the model said, and the scores [B, V] that were made of its logits."""
        if self._scores is not None:
            self._scores.append(scores)
        if self._logits is not None:
            self._logits.append(reading.logits)
        if self._attentions is not None:
            self._attentions.append(reading.attentions)
        if self._hidden is not None:
            self._hidden.append(reading.hidden_states)

    @property
    def scores(self) -> tuple[Tensor, ...] | None:
        """Those of all steps so far, where they are kept."""
        return None if self._scores is None else tuple(self._scores)

    def kept(self) -> dict[str, tuple[Any, ...] | None]:
        """The fields of either record that hold one entry a step."""
        steps = (self._logits, self._attentions, self._hidden)
        logits, attentions, hidden = (None if each is None else tuple(each) for each in steps)
        return {"scores": self.scores, "logits": logits, "attentions": attentions, "hidden_states": hidden}


def usable_in_training(record: GenerateOutput) -> GenerateOutput:
    """A copy whose tensors autograd takes, as it does not those made under torch.inference_mode; the cache stays."""
    return replace(record, **{field.name: _copied(getattr(record, field.name)) for field in fields(record)})


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return value.clone() if isinstance(value, Tensor) else value
