"""Filters against transformers' own, and what does not change with the order or the number of the columns."""

import math
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.filters import TopH, TopK, TopP, filters_of

V = 120
NO_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
# Examples are the same in every run: a sum that rounds differently may, once in a million, cut at another token.
STEADY = settings(max_examples=60, deadline=None, derandomize=True)

SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top-h": {"top_h": 0.4},
    "wide top-h": {"top_h": 0.95},
    "top-k": {"top_k": 5},
    "small top-k": {"top_k": 2},
    "all of top-k": {"top_k": 500},
    "top-p": {"top_p": 0.7},
    "small top-p": {"top_p": 0.01},
    "min-p": {"min_p": 0.1},
    "no min-p": {"min_p": 0.0},
    "whole min-p": {"min_p": 1.0},
    "typical": {"typical_p": 0.5},
    "little typical": {"typical_p": 0.01},
    "epsilon": {"epsilon_cutoff": 0.01},
    "wide epsilon": {"epsilon_cutoff": 0.9},
    "eta": {"eta_cutoff": 0.02},
    "wide eta": {"eta_cutoff": 0.9},
    "log-softmax": {"renormalize_logits": True},
}
KEEPING = {"none": {}, "beams": {"num_beams": 3}, "beams with eos": {"num_beams": 3, "eos_token_id": [1, 2, 3, 4]}}


@cache
def oracle() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_embd=2, n_layer=1, n_head=1, **NO_IDS))


def theirs(options: dict[str, Any], scores: Tensor) -> Tensor:
    config = transformers.GenerationConfig(**{"do_sample": True, **options})
    config.update(**config._get_default_generation_params(), defaults_only=True)
    oracle()._prepare_special_tokens(config, device="cpu")
    ids = torch.zeros(len(scores), 1, dtype=torch.int64)
    changed: Tensor = oracle()._get_logits_processor(config, 1, ids, device="cpu")(ids, scores.clone())
    return changed


def ours(options: dict[str, Any], scores: Tensor) -> Tensor:
    for each in filters_of(GenerationConfig(**{"do_sample": True, "top_k": 0, **options})):
        scores = each(scores)
    return scores


