"""Continuous equals alone: what the engine gives a row is what generate() gives it by itself."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2model.errors import InputError
from gpt2model.generation import Continuation, Engine, GenerationConfig, Prefix, Request, share_prefixes
from gpt2model.generation.blocks import BLOCK
from gpt2model.generation.schedule import Schedule
from gpt2model.generation.stopping import StopStrings
from tests.gpt2model.oracle import ours

POSITIONS = 100
LEAST_CACHE = BLOCK * 5
MOST_NEW = 50
EOS = [3, 50]
LETTERS = [bytes([33 + token]) for token in range(90)] + [None] * 7
STOP = ["Qq", "!a"]

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy without eos": {"eos_token_id": None},
    "sampled": {"do_sample": True, "top_k": 0},
    "best candidates": {"do_sample": True, "top_k": 5, "temperature": 0.7, "top_p": 0.9, "min_p": 0.01},
    "filtered": {"do_sample": True, "top_k": 0, "top_p": 0.8, "typical_p": 0.9, "epsilon_cutoff": 1e-3},
    "processed": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 6,
        "bad_words_ids": [[5], [7, 8]],
        "suppress_tokens": [9],
        "begin_suppress_tokens": [11, 12],
        "sequence_bias": [[[13, 14], 2.0], [[15], -1.0]],
        "exponential_decay_length_penalty": (10, 1.1),
    },
    "processed and sampled": {"do_sample": True, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "top_k": 20},
    "stopped": {"do_sample": True, "top_k": 0, "stop_strings": STOP, "eos_token_id": None},
}


@cache
def model(name: str = "GPT2LMHeadModel") -> Any:
    return ours(name, n_positions=POSITIONS, n_layer=2, eos_token_id=None)


@cache
def prompts() -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Of all lengths, some behind one of two common beginnings, one of those the other's beginning."""
    drawn = np.random.default_rng(0)
    header = drawn.integers(0, 97, 70)
    lengths = [1, 2, 31, 32, 33, 64, 99, 100, *drawn.integers(1, 90, 8)]
    free = [drawn.integers(0, 97, length) for length in lengths]
    short = [np.concatenate([header[:35], drawn.integers(0, 97, length)]) for length in (1, 4, 20, 40, 65)]
    long = [np.concatenate([header, drawn.integers(0, 97, length)]) for length in (1, 2, 9, 30)]
    return [*free, *short, *long, header, header[:35]]


@cache
def config(name: str) -> GenerationConfig:
    return GenerationConfig(**{"eos_token_id": EOS, "pad_token_id": 0, **OPTIONS[name]})


class Spelling:
    """Of a tokenizer what stop strings ask of it."""

    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def get_vocab(self) -> dict[str, int]:
        return {letter.decode(): token for token, letter in enumerate(LETTERS) if letter}


@cache
def alone(name: str, place: int, seed: int) -> list[int]:
    """The new tokens of one prompt, MOST_NEW at most, by generate()."""
    prompt = torch.from_numpy(prompts()[place])[None]
    read = {"attention_mask": torch.ones_like(prompt), "tokenizer": Spelling()}
    found = model().generate(prompt, config(name), max_new_tokens=MOST_NEW, seed=seed, **read)
    return list(found[0, prompt.shape[1] :].tolist())


def requests(places: list[int], limits: list[int], shared: bool) -> list[Request]:
    chosen = [prompts()[place] for place in places]
    prefixes = share_prefixes(chosen, 16, cost=0) if shared else [None] * len(chosen)
    rows = zip(chosen, limits, places, prefixes, strict=True)
    return [
        Request(prompt, limit, (number, place), seed=number % 3, prefix=prefix)
        for number, (prompt, limit, place, prefix) in enumerate(rows)
    ]


def engine(name: str, **options: Any) -> Engine:
    sizes = {"slots": 4, "cache_tokens": 2000, **options}
    stop = StopStrings(LETTERS, STOP) if name == "stopped" else None
    return Engine(model(), config(name), stop=stop, **sizes)


