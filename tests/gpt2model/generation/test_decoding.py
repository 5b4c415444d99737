"""Sampling: its distribution against the exact one as transformers filters it, its independence, its repetition."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpt2model.generation.alike import LENGTHS, PLACES, RECORD, frequent, models, prompts
from tests.gpt2model.generation.chi_square import assert_drawn_from, drawn_from

VOCAB_SIZE = 9
IDS = torch.tensor([[3, 1, 4]])
UNFILTERED: dict[str, Any] = {"do_sample": True, "eos_token_id": None, "top_k": 0}
SAMPLES = 20000


def small() -> tuple[Any, Any]:
    return models(vocab_size=VOCAB_SIZE, pad_token_id=0)


@cache
def pairs_of(temperature: float) -> Tensor:
    """The exact probabilities [V, V] of the first two new tokens."""
    _, oracle = small()
    beginnings = torch.cat([IDS.expand(VOCAB_SIZE, -1), torch.arange(VOCAB_SIZE)[:, None]], dim=1)
    with torch.no_grad():
        logits = oracle(beginnings).logits.double() / temperature
    first, second = logits[0, -2].softmax(dim=0), logits[:, -1].softmax(dim=1)
    return first[:, None] * second


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 2.0},
        {"top_k": 4, "temperature": 3.0},
        {"top_p": 0.8, "temperature": 1.5},
        {"min_p": 0.1, "temperature": 2.0},
        {"typical_p": 0.7, "temperature": 2.0},
        {"epsilon_cutoff": 0.08, "temperature": 2.5},
        {"eta_cutoff": 0.1, "temperature": 2.5},
        {"top_h": 0.6, "temperature": 3.0},
        {"top_k": 6, "top_p": 0.9, "temperature": 2.5, "repetition_penalty": 1.4, "renormalize_logits": True},
        {"temperature": 2.0, "suppress_tokens": [2, 5], "sequence_bias": [[[4], 1.5]]},
    ],
    ids=str,
)
def test_samples_have_the_distribution_that_transformers_filters_to(options: dict[str, Any]) -> None:
    model, oracle = small()
    options = {**UNFILTERED, **options, "max_new_tokens": 1}
    drawn = model.generate(IDS, **options, num_return_sequences=SAMPLES, seed=1)[:, -1]
    exact = oracle.generate(IDS, **options, **RECORD).scores[0][0].softmax(dim=-1)
    assert_drawn_from(drawn.bincount(minlength=VOCAB_SIZE).double(), exact)


def counted(rows: Tensor, columns: Tensor) -> Tensor:
    """How often each pair [V, V] occurs."""
    counts = torch.zeros(VOCAB_SIZE, VOCAB_SIZE, dtype=torch.float64)
    return counts.index_put_((rows, columns), torch.ones(len(rows), dtype=torch.float64), accumulate=True)


def test_the_second_token_is_drawn_anew_after_the_first() -> None:
    model, _ = small()
    drawn = model.generate(IDS, **UNFILTERED, temperature=2.0, max_new_tokens=2, num_return_sequences=SAMPLES)
    exact = pairs_of(2.0)
    observed = counted(drawn[:, -2], drawn[:, -1])
    assert_drawn_from(observed.flatten(), exact.flatten())
    assert not drawn_from(observed.flatten(), (exact.sum(1)[:, None] * exact.sum(0)).flatten())


def test_samples_of_a_row_and_rows_alike_are_independent() -> None:
    model, _ = small()
    rows = SAMPLES
    drawn = model.generate(
        IDS.expand(rows, -1), **UNFILTERED, temperature=2.0, max_new_tokens=1, num_return_sequences=4, seed=5
    )[:, -1].view(rows, 4)
    first = pairs_of(2.0).sum(dim=1)
    independent = (first[:, None] * first).flatten()
    for one, other in ((drawn[:, 0], drawn[:, 1]), (drawn[:, 1], drawn[:, 3]), (drawn[:-1, 0], drawn[1:, 0])):
        assert_drawn_from(counted(one, other).flatten(), independent)


def test_samples_with_ends_are_shorter_and_filled_up() -> None:
    model, _ = small()
    options: dict[str, Any] = {**UNFILTERED, "eos_token_id": [2, 5], "temperature": 2.0, "max_new_tokens": 6}
    options |= {"pad_token_id": 8, "suppress_tokens": [8]}
    drawn = model.generate(IDS, **options, num_return_sequences=2000)[:, 3:]
    ends = ((drawn == 2) | (drawn == 5)).int()
    behind = ends.cumsum(dim=1) - ends > 0
    assert torch.equal(drawn == 8, behind)
    assert behind.any()
    assert not behind.all(dim=0).any()


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"output_scores": True}], ids=str
)
def test_the_same_row_draws_the_same_sample_alone_and_in_a_batch(options: dict[str, Any]) -> None:
    model, _ = models()
    given = prompts("left", seed=1)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 10, "seed": 9}
    sampling["eos_token_id"] = frequent(model, given, 2)
    batch = model.generate(**given, **sampling, num_return_sequences=3, **options).view(3, 3, -1)
    alone = model.generate(given["input_ids"][:1, PLACES - LENGTHS[0] :], **sampling, num_return_sequences=2)
    for sample in range(2):
        found = batch[0, sample, PLACES - LENGTHS[0] :]
        assert found[: alone.shape[1]].tolist() == alone[sample].tolist()
    # Every row and every sample is drawn for itself, though more than one may end at once.
    new = batch[:, :, PLACES:].flatten(0, 1)
    assert len({tuple(row) for row in new.tolist()}) > 6


def test_a_sample_is_the_same_again_and_another_with_another_seed() -> None:
    model, _ = models()
    options: dict[str, Any] = {**prompts("left"), "do_sample": True, "temperature": 2.0, "max_new_tokens": 8}
    torch.manual_seed(0)
    first = model.generate(**options)
    torch.manual_seed(1)
    assert torch.equal(model.generate(**options, seed=0), first)
    assert not torch.equal(model.generate(**options, seed=1), first)


def test_equal_prompts_of_different_rows_draw_differently() -> None:
    model, _ = models()
    drawn = model.generate(prompts("none")["input_ids"][:1].expand(4, -1), do_sample=True, max_new_tokens=6)
    assert len({tuple(row) for row in drawn.tolist()}) == 4
