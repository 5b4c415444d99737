"""Runs a model over a batch's prompts, then over one new token of each row at a time.

Shapes: B rows, L tokens that are read, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2model.cache import Cache
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.prompt import Inputs
from gpt2model.outputs import BaseModelOutputWithPastAndCrossAttentions

if TYPE_CHECKING:
    from gpt2model.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model said at a step: float32 logits [B, V] of the next token, and its states as forward gives them.

    The states are empty where they were not asked for.
    """

    logits: Tensor
    attentions: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...]

    def repeated(self, times: int) -> Reading:
        """Each row `times` times, one after the other."""
        return Reading(
            self.logits.repeat_interleave(times, dim=0),
            tuple(each.repeat_interleave(times, dim=0) for each in self.attentions),
            tuple(each.repeat_interleave(times, dim=0) for each in self.hidden_states),
        )


class Feed:
    """Keeps cache, mask, positions and token types in step with what the rows grow by.

    A row of the inputs becomes `copies` rows once it was read, so that it is read once. Without a cache the model reads
    everything anew at each step.
    """

    def __init__(
        self,
        model: GPT2LMHeadModel | GPT2DoubleHeadsModel,
        inputs: Inputs,
        cache: Cache | None,
        options: GenerationConfig,
        *,
        copies: int,
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._cache = cache
        self._options = options
        self._copies = copies
        self._steps = 0
        # Ids or embeddings of all that was read.
        self._read: Tensor | None = None

    @property
    def cache(self) -> Cache | None:
        """What the rows have left behind: of all tokens but the newest."""
        return self._cache

    def begin(self) -> Reading:
        """Read the prompts."""
        inputs, copies = self._inputs, self._copies
        reading = self._run(inputs.new)
        self._read = inputs.new if self._cache is None else None
        self._inputs = inputs.read().repeated(copies)
        if copies == 1:
            return reading
        self.reorder(torch.arange(len(inputs.new), device=inputs.new.device).repeat_interleave(copies))
        return reading.repeated(copies)

    def advance(self, tokens: Tensor) -> Reading:
        """Read one more token of each row, [B]; what is no token stands for any, in rows that have ended."""
        self._steps += 1
        new = tokens.clamp(0, self._model.config.vocab_size - 1)[:, None]
        if self._read is not None:
            if self._read.ndim == 3:
                new = self._model.get_input_embeddings()(new)
            self._read = new = torch.cat((self._read, new), dim=1)
        return self._run(new)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was, one of the same prompt; rows is [B]."""
        if self._cache is not None:
            self._cache.reorder(rows)
        if self._read is not None:
            self._read = self._read[rows]

    def _run(self, new: Tensor) -> Reading:
        """Read ids [B, L] or embeddings [B, L, D]."""
        inputs, length = self._inputs, new.shape[1]
        outputs: BaseModelOutputWithPastAndCrossAttentions = self._model.transformer(
            new if new.ndim == 2 else None,
            inputs_embeds=None if new.ndim == 2 else new,
            past_key_values=self._cache,
            attention_mask=None if inputs.seen is None else F.pad(inputs.seen, (0, self._steps), value=True),
            position_ids=self._positions(length),
            token_type_ids=self._token_types(length),
            encoder_hidden_states=inputs.encoder_states,
            encoder_attention_mask=inputs.encoder_mask,
            use_cache=self._cache is not None,
            output_attentions=self._options.output_attentions,
            output_hidden_states=self._options.output_hidden_states,
            return_dict=True,
        )
        return Reading(
            logits=self._model.lm_head(outputs.last_hidden_state[:, -1]).float(),
            attentions=outputs.attentions or (),
            hidden_states=outputs.hidden_states or (),
        )

    def _positions(self, length: int) -> Tensor | None:
        """Positions [B, length] of the last tokens; None where the model counts them itself."""
        inputs = self._inputs
        if inputs.positions is None:
            return None
        following = inputs.depths[:, None] + torch.arange(self._steps, device=inputs.depths.device)
        # Rows that have ended at the context's edge are read on while others grow.
        following = following.clamp(max=self._model.config.n_positions - 1)
        return torch.cat((inputs.positions, following), dim=-1)[:, -length:]

    def _token_types(self, length: int) -> Tensor | None:
        """Token types [B, length] of the last tokens: what follows has the prompt's last."""
        types = self._inputs.token_types
        if types is None:
            return None
        return torch.cat((types, types[:, -1:].expand(-1, self._steps)), dim=-1)[:, -length:]
