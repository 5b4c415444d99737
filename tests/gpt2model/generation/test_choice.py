"""What is chosen after logits: by the greatest score, or drawn by the filtered distribution."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from gpt2model.generation import GenerationConfig
from gpt2model.generation.choice import Chooser
from gpt2model.generation.noise import step_keys, stream_keys

# Options whose filters transformers applies in the same order; each is drawn from twice 20,000 times.
FILTERED: list[dict[str, Any]] = [
    {"top_k": 0},
    {"top_k": 0, "temperature": 0.6},
    {"top_k": 5},
    {"top_k": 5, "temperature": 1.7, "top_p": 0.8},
    {"top_k": 0, "top_p": 0.7},
    {"top_k": 0, "min_p": 0.2},
    {"top_k": 12, "typical_p": 0.6},
    {"top_k": 0, "epsilon_cutoff": 0.03},
    {"top_k": 0, "eta_cutoff": 0.05},
    {"top_k": 7, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.95, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3},
    {"top_k": 5, "top_h": 0.8},
    {"top_k": 5, "renormalize_logits": True},
]
DRAWS = 20_000
VOCABULARY = 40


def logits(rows: int, vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 1.5


def keys(rows: int, sample: int = 0) -> Tensor:
    zeros = torch.zeros(rows, dtype=torch.int64)
    return step_keys(stream_keys(zeros, torch.arange(rows), zeros + sample), zeros)


def expected(scores: Tensor, options: dict[str, Any]) -> Tensor:
    """The probabilities [V] that transformers would draw by after the scores [V]."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=VOCABULARY))
    config = transformers.GenerationConfig(do_sample=True, **options)
    config._eos_token_tensor = None
    return model._get_logits_processor(config, input_ids_seq_length=1)(torch.zeros(1, 1).long(), scores[None])[
        0
    ].softmax(-1)


@pytest.mark.parametrize("options", FILTERED, ids=str)
def test_tokens_are_drawn_by_the_filtered_distribution(options: dict[str, Any]) -> None:
    scores = logits(1)
    chooser = Chooser(GenerationConfig(do_sample=True, **options), logprobs=False)
    drawn = [chooser(scores.expand(DRAWS, -1), None, keys(DRAWS, sample)).tokens for sample in range(2)]
    probabilities = expected(scores[0], options)
    possible = probabilities > 0
    counts = torch.bincount(torch.cat(drawn), minlength=VOCABULARY)
    assert not counts[~possible].any()
    wanted = 2 * DRAWS * probabilities[possible].double()
    statistic = float(((counts[possible] - wanted) ** 2 / wanted).sum())
    freedom = int(possible.sum()) - 1
    # Six deviations above the mean of the statistic.
    assert statistic < freedom + 6 * (2 * max(freedom, 1)) ** 0.5
    # Two samples of a row are independent: as often equal as chance has it.
    chance = float((probabilities**2).sum())
    equal = float((drawn[0] == drawn[1]).double().mean())
    assert equal == pytest.approx(chance, abs=6 * (chance * (1 - chance) / DRAWS) ** 0.5 + 1e-9)


@pytest.mark.parametrize("vocabulary", [50, 2000])
@pytest.mark.parametrize("ties", [False, True])
def test_looking_at_the_best_candidates_alone_changes_no_draw(
    vocabulary: int, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = logits(300, vocabulary)
    scores = scores.round() if ties else scores
    config = GenerationConfig(do_sample=True, top_k=9, top_p=0.95, temperature=0.8)
    few = Chooser(config, logprobs=True)(scores, None, keys(300))
    monkeypatch.setattr("gpt2model.generation.choice._MOST_CANDIDATES", 0)
    every = Chooser(config, logprobs=True)(scores, None, keys(300))
    assert torch.equal(few.tokens, every.tokens)
    assert few.logprobs is not None
    assert every.logprobs is not None
    assert torch.equal(few.logprobs, every.logprobs)


def test_the_first_of_equals_is_the_greedy_choice() -> None:
    scores = torch.zeros(3, 30)
    scores[1, 12:14] = 1.0
    assert Chooser(GenerationConfig(), logprobs=False)(scores, None, keys(3)).tokens.tolist() == [0, 12, 0]


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"do_sample": True, "top_k": 0}], ids=str)
@pytest.mark.parametrize("broken", ["nan", "all -inf"])
def test_a_row_without_a_score_is_told_apart(options: dict[str, Any], broken: str) -> None:
    scores = logits(3, 200)
    scores[1] = -torch.inf
    if broken == "nan":
        scores[1, 5] = torch.nan
    choice = Chooser(GenerationConfig(**options), logprobs=False)(scores, None, keys(3))
    assert choice.sound.tolist() == [True, False, True]


def test_a_row_draws_the_same_among_others() -> None:
    scores = logits(64, 500)
    for options in FILTERED:
        chooser = Chooser(GenerationConfig(do_sample=True, **options), logprobs=False)
        together = chooser(scores, None, keys(64)).tokens
        order = torch.from_numpy(np.random.default_rng(1).permutation(64))
        assert torch.equal(chooser(scores[order], None, keys(64)[order]).tokens, together[order])
