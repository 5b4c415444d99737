"""What changes the scores of the next token by what a row holds so far: penalties, bans and forced tokens.

Each processor is the one of transformers 5.23 of the same purpose (generation/logits_process.py), for rows of different
lengths: padding is never a token, though it counts in a row's length.

Shapes: B rows, L tokens of the longest row, V vocabulary, n tokens of an n-gram.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from gpt2model.errors import ConfigError, InputError
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import NO_TOKEN, Context, Processor

Biases = tuple[tuple[tuple[int, ...], float], ...]
AllowedTokens = Callable[[int, Tensor], Sequence[int]]

# Equal to no token and to no NO_TOKEN.
_NEVER = -2


def processors_of(config: GenerationConfig, constraint: PrefixConstrained | None = None) -> tuple[Processor, ...]:
    """What a config asks to be done with the scores before they are filtered, in transformers' order.

    `constraint` gets its place in that order. Raises ConfigError where an option needs an eos token and there is none.
    """
    eos = config.eos_token_id or ()
    processors = [*_by_content(config, eos), *_by_minimum(config, eos)]
    if constraint is not None:
        processors.append(constraint)
    processors += _forced(config)
    if config.remove_invalid_values:
        processors.append(RemoveInvalid())
    if config.exponential_decay_length_penalty is not None:
        if not eos:
            raise ConfigError("exponential_decay_length_penalty favours the eos token: set eos_token_id")
        processors.append(ExponentialDecay(*config.exponential_decay_length_penalty, eos))
    if config.suppress_tokens:
        processors.append(Suppress(config.suppress_tokens))
    if config.begin_suppress_tokens:
        processors.append(SuppressAtBegin(config.begin_suppress_tokens, config.forced_bos_token_id is not None))
    return tuple(processors)


def _by_content(config: GenerationConfig, eos: tuple[int, ...]) -> list[Processor]:
    processors: list[Processor] = []
    if config.sequence_bias is not None:
        processors.append(SequenceBias(config.sequence_bias))
    if config.encoder_repetition_penalty != 1.0:
        processors.append(PromptRepetitionPenalty(config.encoder_repetition_penalty))
    if config.repetition_penalty != 1.0:
        processors.append(RepetitionPenalty(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        processors.append(NoRepeatNGram(config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size:
        processors.append(NoRepeatPromptNGram(config.encoder_no_repeat_ngram_size))
    # A ban of eos alone would let no row end.
    banned = [words for words in config.bad_words_ids or () if len(words) > 1 or words[0] not in eos]
    if banned:
        processors.append(SequenceBias(tuple((words, -math.inf) for words in banned)))
    return processors


def _by_minimum(config: GenerationConfig, eos: tuple[int, ...]) -> list[Processor]:
    if config.min_new_tokens is not None:
        return [MinNewTokens(config.min_new_tokens, eos)] if config.min_new_tokens and eos else []
    return [MinLength(config.min_length, eos)] if config.min_length and eos else []


def _forced(config: GenerationConfig) -> list[Processor]:
    processors: list[Processor] = []
    if config.forced_bos_token_id is not None:
        processors.append(ForcedBos(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        processors.append(ForcedEos(config.forced_eos_token_id))
    return processors


@dataclass(frozen=True, slots=True)
class SequenceBias:
    """Adds a sequence's bias to the score of its last token where a row ends with the others; -inf bans it.

    Raises ConfigError for a token outside the vocabulary.
    """

    biases: Biases

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        alone, groups = _bias_tables(self.biases, scores.shape[-1], scores.device)
        biased = scores + alone.to(scores.dtype)
        for prefixes, last, values in groups:
            ends = last_tokens(context, prefixes.shape[1])
            matched = (ends[:, None] == prefixes).all(dim=-1)
            biased.index_add_(1, last, torch.where(matched, values, 0.0).to(scores.dtype))
        return biased


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Makes tokens that a row holds less likely: scores above 0 are divided by the penalty, others multiplied.

    Source: Keskar et al., 2019 (CTRL), section 4.1.
    """

    penalty: float

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _penalized(scores, context.ids, self.penalty)


@dataclass(frozen=True, slots=True)
class PromptRepetitionPenalty:
    """Makes tokens of the prompt more likely, by the reverse of RepetitionPenalty: `encoder_repetition_penalty`."""

    penalty: float

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _penalized(scores, _prompt_tokens(context), 1 / self.penalty)


