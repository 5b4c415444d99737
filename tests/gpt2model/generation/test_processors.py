"""Processors against transformers' own, and rows in ragged batches against the same rows alone."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2model.errors import ConfigError, InputError
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import NO_TOKEN, Context
from gpt2model.generation.processors import (
    ExponentialDecay,
    MinLength,
    NoRepeatNGram,
    PrefixConstrained,
    PromptRepetitionPenalty,
    RepetitionPenalty,
    SequenceBias,
    last_tokens,
    processors_of,
)

V = 7
MOST = 9

NO_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
# Each processor by what asks for it, with few tokens and short lengths, so that it finds something to do.
OPTIONS: dict[str, dict[str, Any]] = {
    "bias of tokens": {"sequence_bias": [[[1], 2.5], [[4], -math.inf]]},
    "bias of sequences": {"sequence_bias": [[[1, 2], 2.5], [[3, 2], -1.5], [[1, 1, 2], 0.5], [[2], -0.25]]},
    "prompt's penalty": {"encoder_repetition_penalty": 1.7},
    "prompt's reward": {"encoder_repetition_penalty": 0.6},
    "penalty": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.6},
    "1-gram": {"no_repeat_ngram_size": 1},
    "2-gram": {"no_repeat_ngram_size": 2},
    "3-gram": {"no_repeat_ngram_size": 3},
    "prompt's 1-gram": {"encoder_no_repeat_ngram_size": 1},
    "prompt's 2-gram": {"encoder_no_repeat_ngram_size": 2},
    "prompt's 3-gram": {"encoder_no_repeat_ngram_size": 3},
    "bad words": {"bad_words_ids": [[1], [2, 3], [2, 2], [0, 1, 2], [5]], "eos_token_id": 5},
    "min length": {"min_length": 5, "eos_token_id": [0, 3]},
    "min new tokens": {"min_new_tokens": 3, "eos_token_id": [0, 3], "min_length": 8},
    "bos": {"forced_bos_token_id": 2},
    "eos": {"forced_eos_token_id": 2},
    "several eos": {"forced_eos_token_id": [2, 4]},
    "invalid": {"remove_invalid_values": True},
    "decay": {"exponential_decay_length_penalty": (1, 1.3), "eos_token_id": [0, 3]},
    "suppress": {"suppress_tokens": [1, 6]},
    "suppress at begin": {"begin_suppress_tokens": [1, 6]},
    "suppress after bos": {"begin_suppress_tokens": [1, 6], "forced_bos_token_id": 2},
}


@cache
def oracle() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_embd=2, n_layer=1, n_head=1, **NO_IDS))


def theirs(
    options: dict[str, Any], ids: Tensor, prompt_length: int, max_length: int, scores: Tensor, **given: Any
) -> Tensor:
    """What transformers' generate makes of the scores [B, V] that follow rows of one length."""
    config = transformers.GenerationConfig(**{**options, "max_length": max_length})
    config.update(**config._get_default_generation_params(), defaults_only=True)
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + prompt_length  # as _prepare_generated_length does
    oracle()._prepare_special_tokens(config, device="cpu")
    processors = oracle()._get_logits_processor(config, prompt_length, ids[:, :prompt_length], device="cpu", **given)
    changed: Tensor = processors(ids.clone(), scores.clone())
    return changed


def ours(options: dict[str, Any], context: Context, scores: Tensor) -> Tensor:
    for processor in processors_of(GenerationConfig(**options)):
        scores = processor(context, scores)
    return scores


