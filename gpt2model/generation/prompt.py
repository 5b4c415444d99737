"""What the rows of a batch begin with: checked, and brought to one form whatever generate was given.

Shapes: B rows, W places of the prompts (ids or embeddings), S places with those in past_key_values, N places still to
be read, P ids that the sequences begin with (W, or 0 where there are embeddings alone), T new tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from gpt2model.config import GPT2Config
from gpt2model.errors import InputError
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import NO_TOKEN, Context
from gpt2model.model import check_ids

RowsT = TypeVar("RowsT", "Prompt", "Inputs")

# Tokens that a row grows by where neither max_new_tokens nor max_length says otherwise: transformers' default.
_DEFAULT_NEW_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the rows begin with, as sequences are returned and as processors see them.

    All int64: `input_ids` [B, P] come first in the sequences, `ids` [B, W] are the prompts as Context shows them, and
    `max_lengths` [B] the places, W included, at which a row ends at the latest.
    """

    input_ids: Tensor
    ids: Tensor
    max_lengths: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def repeated(self, times: int) -> Prompt:
        """Each row `times` times, one after the other."""
        return _repeated(self, times)

    def sequences(self, continuations: Tensor) -> Tensor:
        """The rows with what follows, [B, T]: [B, P + T]."""
        return torch.cat((self.input_ids, continuations), dim=-1)

    def context(self, continuations: Tensor) -> Context:
        """The rows with what follows, [B, T], as processors see them."""
        widths = torch.full_like(self.max_lengths, self.ids.shape[1])
        return Context(
            ids=torch.cat((self.ids, continuations), dim=-1),
            lengths=widths + continuations.shape[1],
            prompt_lengths=widths,
            max_lengths=self.max_lengths,
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model reads of the prompts.

    `new` are ids int64 [B, N] or embeddings [B, N, D]. `seen` bool [B, S] is False at padding, and None where there is
    none. `positions` int64 [B, N] are None where they count from the length of past_key_values; `depths` int64 [B] are
    the positions that a row has taken with them. `token_types` are int64 [B, N].
    """

    new: Tensor
    depths: Tensor
    seen: Tensor | None = None
    positions: Tensor | None = None
    token_types: Tensor | None = None
    encoder_states: Tensor | None = None
    encoder_mask: Tensor | None = None

    def repeated(self, times: int) -> Inputs:
        """Each row `times` times, one after the other."""
        return _repeated(self, times)

    def read(self) -> Inputs:
        """The same with nothing left to read."""
        return replace(self, new=self.new[:, :0])


def prompt_of(
    input_ids: Tensor | None,
    tensors: Mapping[str, Tensor | None],
    *,
    past: int,
    options: GenerationConfig,
    config: GPT2Config,
    device: torch.device,
) -> tuple[Prompt, Inputs]:
    """The prompts that generate's arguments describe; `tensors` are those that GPT2Model.forward has too, by its names.

    Raises InputError for arguments that contradict each other, a prompt longer than the context, padding on the right,
    and a max_length that leaves nothing to generate.
    """
    for name, value in {"input_ids": input_ids, **tensors}.items():
        if value is not None and not isinstance(value, Tensor):
            raise InputError(
                f"{name} is a {type(value).__name__}: give a tensor; of what a tokenizer returns, give **it"
            )
    given = {name: value.to(device) for name, value in tensors.items() if value is not None}
    embeds, states = given.get("inputs_embeds"), given.get("encoder_hidden_states")
    ids = _ids(input_ids, embeds, 1 if states is None else len(states), options, config).to(device)
    rows, width = (ids if embeds is None else embeds).shape[:2]
    _check_rows(given, rows)
    seen = _seen(given.get("attention_mask"), ids, width, past, options)
    new = _unread(width, past, None if seen is None else seen.shape[1])
    seen = None if seen is None or bool(seen.all()) else seen
    positions = _positions(given.get("position_ids"), seen, rows, new)
    depths = ids.new_full((rows,), past + new) if positions is None else positions[:, -1] + 1
    _check_depths(depths, config.n_positions)
    shown = ids if ids.shape[1] else ids.new_full((rows, width), NO_TOKEN)
    prompt = Prompt(
        input_ids=ids,
        ids=shown if seen is None else shown.masked_fill(~seen[:, -width:], NO_TOKEN),
        max_lengths=(width + config.n_positions - depths + 1).clamp(max=_limit(options, width)),
    )
    inputs = Inputs(
        new=(ids if embeds is None else embeds)[:, -new:],
        depths=depths,
        seen=seen,
        positions=positions,
        token_types=_last_columns(given.get("token_type_ids"), "token_type_ids", rows, new),
        encoder_states=states,
        encoder_mask=given.get("encoder_attention_mask"),
    )
    return prompt, inputs


def _ids(
    input_ids: Tensor | None, embeds: Tensor | None, rows: int, options: GenerationConfig, config: GPT2Config
) -> Tensor:
    """The ids [B, P] that the sequences begin with."""
    if embeds is not None and (embeds.ndim != 3 or embeds.shape[2] != config.n_embd or embeds.numel() == 0):
        raise InputError(
            f"inputs_embeds of shape {tuple(embeds.shape)}: [rows, length, {config.n_embd}] is needed, with at least"
            " one row and a length of at least 1"
        )
    if input_ids is None:
        if embeds is not None:
            return torch.empty(len(embeds), 0, dtype=torch.int64)
        if options.bos_token_id is None:
            raise InputError("generate() was given no input, and there is no bos_token_id: give input_ids or that")
        return torch.full((rows, 1), options.bos_token_id)
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise InputError(
            f"input_ids of shape {tuple(input_ids.shape)}: [rows, length] is needed, with at least one row and a length"
            " of at least 1; begin an empty prompt with bos_token_id"
        )
    check_ids(input_ids, config.vocab_size, "input_ids", "vocab_size")
    if embeds is not None and input_ids.shape != embeds.shape[:2]:
        raise InputError(
            f"input_ids of shape {tuple(input_ids.shape)} beside inputs_embeds of shape {tuple(embeds.shape)}: the ids"
            " must be those that were embedded; leave them out where there are none"
        )
    return input_ids.long()


def _repeated(rows: RowsT, times: int) -> RowsT:
    if times == 1:
        return rows
    held = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return replace(
        rows, **{name: each.repeat_interleave(times, dim=0) for name, each in held.items() if each is not None}
    )


def _check_rows(given: Mapping[str, Tensor], rows: int) -> None:
    shared = ("position_ids", "token_type_ids")
    for name, value in given.items():
        if value.ndim == 0 or len(value) not in ((1, rows) if name in shared else (rows,)):
            raise InputError(f"{name} of shape {tuple(value.shape)}: the batch has {rows} rows")


def _seen(
    attention_mask: Tensor | None, ids: Tensor, width: int, past: int, options: GenerationConfig
) -> Tensor | None:
    """Where there is a token, [B, W or past + W]; without a mask, ids are looked at as transformers does."""
    if attention_mask is None:
        pad = options.pad_token_id
        if pad is None or pad in (options.eos_token_id or ()) or not ids.shape[1]:
            return None
        seen, why = ids != pad, f"it ends in pad_token_id={pad}, and no attention_mask says otherwise"
    else:
        if attention_mask.ndim != 2 or attention_mask.shape[1] not in (width, past + width):
            places = f"{width} or, with past_key_values, {past + width}" if past else str(width)
            raise InputError(
                f"attention_mask of shape {tuple(attention_mask.shape)}: [{len(ids)}, length] is needed, with a length"
                f" of {places}"
            )
        seen, why = attention_mask != 0, "its attention_mask ends in 0"
    if not bool(seen[:, -1].all()):
        row = int(seen[:, -1].logical_not().nonzero()[0])
        raise InputError(
            f"row {row} is padded on the right ({why}): pad on the left (padding_side='left'), where new tokens"
            " do not follow it"
        )
    return seen


def _unread(width: int, past: int, places: int | None) -> int:
    """How many of the last places are not in past_key_values; `places` is the width of the mask, where there is one."""
    if places is not None and places != width:
        return width
    if past >= width:
        raise InputError(
            f"past_key_values holds {past} positions, the prompts have {width}: give all tokens from the first on, or"
            " new ones alone with an attention_mask for all"
        )
    return width - past


def _positions(position_ids: Tensor | None, seen: Tensor | None, rows: int, new: int) -> Tensor | None:
    if position_ids is not None:
        return _last_columns(position_ids, "position_ids", rows, new)
    if seen is None:
        return None
    return (seen.cumsum(-1) - 1).masked_fill(~seen, 0)[:, -new:]


def _last_columns(ids: Tensor | None, name: str, rows: int, new: int) -> Tensor | None:
    if ids is None:
        return None
    if ids.ndim != 2 or ids.shape[1] < new:
        raise InputError(f"{name} of shape {tuple(ids.shape)}: {rows} rows of {new} places are to be read")
    return ids[:, -new:].expand(rows, new).long()


def _check_depths(depths: Tensor, limit: int) -> None:
    longest = int(depths.max())
    if longest > limit:
        raise InputError(
            f"row {int(depths.argmax())} has a prompt of {longest} tokens, n_positions is {limit}: shorten it, for"
            f" instance to its last {limit} tokens"
        )


def _limit(options: GenerationConfig, width: int) -> int:
    """The places at which every row ends at the latest, whatever the context leaves."""
    if options.max_new_tokens is not None:
        return width + options.max_new_tokens
    if options.max_length is None:
        return width + _DEFAULT_NEW_TOKENS
    if options.max_length <= width:
        raise InputError(
            f"max_length={options.max_length} leaves nothing to generate, the prompts have {width} places (padding"
            " counts): raise it, or say max_new_tokens"
        )
    return options.max_length