@dataclass(frozen=True, slots=True)
class NoRepeatNGram:
    """Bans every token that would end an n-gram the row already holds (Paulus et al., 2017, section 2.5)."""

    size: int

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _without_ngrams(context, scores, context.ids, self.size)


@dataclass(frozen=True, slots=True)
class NoRepeatPromptNGram:
    """Bans every token that would end an n-gram of the prompt: `encoder_no_repeat_ngram_size`."""

    size: int

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _without_ngrams(context, scores, _prompt_tokens(context), self.size)


@dataclass(frozen=True, slots=True)
class MinLength:
    """Bans the eos tokens until a row has this length, its prompt included."""

    length: int
    eos: tuple[int, ...]

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _banned(scores, self.eos, context.lengths < self.length)


@dataclass(frozen=True, slots=True)
class MinNewTokens:
    """Bans the eos tokens until a row has this many tokens after its prompt."""

    count: int
    eos: tuple[int, ...]

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _banned(scores, self.eos, context.lengths - context.prompt_lengths < self.count)


@dataclass(frozen=True, slots=True)
class PrefixConstrained:
    """Bans all but the tokens that `allowed(row, tokens)` lists: the row's number and its tokens [length], unpadded.

    The `num_beams` beams of a row follow each other and share its number. Where nothing likely is left in any of them,
    the allowed tokens become equally likely. Raises InputError where `allowed` lists no token.
    """

    allowed: AllowedTokens
    num_beams: int = 1

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        listed = torch.full_like(scores, -math.inf)
        for index, held in enumerate(context.ids):
            tokens = list(self.allowed(index // self.num_beams, held[held != NO_TOKEN]))
            if not tokens:
                raise InputError(
                    f"prefix_allowed_tokens_fn allows no token to follow in row {index // self.num_beams}:"
                    " it must list one or more; to end a row, list the eos token"
                )
            listed[index, tokens] = 0.0
        constrained = scores.masked_fill(listed != 0.0, -math.inf)
        stuck = constrained.amax(dim=-1).isneginf().view(-1, self.num_beams).all(dim=-1)
        return torch.where(stuck.repeat_interleave(self.num_beams)[:, None], listed, constrained)


@dataclass(frozen=True, slots=True)
class ForcedBos:
    """Leaves one token to a row of length 1. Raises ConfigError where it is outside the vocabulary."""

    token: int

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _only(scores, (self.token,), context.lengths == 1, "forced_bos_token_id")


@dataclass(frozen=True, slots=True)
class ForcedEos:
    """Leaves these tokens to a row that ends with the next. Raises ConfigError for one outside the vocabulary."""

    tokens: tuple[int, ...]

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return _only(scores, self.tokens, context.lengths == context.max_lengths - 1, "forced_eos_token_id")


@dataclass(frozen=True, slots=True)
class RemoveInvalid:
    """Makes NaN 0 and infinities the greatest and the least finite number."""

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return torch.nan_to_num(scores, nan=0.0)


@dataclass(frozen=True, slots=True)
class ExponentialDecay:
    """Raises the eos tokens' scores by their size times factor^t - 1, t tokens after the first `start` new ones."""

    start: int
    factor: float
    eos: tuple[int, ...]

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        late = context.lengths - context.prompt_lengths - self.start
        growth = (self.factor ** late.clamp(min=0).double() - 1).to(scores.dtype)
        columns = _known(self.eos, scores.shape[-1], scores.device)
        held = scores.index_select(1, columns)
        # Finite, however long the row has become: an infinite score has no probability.
        rise = (held.abs() * growth[:, None]).clamp(max=torch.finfo(scores.dtype).max)
        risen = torch.where((late > 0)[:, None] & held.isfinite(), held + rise, held)
        return scores.index_copy(1, columns, risen)


@dataclass(frozen=True, slots=True)
class Suppress:
    """Bans tokens everywhere."""

    tokens: tuple[int, ...]

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        return scores.index_fill(1, _known(self.tokens, scores.shape[-1], scores.device), -math.inf)


@dataclass(frozen=True, slots=True)
class SuppressAtBegin:
    """Bans tokens as the first new one; as the second where the first is the forced bos after a prompt of 1."""

    tokens: tuple[int, ...]
    bos_is_forced: bool

    def __call__(self, context: Context, scores: Tensor) -> Tensor:
        after_bos = (context.prompt_lengths <= 1) & self.bos_is_forced
        return _banned(scores, self.tokens, context.lengths == context.prompt_lengths + after_bos)


def last_tokens(context: Context, count: int) -> Tensor:
    """The last tokens of each row, [B, count]; NO_TOKEN where a row is shorter or has padding there."""
    places = context.lengths[:, None] - count + torch.arange(count, device=context.ids.device)
    if context.ids.shape[1] == 0:
        return torch.full_like(places, NO_TOKEN)
    return context.ids.gather(1, places.clamp(min=0)).masked_fill(places < 0, NO_TOKEN)


def _prompt_tokens(context: Context) -> Tensor:
    """Every row's prompt: ids [B, L] with NO_TOKEN in place of what came after it."""
    places = torch.arange(context.ids.shape[1], device=context.ids.device)
    return context.ids.masked_fill(places >= context.prompt_lengths[:, None], NO_TOKEN)


def _penalized(scores: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """The penalty of RepetitionPenalty on the tokens [B, L] of each row, NO_TOKEN among them."""
    columns = _columns(tokens, scores.shape[-1])
    # A spare column takes what is meant for no token.
    wide = functional.pad(scores, (0, 1))
    held = wide.gather(1, columns)
    return wide.scatter_(1, columns, torch.where(held < 0, held * penalty, held / penalty))[:, :-1]


def _without_ngrams(context: Context, scores: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Scores without the tokens that, after a row's last n - 1, end an n-gram of `tokens` [B, L]."""
    windows = tokens.shape[1] - size + 1
    if windows < 1:
        return scores
    ends = last_tokens(context, size - 1)
    ends = ends.masked_fill(ends == NO_TOKEN, _NEVER)
    banned = tokens[:, size - 1 :]
    for place in range(size - 1):
        banned = banned.where(tokens[:, place : place + windows] == ends[:, place, None], NO_TOKEN)
    columns = _columns(banned, scores.shape[-1])
    return functional.pad(scores, (0, 1)).scatter_(1, columns, -math.inf)[:, :-1]


def _columns(tokens: Tensor, vocab_size: int) -> Tensor:
    """The columns of tokens in scores [B, V + 1]; V stands for NO_TOKEN and for what the vocabulary lacks."""
    return torch.where(tokens == NO_TOKEN, vocab_size, tokens.clamp(max=vocab_size))


def _banned(scores: Tensor, tokens: tuple[int, ...], rows: Tensor) -> Tensor:
    """Scores with -inf for the tokens in the rows that `rows` [B] marks."""
    columns = _known(tokens, scores.shape[-1], scores.device)
    return scores.index_copy(1, columns, scores.index_select(1, columns).masked_fill(rows[:, None], -math.inf))


def _only(scores: Tensor, tokens: tuple[int, ...], rows: Tensor, option: str) -> Tensor:
    """Scores with 0 for the tokens and -inf for all others in the rows that `rows` [B] marks."""
    _check_vocabulary(tokens, scores.shape[-1], option)
    columns = _known(tokens, scores.shape[-1], scores.device)
    alone = torch.full_like(scores[0], -math.inf).index_fill_(0, columns, 0.0)
    return torch.where(rows[:, None], alone, scores)


# The tables below are the same at every step, and a copy to a GPU would have every step wait for it.


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _known(tokens: tuple[int, ...], vocab_size: int, device: torch.device) -> Tensor:
    """The tokens, but those outside the vocabulary, which cannot be chosen anyway."""
    return torch.tensor([token for token in tokens if token < vocab_size], dtype=torch.int64).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _bias_tables(
    biases: Biases, vocab_size: int, device: torch.device
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Biases of tokens alone [V], and for each length n the sequences' first n tokens [S, n], last [S], biases [S]."""
    alone = torch.zeros(vocab_size)
    groups: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for tokens, bias in dict(biases).items():
        _check_vocabulary(tokens, vocab_size, "sequence_bias or bad_words_ids")
        if len(tokens) == 1:
            alone[tokens[0]] = bias
        else:
            groups.setdefault(len(tokens), []).append((tokens, bias))
    tables = [
        (
            torch.tensor([tokens[:-1] for tokens, _ in group], device=device),
            torch.tensor([tokens[-1] for tokens, _ in group], device=device),
            torch.tensor([bias for _, bias in group], device=device),
        )
        for group in groups.values()
    ]
    return alone.to(device), tables


def _check_vocabulary(tokens: tuple[int, ...], vocab_size: int, option: str) -> None:
    if max(tokens) >= vocab_size:
        raise ConfigError(
            f"{option} holds the token {max(tokens)}; the vocabulary has the tokens 0 to {vocab_size - 1}"
        )