def check(name: str, answers: list[Continuation], asked: list[Request]) -> None:
    """Each request has one answer: generate()'s, up to its limit or the context's edge."""
    assert sorted(answer.request.ticket for answer in answers) == [request.ticket for request in asked]
    for answer in answers:
        request = answer.request
        whole = alone(name, request.ticket[1], request.seed)
        limit = min(request.max_new_tokens, POSITIONS + 1 - len(request.prompt_ids))
        assert answer.token_ids.tolist() == whole[:limit]
        assert answer.error is None
        ended = len(whole) <= limit and len(whole) < min(MOST_NEW, POSITIONS + 1 - len(request.prompt_ids))
        if answer.finish_reason == "length":
            assert len(answer.token_ids) == limit
        else:
            reason = "eos" if config(name).eos_token_id and whole[-1] in EOS else "stop"
            assert answer.finish_reason == reason
        assert not ended or answer.finish_reason != "length"


@settings(max_examples=250, deadline=None)
@given(
    name=st.sampled_from(sorted(OPTIONS)),
    rows=st.lists(
        st.tuples(st.integers(0, 26), st.integers(1, MOST_NEW) | st.sampled_from([1, MOST_NEW])),
        min_size=1,
        max_size=14,
    ),
    slots=st.integers(1, 9),
    cache_tokens=st.sampled_from([LEAST_CACHE, LEAST_CACHE + BLOCK, 400, 3000]),
    tokens_per_step=st.sampled_from([1, 30, 150, 2048]),
    shared=st.booleans(),
    graphs=st.booleans(),
    arrivals=st.randoms(use_true_random=False),
)
def test_a_row_gets_what_it_gets_alone(
    name: str,
    rows: list[tuple[int, int]],
    slots: int,
    cache_tokens: int,
    tokens_per_step: int,
    shared: bool,
    graphs: bool,
    arrivals: random.Random,
) -> None:
    asked = requests([place for place, _ in rows], [limit for _, limit in rows], shared)
    late, answers = asked.copy(), []
    arrivals.shuffle(late)
    running = engine(name, slots=slots, cache_tokens=cache_tokens, tokens_per_step=tokens_per_step, graphs=graphs)
    while late or running.unfinished:
        arriving = arrivals.randint(0 if running.unfinished else 1, 4)
        running.submit(late[:arriving])
        late = late[arriving:]
        answers += running.step()
    check(name, answers, asked)
    assert_empty(running)


def assert_empty(running: Engine) -> None:
    """Everything that was lent came back."""
    schedule: Schedule = running._schedule
    assert schedule.pool.taken == 0
    assert schedule.pool.unpromised == schedule.pool.blocks
    assert not schedule.held()
    assert running.vacant == running._slots


@pytest.mark.parametrize("shared", [False, True])
def test_requests_are_taken_from_their_iterator_as_they_are_needed(shared: bool) -> None:
    taken = []

    def source() -> Iterator[Request]:
        for request in requests([place % 26 for place in range(60)], [8] * 60, shared):
            taken.append(request)
            yield request

    running = engine("greedy", slots=3)
    answers = []
    for answer in running.run(source()):
        answers.append(answer)
        assert len(taken) - len(answers) < 3 * 4
    check("greedy", answers, taken)


def test_rows_and_samples_draw_as_the_rows_of_a_batch_do() -> None:
    prompt = torch.from_numpy(prompts()[12])
    several = config("sampled").replace(num_return_sequences=3)
    batch = model().generate(prompt.repeat(2, 1), several, max_new_tokens=12, seed=5)[:, len(prompt) :]
    asked = [
        Request(prompt.numpy(), 12, (row, sample), seed=5, row=row, sample=sample)
        for row in range(2)
        for sample in range(3)
    ]
    found = {answer.request.ticket: answer.token_ids.tolist() for answer in engine("sampled").run(asked)}
    assert len({tuple(tokens) for tokens in found.values()}) == 6
    for place, request in enumerate(asked):
        tokens = found[request.ticket]
        assert tokens == batch[place, : len(tokens)].tolist()


