"""Beam search against transformers; what a beam holds; beam sampling against the exact distribution of its draws."""

from typing import Any

import pytest
import torch

from gpt2model.errors import InputError
from tests.gpt2model.generation.alike import LENGTHS, PLACES, RECORD, frequent, generated_alike, models, prompts
from tests.gpt2model.generation.chi_square import assert_drawn_from, drawn_from
from tests.gpt2model.oracle import padded_ids, random_ids

CACHES: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}, {"use_cache": False}]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beam_search_is_transformers(num_beams: int, length_penalty: float, early_stopping: bool | str) -> None:
    model, oracle = models()
    lengths = set()
    for side, ends in (("none", 1), ("left", 3)):
        given = prompts(side, seed=num_beams)
        record = generated_alike(
            model,
            oracle,
            given,
            max_new_tokens=10,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            num_return_sequences=num_beams,
            eos_token_id=frequent(model, given, ends),
        )
        lengths |= set((record.beam_indices >= 0).sum(dim=1).tolist())
    # Some continuations ended before others, unless longer is better at any price.
    assert len(lengths) > 1 or length_penalty > 1


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.3, 0.6])
def test_a_search_stops_at_the_step_at_which_transformers_stops(
    length_penalty: float, early_stopping: bool | str
) -> None:
    model, oracle = models()
    steps = []
    for seed in range(3):
        given = prompts("left", seed=seed)
        for most in (4, 6, 9):
            options: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": early_stopping}
            options |= {"num_beams": 3, "max_new_tokens": most, "eos_token_id": frequent(model, given, 6)}
            steps.append(most - len(generated_alike(model, oracle, given, **options).scores))
    assert any(steps)


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2DoubleHeadsModel"])
def test_every_cache_gives_the_same_beams(name: str, side: str, cache: dict[str, Any]) -> None:
    model, oracle = models(name)
    given = prompts(side, seed=1)
    ends = frequent(model, given, 2)
    options = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 8, "eos_token_id": ends}
    record = generated_alike(model, oracle, given, **options, **cache)
    assert (record.past_key_values is None) == ("use_cache" in cache)


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 6},
        {"min_length": 12},
        {"repetition_penalty": 1.7},
        {"sequence_bias": [[[3], 5.0], [[8, 9], -4.0]]},
        {"bad_words_ids": [[3], [8, 9]]},
        {"suppress_tokens": [1, 2, 3, 5]},
        {"begin_suppress_tokens": [8, 9, 10]},
        {"forced_eos_token_id": [5, 6]},
        {"exponential_decay_length_penalty": (3, 1.3)},
        {"renormalize_logits": True},
        {"remove_invalid_values": True},
        {"no_repeat_ngram_size": 2},
        {"max_length": 9},
        {"do_sample": False, "temperature": 2.0, "top_k": 3},
    ],
    ids=str,
)
def test_beams_follow_every_option_as_transformers_do(options: dict[str, Any]) -> None:
    model, oracle = models()
    given = prompts("left", seed=2)
    common = {"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 3}
    if "max_length" in options:
        del common["max_new_tokens"]
    generated_alike(model, oracle, given, **common, **options, eos_token_id=frequent(model, given))


@pytest.mark.parametrize("num_return_sequences", [1, 2, 4])
def test_a_search_returns_its_best_continuations_best_first(num_return_sequences: int) -> None:
    model, oracle = models()
    given = prompts("left", seed=3)
    ends = frequent(model, given)
    options = {"num_beams": 4, "max_new_tokens": 7, "eos_token_id": ends, "length_penalty": 0.5}
    record = generated_alike(model, oracle, given, **options, num_return_sequences=num_return_sequences)
    scores = record.sequences_scores.view(3, num_return_sequences)
    assert torch.equal(scores, scores.sort(dim=1, descending=True).values)


def test_sequences_scores_are_sums_of_transition_scores_by_length() -> None:
    model, _ = models()
    given = prompts("left", seed=4)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, "length_penalty": 0.7}
    record = model.generate(**given, **options, **RECORD, eos_token_id=frequent(model, given))
    chosen = model.compute_transition_scores(record.sequences, record.scores, record.beam_indices)
    lengths = (record.beam_indices >= 0).sum(dim=1)
    torch.testing.assert_close(chosen.sum(dim=1) / lengths**0.7, record.sequences_scores)


def test_exhaustive_beams_find_the_likeliest_continuation_of_all() -> None:
    model, _ = models(vocab_size=11, pad_token_id=0)
    ids = torch.tensor([[3, 1, 4]])
    found = model.generate(ids, num_beams=121, max_new_tokens=3, eos_token_id=None, **RECORD)
    every = torch.cartesian_prod(*[torch.arange(11)] * 3)
    with torch.no_grad():
        logits = model(torch.cat([ids.expand(len(every), -1), every], dim=1)).logits
    scores = logits[:, 2:-1].log_softmax(dim=-1).gather(2, every[:, :, None]).sum(dim=(1, 2))
    assert found.sequences[0, 3:].tolist() == every[scores.argmax()].tolist()
    torch.testing.assert_close(found.sequences_scores[0], scores.max() / 3)


def test_one_beam_is_greedy_search() -> None:
    model, _ = models()
    given = prompts("left", seed=5)
    assert torch.equal(model.generate(**given, num_beams=1), model.generate(**given))


def test_more_ends_than_candidates_are_no_error() -> None:
    model, _ = models(vocab_size=5, pad_token_id=0)
    ids = torch.tensor([[3, 1], [4, 2]])
    found = model.generate(ids, num_beams=3, max_new_tokens=4, eos_token_id=[0, 1, 2, 3, 4], early_stopping=True)
    with torch.no_grad():
        assert found[:, 2:].tolist() == model(ids).logits[:, -1:].argmax(-1).tolist()