def ragged(rows: Sequence[Sequence[int]], prompts: Sequence[int], most: Sequence[int] | None = None) -> Context:
    """Rows of tokens of any lengths as a context; NO_TOKEN in a row's prompt is padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[NO_TOKEN] * (longest - len(row))] for row in rows], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    return Context(ids, lengths, torch.tensor(prompts), torch.tensor(most or [MOST] * len(rows)))


def random_scores(rows: int, seed: int, *, invalid: bool = False) -> Tensor:
    scores = torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))
    if invalid:
        scores[:, 1], scores[:, 4], scores[:, 6] = math.nan, -math.inf, math.inf
    return scores


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7, equal_nan=True)


equal_rows = st.integers(1, 8).flatmap(
    lambda length: st.tuples(
        st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=3),
        st.integers(1, length),
    )
)
ragged_rows = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.lists(st.integers(0, 3), min_size=1, max_size=4),
        st.lists(st.integers(0, 3), max_size=4),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=60, deadline=None)
@given(drawn=equal_rows, seed=st.integers(0, 99))
def test_each_option_does_what_it_does_in_transformers(name: str, drawn: Any, seed: int) -> None:
    rows, prompt = drawn
    scores = random_scores(len(rows), seed, invalid=name == "invalid")
    context = ragged(rows, [prompt] * len(rows))
    assert_same(ours(OPTIONS[name], context, scores), theirs(OPTIONS[name], context.ids, prompt, MOST, scores))


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_some_scores(name: str) -> None:
    rows = [[2], [1, 2, 1, 1, 2, 3, 1, 2]]
    scores = random_scores(2, 0, invalid=name == "invalid")
    assert not ours(OPTIONS[name], ragged(rows, [1, 4]), scores).equal(scores)


@settings(max_examples=150, deadline=None)
@given(drawn=equal_rows, names=st.lists(st.sampled_from(sorted(OPTIONS)), min_size=2, max_size=8), seed=st.integers(0))
def test_options_together_are_applied_in_transformers_order(drawn: Any, names: list[str], seed: int) -> None:
    # Of the least number, which -inf becomes first, their decay makes inf.
    assume(not {"invalid", "decay"} <= set(names))
    rows, prompt = drawn
    options = {key: value for name in names for key, value in OPTIONS[name].items()}
    scores = random_scores(len(rows), seed % 2**32)
    context = ragged(rows, [prompt] * len(rows))
    assert_same(ours(options, context, scores), theirs(options, context.ids, prompt, MOST, scores))


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=40, deadline=None)
@given(drawn=ragged_rows, seed=st.integers(0, 99))
def test_a_row_gets_in_a_ragged_batch_what_it_gets_alone(name: str, drawn: Any, seed: int) -> None:
    rows = [[NO_TOKEN] * padding + prompt + new for padding, prompt, new, _ in drawn]
    prompts = [padding + len(prompt) for padding, prompt, _, _ in drawn]
    most = [len(row) + left for row, (*_, left) in zip(rows, drawn, strict=True)]
    context, scores = ragged(rows, prompts, most), random_scores(len(rows), seed)
    given_ids, given_scores = context.ids.clone(), scores.clone()
    together = ours(OPTIONS[name], context, scores)
    assert context.ids.equal(given_ids)
    assert scores.equal(given_scores)
    for row in range(len(rows)):
        alone = ragged([rows[row]], [prompts[row]], [most[row]])
        assert together[row].equal(ours(OPTIONS[name], alone, scores[row : row + 1])[0])


BY_CONTENT = [name for name in OPTIONS if name.endswith(("gram", "penalty", "reward", "words")) or "bias" in name]


@pytest.mark.parametrize("name", BY_CONTENT)
@settings(max_examples=40, deadline=None)
@given(drawn=ragged_rows, seed=st.integers(0, 99))
def test_padding_is_no_token(name: str, drawn: Any, seed: int) -> None:
    scores = random_scores(len(drawn), seed)
    results = []
    for with_padding in (True, False):
        rows = [[NO_TOKEN] * padding * with_padding + prompt + new for padding, prompt, new, _ in drawn]
        prompts = [padding * with_padding + len(prompt) for padding, prompt, _, _ in drawn]
        results.append(ours(OPTIONS[name], ragged(rows, prompts), scores))
    assert results[0].equal(results[1])


def test_an_ngram_does_not_reach_over_padding() -> None:
    context = ragged([[NO_TOKEN, 1, 5, NO_TOKEN, 1], [2, 1, 5, 2, 1]], [5, 5])
    assert NoRepeatNGram(3)(context, torch.zeros(2, V)).isneginf().sum(dim=1).tolist() == [0, 1]


def test_padding_counts_in_lengths() -> None:
    scores = torch.zeros(2, V)
    context = ragged([[NO_TOKEN, 1, 2], [1, 2]], [3, 2], [4, 4])
    assert MinLength(3, (0,))(context, scores).isneginf()[:, 0].tolist() == [False, True]
    assert ours({"forced_eos_token_id": 3}, context, scores).isneginf().sum(dim=1).tolist() == [V - 1, 0]


@pytest.mark.parametrize("penalty", [1.5, 0.5])
def test_a_padded_batch_is_penalized_as_by_transformers(penalty: float) -> None:
    # Their padding is a token, which the mask hides from this processor alone.
    padded = torch.tensor([[0, 0, 1, 2], [3, 1, 2, 2]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    scores = random_scores(2, 0)
    options = {"repetition_penalty": penalty}
    expected = theirs(options, padded, 4, MOST, scores, model_kwargs={"attention_mask": mask})
    context = ragged(padded.where(mask.bool(), NO_TOKEN).tolist(), [4, 4])
    assert_same(ours(options, context, scores), expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_processor_waits_for_the_device_or_looks_at_values(name: str) -> None:
    context = Context(*(torch.zeros(size, dtype=torch.int64, device="meta") for size in [(2, 5), (2,), (2,), (2,)]))
    changed = ours(OPTIONS[name], context, torch.zeros(2, V, device="meta"))
    assert (changed.shape, changed.device.type) == ((2, V), "meta")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_scores_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    context = ragged([[2], [1, 2, 1, 1, 2, 3, 1, 2]], [1, 4])
    scores = random_scores(2, 0)
    changed = ours(OPTIONS[name], context, scores.to(dtype))
    assert changed.dtype == dtype
    torch.testing.assert_close(changed.float(), ours(OPTIONS[name], context, scores), rtol=0.02, atol=0.02)


def test_tables_made_in_inference_mode_serve_under_autograd() -> None:
    options = {"suppress_tokens": [1, 2, 4], "sequence_bias": [[[6], 0.75]]}
    context = ragged([[1]], [1])
    with torch.inference_mode():
        ours(options, context, torch.zeros(1, V))
    scores = torch.zeros(1, V, requires_grad=True)
    ours(options, context, scores).exp().sum().backward()
    assert scores.grad is not None
    assert scores.grad[0].count_nonzero() == V - 3


def test_tokens_that_the_scores_lack_change_nothing() -> None:
    scores = random_scores(1, 0)
    context = ragged([[V, V + 3, V, V + 3, V]], [5])
    options = {"repetition_penalty": 2.0, "encoder_repetition_penalty": 2.0, "no_repeat_ngram_size": 2}
    others = {"encoder_no_repeat_ngram_size": 2, "suppress_tokens": [V], "min_length": 9, "eos_token_id": V}
    assert ours({**options, **others}, context, scores).equal(scores)


def test_rows_without_tokens_are_taken() -> None:
    context = ragged([[]], [0])
    scores = random_scores(1, 0)
    for name in BY_CONTENT:
        if name not in ("bias of tokens", "bias of sequences", "bad words"):
            assert ours(OPTIONS[name], context, scores).equal(scores)
    assert last_tokens(context, 2).tolist() == [[NO_TOKEN, NO_TOKEN]]


def test_the_last_tokens_of_rows_are_found() -> None:
    context = ragged([[1, 2, 3], [4], [NO_TOKEN, 5]], [1, 1, 2])
    assert last_tokens(context, 2).tolist() == [[2, 3], [NO_TOKEN, 4], [NO_TOKEN, 5]]


def test_defaults_and_what_needs_a_missing_eos_change_nothing() -> None:
    assert processors_of(GenerationConfig(eos_token_id=1)) == ()
    assert processors_of(GenerationConfig(min_length=5)) == processors_of(GenerationConfig(min_new_tokens=5)) == ()
    assert processors_of(GenerationConfig(suppress_tokens=[], begin_suppress_tokens=[])) == ()
    assert processors_of(GenerationConfig(bad_words_ids=[[3]], eos_token_id=3)) == ()
    assert processors_of(GenerationConfig(min_new_tokens=0, min_length=5, eos_token_id=1)) == ()


def test_the_decay_of_a_very_long_row_stays_finite() -> None:
    context = ragged([[1]], [0], [10**6])
    far = Context(context.ids, torch.tensor([10**5]), context.prompt_lengths, context.max_lengths)
    changed = ExponentialDecay(0, 1.5, (2,))(far, torch.tensor([[1.0, 2.0, -3.0, 0.0]]))
    assert changed.isfinite().all()
    assert changed[0].argmax() == 2


def test_of_a_sequence_biased_twice_the_last_bias_counts() -> None:
    biases = (((1,), 3.0), ((1,), 1.0))
    assert SequenceBias(biases)(ragged([[0]], [1]), torch.zeros(1, 3)).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequence_bias": [[[1, V], 1.0]]}, [f"token {V}", "sequence_bias"]),
        ({"bad_words_ids": [[V + 2]]}, [f"token {V + 2}", "bad_words_ids", f"0 to {V - 1}"]),
        ({"forced_bos_token_id": V}, [f"token {V}", "forced_bos_token_id"]),
        ({"forced_eos_token_id": [1, V]}, [f"token {V}", "forced_eos_token_id"]),
        ({"exponential_decay_length_penalty": (1, 2.0)}, ["exponential_decay_length_penalty", "eos_token_id"]),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_its_option(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        ours(options, ragged([[1]], [1]), torch.zeros(1, V))
    assert [word for word in words if word not in str(raised.value)] == []


def lists_of(*lists: list[int]) -> Any:
    return lambda row, tokens: lists[row]


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("banned", [[], [0, 1], [0, 1, 2, 3]])
def test_a_constraint_does_what_it_does_in_transformers(num_beams: int, banned: list[int]) -> None:
    allowed = lists_of([0, 1], [2, 3, 5])
    ids = torch.tensor([[1, 2]] * 2 * num_beams)
    scores = random_scores(2 * num_beams, 0)
    scores[:: num_beams + 1, banned] = -math.inf  # with 2 beams, not in all the beams of a row
    expected = transformers.PrefixConstrainedLogitsProcessor(allowed, num_beams)(ids, scores)
    context = ragged(ids.tolist(), [1] * len(ids))
    assert_same(PrefixConstrained(allowed, num_beams)(context, scores), expected)


def test_a_constraint_is_asked_by_row_and_tokens_without_padding() -> None:
    asked: list[tuple[int, list[int]]] = []

    def allowed(row: int, tokens: Tensor) -> list[int]:
        asked.append((row, tokens.tolist()))
        return [0]

    context = ragged([[NO_TOKEN, 1, 2], [3], [4, 5], [6, 0]], [2, 1, 2, 2])
    PrefixConstrained(allowed, 2)(context, torch.zeros(4, V))
    assert asked == [(0, [1, 2]), (0, [3]), (1, [4, 5]), (1, [6, 0])]


def test_a_constraint_has_its_place_before_forced_tokens() -> None:
    constraint = PrefixConstrained(lists_of([0, 1]))
    options: dict[str, Any] = {"min_length": 3, "eos_token_id": 1, "forced_eos_token_id": 4, "suppress_tokens": [0]}
    kinds = [type(each).__name__ for each in processors_of(GenerationConfig(**options), constraint)]
    assert kinds == ["MinLength", "PrefixConstrained", "ForcedEos", "Suppress"]


def test_a_constraint_that_allows_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="row 1: it must list one or more"):
        PrefixConstrained(lists_of([0], []))(ragged([[1], [2]], [1, 1]), torch.zeros(2, V))


def test_processors_are_values() -> None:
    assert RepetitionPenalty(2.0) == RepetitionPenalty(2.0) != PromptRepetitionPenalty(2.0)
    assert hash(NoRepeatNGram(2)) == hash(NoRepeatNGram(2))