@pytest.mark.parametrize("name", ["greedy", "processed", "best candidates"])
@pytest.mark.parametrize("shared", [False, True])
def test_log_probabilities_are_the_models_own(name: str, shared: bool) -> None:
    asked = requests(list(range(26)), [10] * 26, shared)
    running = Engine(model(), config(name), slots=5, cache_tokens=1000, logprobs=True)
    for answer in running.run(asked):
        prompt, tokens = answer.request.prompt_ids, answer.token_ids
        logits = model()(torch.from_numpy(np.concatenate([prompt, tokens]))[None, :-1]).logits[0].double()
        expected = logits.log_softmax(-1)[len(prompt) - 1 :].gather(1, torch.from_numpy(tokens)[:, None])[:, 0]
        assert answer.logprobs is not None
        assert answer.logprobs == pytest.approx(expected.detach().numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2DoubleHeadsModel"])
def test_any_model_with_a_language_model_head_does(name: str) -> None:
    other = ours(
        name,
        n_positions=POSITIONS,
        eos_token_id=None,
        tie_word_embeddings=False,
        scale_attn_by_inverse_layer_idx=True,
    )
    options = GenerationConfig(max_new_tokens=20)
    asked = [Request(prompt, 20, place) for place, prompt in enumerate(prompts()[:10])]
    for answer in Engine(other, options, slots=3, cache_tokens=1000).run(asked):
        prompt = torch.from_numpy(answer.request.prompt_ids)[None]
        assert answer.token_ids.tolist() == other.generate(prompt, options)[0, prompt.shape[1] :].tolist()


def test_forced_eos_comes_at_each_rows_own_limit() -> None:
    options = GenerationConfig(eos_token_id=96, forced_eos_token_id=96)
    asked = requests([0, 1, 10, 11], [3, 9, 5, 1], shared=False)
    for answer in Engine(model(), options, slots=4, cache_tokens=1000).run(asked):
        assert answer.token_ids[-1] == 96
        assert answer.finish_reason == "eos"
        assert len(answer.token_ids) <= answer.request.max_new_tokens


def test_values_do_not_depend_on_the_neighbours() -> None:
    asked = [replace(each, max_new_tokens=30) for each in requests(list(range(26)), [30] * 26, shared=False)]
    together = {
        answer.request.ticket: answer
        for answer in Engine(model(), config("greedy"), slots=26, cache_tokens=4000, logprobs=True).run(asked)
    }
    for request in asked:
        (single,) = Engine(model(), config("greedy"), slots=1, cache_tokens=LEAST_CACHE, logprobs=True).run([request])
        assert single.token_ids.tolist() == together[request.ticket].token_ids.tolist()
        assert single.logprobs == pytest.approx(together[request.ticket].logprobs, rel=1e-5, abs=1e-5)


@dataclass
class Scarce:
    """A model's forward that runs out of memory on more than so many tokens."""

    whole: Any
    most: int
    refused: int = 0

    def __call__(self, input_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(input_ids) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory")
        states: torch.Tensor = self.whole(input_ids, *rest)
        return states


@pytest.mark.parametrize("shared", [False, True])
def test_where_memory_runs_out_fewer_rows_go_on_at_once(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    scarce = Scarce(model().transformer.forward_tokens, 112)
    monkeypatch.setattr(model().transformer, "forward_tokens", scarce)
    asked = requests([place for place in range(26) if place != 7], [12] * 25, shared)
    running = engine("greedy", slots=20)
    check("greedy", list(running.run(asked)), asked)
    assert scarce.refused
    assert_empty(running)


def test_a_row_that_does_not_fit_alone_is_answered_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model().transformer, "forward_tokens", Scarce(model().transformer.forward_tokens, 80))
    asked = requests([0, 6, 1, 7, 2], [5] * 5, shared=False)
    answers = {answer.request.ticket[1]: answer for answer in engine("greedy", slots=5).run(asked)}
    for place in (6, 7):
        assert answers[place].error is not None
        assert len(answers[place].token_ids) == 0
    check("greedy", [answers[place] for place in (0, 1, 2)], [asked[0], asked[2], asked[4]])


def test_a_row_without_a_finite_score_is_answered_with_the_reason() -> None:
    broken = ours(n_positions=POSITIONS)
    with torch.no_grad():
        broken.transformer.wte.weight[7] = torch.nan
    good = Request(np.array([1, 2, 3]), 4, "good")
    asked = [good, Request(np.array([5, 7]), 4, "bad"), replace(good, ticket="twin")]
    # The head is tied: only a model with its own shows scores beside the broken row.
    broken.lm_head.weight = torch.nn.Parameter(torch.where(broken.lm_head.weight.isnan(), 0.0, broken.lm_head.weight))
    found = {
        answer.request.ticket: answer
        for answer in Engine(broken, GenerationConfig(), slots=3, cache_tokens=200).run(asked)
    }
    assert found["bad"].error is not None
    assert found["good"].error is None
    assert found["good"].token_ids.tolist() == found["twin"].token_ids.tolist()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(np.zeros(0, np.int64), 5), "a prompt of 0 tokens"),
        (Request(np.zeros(101, np.int64), 5), "a prompt of 101 tokens.*n_positions is 100"),
        (Request(np.zeros(5, np.int64), 0), "max_new_tokens=0"),
        (Request(np.zeros(5, np.int64), 5, prefix=Prefix(np.zeros(5, np.int64))), "a prefix is"),
        (Request(np.zeros(5, np.int64), 5, prefix=Prefix(np.ones(2, np.int64))), "a prefix is"),
    ],
)
def test_a_request_that_can_never_begin_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine("greedy").submit([request_])