def test_what_is_behind_an_end_is_the_pad_token_even_if_that_is_0() -> None:
    model, oracle = models()
    given = prompts("none", seed=6)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9}
    options["eos_token_id"] = frequent(model, given, 2)
    ours, theirs = (each.generate(**given, **options, pad_token_id=0) for each in (model, oracle))
    differs = ours != theirs
    # transformers takes the 0 for no pad token at all.
    assert differs.any()
    assert set(ours[differs].tolist()) == {0}
    assert set(theirs[differs].tolist()) == {options["eos_token_id"][0]}


def test_beams_end_at_the_contexts_edge() -> None:
    model, oracle = models()
    ids = random_ids(2, 36)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": None}
    for early_stopping in (False, "never"):
        options["early_stopping"] = early_stopping
        found = model.generate(ids, max_new_tokens=30, **options)
        assert torch.equal(found, oracle.generate(ids, max_new_tokens=5, **options))


def test_rows_of_a_search_end_at_the_edge_each_at_its_own_length() -> None:
    model, _ = models()
    ids, mask = padded_ids([36, 33], 36, "left")
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 30, "eos_token_id": None}
    for cache in CACHES:
        found = model.generate(ids, attention_mask=mask, **options, **cache)
        for row, length in enumerate((36, 33)):
            alone = model.generate(ids[row : row + 1, 36 - length :], **options)
            assert found[row, 36 - length :][: alone.shape[1]].tolist() == alone[0].tolist()
            assert alone.shape[1] == model.config.n_positions + 1


def test_the_same_row_is_searched_alike_alone_and_in_a_batch() -> None:
    model, _ = models()
    given = prompts("left", seed=8)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8, "eos_token_id": frequent(model, given)}
    batch = model.generate(**given, **options)
    for row, length in enumerate(LENGTHS):
        alone = model.generate(given["input_ids"][row : row + 1, PLACES - length :], **options)[0]
        assert batch[row, PLACES - length :][: len(alone)].tolist() == alone.tolist()


def test_constraints_number_a_beams_row_as_transformers_does() -> None:
    model, oracle = models()
    given = prompts("none", seed=9)
    asked: dict[str, list[tuple[int, list[int]]]] = {"ours": [], "theirs": []}

    def allowing(who: str) -> Any:
        def allowed(row: int, ids: torch.Tensor) -> list[int]:
            asked[who].append((row, ids.tolist()))
            return list(range(row * 20, row * 20 + 15))

        return allowed

    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 5, "eos_token_id": None}
    ours = model.generate(**given, **options, prefix_allowed_tokens_fn=allowing("ours"))
    theirs = oracle.generate(**given, **options, prefix_allowed_tokens_fn=allowing("theirs"))
    assert torch.equal(ours, theirs)
    assert asked["ours"] == asked["theirs"]
    assert [set((row // 20).tolist()) for row in ours[:, PLACES:]] == [{0}, {1}, {2}]


def test_a_step_that_leaves_nothing_to_choose_is_an_error() -> None:
    model, _ = models()
    options: dict[str, Any] = {"num_beams": 2, "forced_eos_token_id": 5, "bad_words_ids": [[5]], "eos_token_id": None}
    with pytest.raises(InputError, match="no token can follow the 0 new ones of row 0"):
        model.generate(**prompts(), **options, begin_suppress_tokens=[5], max_new_tokens=1)


def first_beams(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Log-probabilities [V] of what a beam may begin with, as transformers filters them."""
    _, oracle = models(vocab_size=7, pad_token_id=0)
    drawn = oracle.generate(ids, max_new_tokens=1, num_beams=2, do_sample=True, **options, **RECORD)
    return drawn.scores[0][0].log_softmax(dim=-1)


@pytest.mark.parametrize("options", [{}, {"temperature": 2.5}, {"temperature": 2.0, "top_k": 4}], ids=str)
def test_beam_sampling_draws_without_replacement(options: dict[str, Any]) -> None:
    model, _ = models(vocab_size=7, pad_token_id=0)
    ids, rows = torch.tensor([[3, 1, 4]]), 4000
    options = {"eos_token_id": None, **options}
    found = model.generate(
        ids.expand(rows, -1), max_new_tokens=1, num_beams=2, num_return_sequences=2, do_sample=True, **options
    )
    pairs = found[:, -1].view(rows, 2).sort(dim=1).values
    p = first_beams(model, ids, **options).exp().double()
    # Either may be drawn first, and the other then among what is left.
    either = p[:, None] * p / (1 - p[:, None]) + p[:, None] * p / (1 - p)
    expected = either.triu(1)
    observed = torch.zeros(7, 7).index_put_(pairs.unbind(1), torch.ones(rows), accumulate=True)
    assert_drawn_from(observed.flatten(), expected.flatten())
    assert not drawn_from(observed.flatten(), (p[:, None] * p).triu(1).flatten() / (p[:, None] * p).triu(1).sum())


def test_a_drawn_search_is_the_same_again_and_another_with_another_seed() -> None:
    model, _ = models()
    given = prompts("left", seed=10)
    options: dict[str, Any] = {"num_beams": 3, "do_sample": True, "max_new_tokens": 8, "temperature": 3.0}
    first, again, other = (model.generate(**given, **options, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    row = given["input_ids"][:1]
    assert torch.equal(model.generate(row, **options, seed=7), first[:1])