def random_scores(seed: int, spread: float = 2.0, missing: float = 0.0, rows: int = 2) -> Tensor:
    """Scores [rows, V], some of them -inf, but none in the last column."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(rows, V, generator=generator)
    gone = torch.rand(rows, V, generator=generator) < missing
    return scores.masked_fill(gone & (torch.arange(V) < V - 1), -math.inf)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


wild = {"seed": st.integers(0, 10**6), "spread": st.sampled_from([0.1, 1.0, 3.0, 30.0])}


@pytest.mark.parametrize("kept", KEEPING)
@pytest.mark.parametrize("name", SAMPLING)
@STEADY
@given(**wild, missing=st.sampled_from([0.0, 0.3, 0.97]))
def test_each_option_does_what_it_does_in_transformers(
    name: str, kept: str, seed: int, spread: float, missing: float
) -> None:
    # Where their probabilities round to 0 or 1, these two cut by how that rounds; ours look at scores.
    assume(spread < 30.0 or not name.endswith(("top-h", "min-p")))
    options = {"top_k": 0, **SAMPLING[name], **KEEPING[kept]}
    scores = random_scores(seed, spread, missing)
    given_scores = scores.clone()
    assert_same(ours(options, scores), theirs(options, scores))
    assert scores.equal(given_scores)


@pytest.mark.parametrize("name", SAMPLING)
def test_each_option_changes_some_scores(name: str) -> None:
    unchanged = ours(SAMPLING[name], random_scores(0)).equal(random_scores(0))
    assert unchanged == (name in ("no min-p", "all of top-k"))


@STEADY
@given(**wild, names=st.lists(st.sampled_from(sorted(SAMPLING)), min_size=2, max_size=6), beams=st.sampled_from([1, 2]))
def test_options_together_are_applied_in_transformers_order(
    seed: int, spread: float, names: list[str], beams: int
) -> None:
    options = {key: value for name in names for key, value in SAMPLING[name].items()} | {"num_beams": beams}
    scores = random_scores(seed, spread)
    assert_same(ours({"top_k": 50, **options}, scores), theirs(options, scores))


tied_scores = st.lists(st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=V)


@pytest.mark.parametrize("kept", KEEPING)
@pytest.mark.parametrize("name", SAMPLING)
@STEADY
@given(values=tied_scores, seed=st.integers(0, 10**6))
def test_what_stays_does_not_depend_on_the_order_of_the_columns(
    name: str, kept: str, values: list[float], seed: int
) -> None:
    scores = torch.tensor([values])
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    options = {**SAMPLING[name], **KEEPING[kept]}
    moved, expected = ours(options, scores[:, order]), ours(options, scores)[:, order]
    if scores.isfinite().any():
        assert moved.isneginf().equal(expected.isneginf())
        assert_same(moved, expected)


@pytest.mark.parametrize("name", SAMPLING)
@STEADY
@given(**wild, more=st.integers(1, 40))
def test_columns_without_a_chance_change_nothing(name: str, seed: int, spread: float, more: int) -> None:
    scores = random_scores(seed, spread, rows=1)
    wider = torch.cat([torch.full((1, more), -math.inf), scores, torch.full((1, more), -math.inf)], dim=1)
    changed = ours(SAMPLING[name], wider)
    assert changed[:, :more].isneginf().all()
    assert changed[:, -more:].isneginf().all()
    assert_same(changed[:, more:-more], ours(SAMPLING[name], scores))


@STEADY
@given(**wild, names=st.lists(st.sampled_from(sorted(SAMPLING)), max_size=5), top_k=st.integers(1, 30))
def test_with_top_k_the_best_candidates_alone_keep_what_all_columns_keep(
    seed: int, spread: float, names: list[str], top_k: int
) -> None:
    options = {key: value for name in names for key, value in SAMPLING[name].items() if key != "top_h"}
    options["top_k"] = top_k
    scores = random_scores(seed, spread)
    candidates = scores.topk(top_k + 3).indices
    among_all = ours(options, scores)
    assert_same(ours(options, scores.gather(1, candidates)), among_all.gather(1, candidates))
    assert among_all.isfinite().sum() == among_all.gather(1, candidates).isfinite().sum()


@pytest.mark.parametrize("name", SAMPLING)
def test_no_filter_waits_for_the_device(name: str) -> None:
    for kept in KEEPING.values():
        changed = ours({**SAMPLING[name], **kept}, torch.zeros(2, V, device="meta"))
        assert (changed.shape, changed.device.type) == ((2, V), "meta")


@pytest.mark.parametrize("name", [name for name in SAMPLING if "softmax" not in name])
def test_a_row_without_any_chance_keeps_none_and_leaves_others_alone(name: str) -> None:
    scores = random_scores(0)
    scores[0] = -math.inf
    changed = ours(SAMPLING[name], scores)
    assert changed[0].isneginf().all()
    assert changed[1:].equal(ours(SAMPLING[name], random_scores(0)[1:]))


def test_equal_scores_are_kept_or_left_out_together() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    kept = [[False, False, False, False, True]]
    assert TopK(2)(scores).isneginf().tolist() == kept
    assert TopP(0.5)(scores).isneginf().tolist() == kept
    assert TopH(0.5)(scores).isneginf().tolist() == kept
    assert TopP(0.4)(scores).isneginf().tolist() == [[False, True, True, True, True]]


@pytest.mark.parametrize(
    ("probabilities", "mass", "kept"),
    [
        ([0.5, 0.25, 0.125, 0.125], 0.5, 1),
        ([0.5, 0.25, 0.125, 0.125], 0.75, 2),
        ([0.5, 0.3, 0.1, 0.1], 0.8, 2),
        ([0.3, 0.3, 0.25, 0.15], 0.8, 3),
    ],
)
def test_a_mass_that_is_just_reached_is_enough(probabilities: list[float], mass: float, kept: int) -> None:
    scores = torch.tensor([probabilities]).log()
    assert TopP(mass)(scores).isfinite().sum() == theirs({"top_k": 0, "top_p": mass}, padded(scores)).isfinite().sum()
    assert TopP(mass)(scores).isfinite().sum() == kept


def padded(scores: Tensor) -> Tensor:
    """Scores with -inf for the rest of the vocabulary."""
    return torch.nn.functional.pad(scores, (0, V - scores.shape[1]), value=-math.inf)


def test_a_share_of_one_keeps_all_that_top_h_looks_at() -> None:
    scores = random_scores(0)
    assert TopH(1.0)(scores).isfinite().sum(dim=1).tolist() == [100, 100]


def test_only_normalization_is_for_greedy_search_too() -> None:
    options = {key: value for name in SAMPLING for key, value in SAMPLING[name].items()}
    greedy = filters_of(GenerationConfig(**{**options, "do_sample": False}))
    assert [type(each).__name__ for each in greedy] == ["LogSoftmax"]
    assert filters_of(GenerationConfig()) == ()
    assert filters_of(GenerationConfig(do_sample=True)) == (TopK(50),)


@pytest.mark.parametrize("mass", [0.01, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("spread", [0.1, 2.0, 6.0])
def test_top_p_of_a_large_vocabulary_keeps_what_a_sort_keeps(mass: float, spread: float) -> None:
    drawn = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 8192, generator=drawn) * spread
    scores[3, 5000:] = -torch.inf
    scores[4] = scores[4].round()
    least = TopP(mass)._by_sorting(scores)
    assert torch.equal(TopP(mass)(scores), scores.masked_fill(scores < least, -torch.inf))