@pytest.mark.parametrize("sizes", [{"slots": 0}, {"cache_tokens": LEAST_CACHE - BLOCK}])
def test_a_cache_too_small_for_one_sequence_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="which holds one sequence of 100 positions"):
        engine("greedy", **sizes)


def test_slots_are_full_while_requests_wait() -> None:
    running = engine("greedy without eos", slots=6, cache_tokens=6 * 128)
    list(
        running.run(requests([place % 8 for place in range(80)], [1 + place % 40 for place in range(80)], shared=False))
    )
    counts = running.counts
    assert counts.busy_rows >= 0.95 * 6 * counts.busy_steps
    assert 0 < counts.filled_steps <= counts.block_steps


def test_a_shared_beginning_is_read_once() -> None:
    asked = requests([21, 22, 23, 24] * 5, [5] * 20, shared=True)
    running = engine("greedy", slots=20, cache_tokens=8000)
    check("greedy", list(running.run(asked)), asked)
    prefix = asked[0].prefix
    assert prefix is not None
    own = sum(len(request.prompt_ids) - len(prefix.ids) for request in asked)
    assert running.counts.prompt_tokens == len(prefix.ids) + own


def test_after_a_shortage_of_memory_rows_are_many_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scarce = Scarce(model().transformer.forward_tokens, 0)
    monkeypatch.setattr(model().transformer, "forward_tokens", scarce)
    asked = requests([place % 26 for place in range(150)], [6] * 150, shared=False)
    running = engine("greedy", slots=8)
    running.submit(asked)
    answers = running.step()
    assert running._schedule._most == 4
    scarce.most = 10_000
    while running.unfinished:
        answers += running.step()
    check("greedy", answers, asked)
    assert running._schedule._most == 8
    assert scarce.refused == 1


def test_a_prompt_longer_than_the_budget_is_read_beside_the_rows_under_way() -> None:
    asked = [Request(prompts()[9][:25], 20, place) for place in range(40)]
    running = engine("greedy without eos", slots=10, cache_tokens=4000, tokens_per_step=20)
    assert len(list(running.run(asked))) == 40
    assert running.counts.new_tokens > 6 * running.counts.steps


def test_blocks_of_a_row_that_met_nan_are_wiped_though_its_scores_were_mended() -> None:
    broken = ours(n_positions=POSITIONS, eos_token_id=None)
    whole = ours(n_positions=POSITIONS, eos_token_id=None)
    with torch.no_grad():
        broken.transformer.wpe.weight[30] = torch.nan
    good = Request(np.array([1, 2, 3]), 8, "good")
    bad = Request(np.arange(29), 8, "bad")
    options = GenerationConfig(remove_invalid_values=True)
    running = Engine(broken, options, slots=1, cache_tokens=LEAST_CACHE, logprobs=True)
    first, second = running.run([bad, good])
    assert (first.request.ticket, second.request.ticket) == ("bad", "good")
    assert second.token_ids.tolist() == whole.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8)[0, 3:].tolist()
    assert second.logprobs is not None
    assert np.isfinite(second.logprobs).all()
