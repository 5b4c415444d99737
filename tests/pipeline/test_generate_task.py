"""Rows get what single sequences give, whatever is computed beside them; bad rows cost only themselves."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2model.generation import share_prefixes
from gpt2model.generation.noise import gumbel, step_keys, stream_keys
from pipeline.errors import JobError
from pipeline.tasks.rows import ROW
from tests.pipeline.conftest import sentence
from tests.pipeline.generating import Generating, answered, save_lively

TEXTS = [sentence(seed, 1 + seed % 13) for seed in range(24)]
CONTEXT = 64
DRAWN = {"do_sample": True, "top_k": 0}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "drawn": DRAWN, "beams": {"num_beams": 3}}


@pytest.fixture(scope="module")
def lively(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generating:
    return Generating(save_lively(tmp_path_factory.mktemp("lively"), checkpoint))


@pytest.fixture
def poisoned(lively: Generating) -> Iterator[None]:
    """Whatever the model reads at position 40 makes its scores not finite."""
    place = lively.model.transformer.wpe.weight[40]
    kept = place.clone()
    place.fill_(float("nan"))
    yield
    place.copy_(kept)


def test_greedy_rows_are_what_a_plain_loop_finds(lively: Generating) -> None:
    rows, result = lively({"text": TEXTS}, max_new_tokens=20, token_ids=True, logprobs=True)
    for text, row in zip(TEXTS, rows, strict=True):
        ids = lively.ids(text)
        expected = lively.looped(ids, 20)
        assert row["generated_ids"] == expected
        assert row["generated_text"] == lively.tokenizer.decode(expected, skip_special_tokens=True)
        assert row["finish_reason"] == ("eos" if expected[-1] == lively.tokenizer.eos_token_id else "length")
        assert (row["num_prompt_tokens"], row["num_generated_tokens"]) == (len(ids), len(expected))
        assert row["generated_logprobs"] == pytest.approx(lively.logprobs(ids, expected), rel=1e-4, abs=1e-5)
    assert {row["finish_reason"] for row in rows} == {"eos", "length"}
    assert result.figures["new_tokens"] == sum(row["num_generated_tokens"] for row in rows)
    assert not result.errors


def test_draws_are_those_of_seed_row_and_sample(lively: Generating) -> None:
    places = [3 * place + 2**40 for place in range(8)]
    seeds = [None, 5, -7, 2**63 - 1, None, 0, -(2**63), 11]
    columns = {"text": TEXTS[:8], "seed": pa.array(seeds, pa.int64()), ROW: places}
    task = lively.task("text", "seed", max_new_tokens=12, seed=9, num_return_sequences=2, token_ids=True, **DRAWN)
    rows, _ = answered(task, lively.model, pa.table(columns), lively.runner(task))
    for text, seed, place, row in zip(TEXTS, seeds, places, rows, strict=False):
        noises = [(9 if seed is None else seed, place, sample) for sample in range(2)]
        assert row["generated_ids"] == [lively.looped(lively.ids(text), 12, noise) for noise in noises]


def test_draws_are_those_of_a_batch_that_model_generate_gets(lively: Generating) -> None:
    texts = [text for text in map(sentence, range(60), [6] * 60) if len(lively.ids(text)) == 9]
    assert len(texts) > 2
    batch = torch.tensor([lively.ids(text) for text in texts])
    options: dict[str, Any] = {"do_sample": True, "top_k": 40, "temperature": 0.8, "max_new_tokens": 12}
    made: Any = lively.model.generate(batch, seed=4, num_return_sequences=3, **options)
    rows, _ = lively({"text": texts}, seed=4, num_return_sequences=3, token_ids=True, **options)
    found = [ids + [lively.tokenizer.eos_token_id] * (12 - len(ids)) for row in rows for ids in row["generated_ids"]]
    assert found == made[:, batch.shape[1] :].tolist()


BEAMS: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 3, "length_penalty": -1.0, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "no_repeat_ngram_size": 2},
]


@pytest.mark.parametrize("options", BEAMS, ids=str)
def test_beams_are_what_model_generate_finds_for_a_row_alone(lively: Generating, options: dict[str, Any]) -> None:
    limits = [10 + 5 * (place % 2) for place in range(len(TEXTS))]
    rows, _ = lively({"text": TEXTS, "max_new_tokens": limits}, token_ids=True, logprobs=True, **options)
    several = "num_return_sequences" in options
    for text, limit, row in zip(TEXTS, limits, rows, strict=True):
        expected = lively.alone(text, max_new_tokens=limit, **options)
        found = row["generated_ids"] if several else [row["generated_ids"]]
        assert found == expected
        scored = row["generated_logprobs"] if several else [row["generated_logprobs"]]
        for own, ids in zip(scored, expected, strict=True):
            assert own == pytest.approx(lively.logprobs(lively.ids(text), ids), rel=1e-4, abs=1e-5)
    ends = {each for row in rows for each in (row["finish_reason"] if several else [row["finish_reason"]])}
    assert ends == {"eos", "length"}


def test_beams_do_not_go_with_draws(lively: Generating) -> None:
    with pytest.raises(JobError, match=r"generate\.do_sample with generate\.num_beams"):
        lively.task("text", do_sample=True, num_beams=2)


RUNNERS = [(1, 1, 96, 1), (1, 5, 160, 64), (2, 3, 96, 40), (3, 16, 2048, 2048)]
"""Engines, sequences at once, positions of the cache (96 is the least for a context of 64), tokens a step."""
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
LIMIT = st.one_of(st.integers(1, 12), st.integers(1, 70))
ROWS = st.lists(st.tuples(TEXT, LIMIT, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def runners(lively: Generating) -> dict[str, Any]:
    """For two ways of choosing tokens: the task, a runner for one row at a time, and those of RUNNERS."""
    made = {}
    for way in ("greedy", "drawn"):
        task = lively.task("text", "max_new_tokens", "seed", token_ids=True, logprobs=True, **WAYS[way])
        made[way] = task, lively.runner(task, slots=1), [lively.runner(task, *each) for each in RUNNERS]
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ROWS,
    st.booleans(),
    st.sampled_from(["greedy", "drawn"]),
    st.integers(0, len(RUNNERS) - 1),
    st.randoms(use_true_random=False),
)
def test_a_row_gets_the_same_whatever_the_batch_the_order_the_cache_and_the_engines(
    lively: Generating,
    runners: dict[str, Any],
    given_rows: list[tuple[str, int, int]],
    shared: bool,
    way: str,
    choice: int,
    shuffle: random.Random,
) -> None:
    task, single, several = runners[way]
    header = f"{sentence(1, 22)} " if shared else ""
    table = pa.table(
        {
            "text": [header + text for text, _, _ in given_rows],
            "max_new_tokens": [limit for _, limit, _ in given_rows],
            "seed": [seed for _, _, seed in given_rows],
            ROW: [shuffle.randrange(2**62) for _ in given_rows],
        }
    )
    order = list(range(len(given_rows)))
    shuffle.shuffle(order)
    one_by_one, result = answered(task, lively.model, table, single)
    assert not result.errors
    together, _ = answered(task, lively.model, table.take(order), several[choice])
    assert together == [one_by_one[row] for row in order]
    # A beginning that rows share is computed apart, which rounds otherwise.
    if not any(share_prefixes(task.prepare(table).prompts)):
        (alone,), _ = answered(task, lively.model, table.slice(order[0], 1), single)
        assert together[0] == alone


def test_rows_that_begin_alike_get_what_they_get_alone(lively: Generating) -> None:
    headers = [f"{sentence(1, 22)} ", f"{sentence(1, 30)} ", f"{sentence(2, 24)} "]
    texts = [headers[place % 3] + text for place, text in enumerate(TEXTS * 5)]
    task = lively.task("text", max_new_tokens=12, token_ids=True, **DRAWN)
    runner = lively.runner(task)
    rows, result = answered(task, lively.model, pa.table({"text": texts}), runner)
    assert runner.tokens < 0.75 * (result.figures["tokens"] + result.figures["new_tokens"])
    for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
        assert row["generated_ids"] == lively.looped(lively.ids(text)[-53:], 12, (0, place, 0))


@pytest.mark.parametrize("budget", [1, 100, 4096])
def test_beams_do_not_depend_on_the_batch(lively: Generating, budget: int) -> None:
    task = lively.task("text", num_beams=3, max_new_tokens=12, token_ids=True)
    whole, _ = answered(task, lively.model, pa.table({"text": TEXTS}), lively.runner(task))
    order = random.Random(budget).sample(range(len(TEXTS)), len(TEXTS))
    shuffled = pa.table({"text": [TEXTS[each] for each in order]})
    rows, _ = answered(task, lively.model, shuffled, lively.runner(task, engines=2, step=budget))
    assert rows == [whole[each] for each in order]


@pytest.mark.parametrize("way", WAYS)
def test_prompts_of_one_token_and_of_the_whole_context_go_together(lively: Generating, way: str) -> None:
    ids = lively.ids(sentence(3, 80))
    lengths = [1, CONTEXT, 2, CONTEXT - 1, 33, CONTEXT, 1]
    texts = [lively.tokenizer.decode(ids[-length:]) for length in lengths]
    assert [len(lively.ids(text)) for text in texts] == lengths
    limits = [CONTEXT, 1, CONTEXT - 1, 2, 32, 1, 1]
    columns = {"text": texts, "max_new_tokens": limits}
    rows, result = lively(columns, token_ids=True, **WAYS[way])
    assert result.figures["cut"] == 0
    for place, (text, limit, row) in enumerate(zip(texts, limits, rows, strict=True)):
        assert row["num_prompt_tokens"] == lengths[place]
        if way == "beams":
            assert row["generated_ids"] == lively.alone(text, max_new_tokens=limit, num_beams=3)[0]
        else:
            noise = (0, place, 0) if way == "drawn" else None
            assert row["generated_ids"] == lively.looped(lively.ids(text), limit, noise)


def test_ten_thousand_empty_prompts_each_get_their_own_draw(lively: Generating) -> None:
    task = lively.task("text", max_new_tokens=1, token_ids=True, **DRAWN)
    runner = lively.runner(task, slots=64, cache_tokens=64 * CONTEXT + 32)
    rows, result = answered(task, lively.model, pa.table({"text": [""] * 10_000}), runner)
    numbers = torch.arange(10_000)
    streams = stream_keys(torch.zeros_like(numbers), numbers, torch.zeros_like(numbers))
    noise = gumbel(step_keys(streams, torch.zeros_like(numbers)), torch.arange(lively.model.config.vocab_size))
    expected = (lively.model(torch.tensor([[lively.start]])).logits[0, -1] + noise).argmax(dim=1)
    assert [row["generated_ids"] for row in rows] == expected[:, None].tolist()
    assert {row["num_prompt_tokens"] for row in rows} == {1}
    # One token read and one made a row: nothing is read twice, however many are alike.
    assert runner.tokens == 20_000
    assert result.figures["tokens"] == 10_000


@pytest.mark.parametrize("way", WAYS)
def test_bad_rows_cost_only_themselves(lively: Generating, way: str) -> None:
    broken = pa.array([b"the cat", b"the \xff cat", b"sat"], pa.binary()).view(pa.string())
    texts = pa.chunked_array([pa.array([TEXTS[0], None, "", TEXTS[1], TEXTS[2]]), broken])
    limits = pa.array([9, 9, 9, 0, -3, None, 9, 2**40])
    columns = {"text": texts, "max_new_tokens": limits}
    rows, result = lively(columns, max_new_tokens=7, min_new_tokens=CONTEXT, **WAYS[way])
    assert result.errors == {
        1: "text is null",
        3: "max_new_tokens is 0: it must be 1 or more",
        4: "max_new_tokens is -3: it must be 1 or more",
        6: "text is not valid UTF-8 at byte 4",
    }
    for place, row in enumerate(rows):
        assert set(row.values()) == {None} if place in result.errors else None not in row.values()
    assert (rows[5]["num_generated_tokens"], rows[7]["num_generated_tokens"]) == (7, CONTEXT)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("way", WAYS)
def test_rows_whose_scores_are_not_finite_cost_only_themselves(lively: Generating, way: str) -> None:
    texts = [sentence(seed, 1 + 7 * seed % 40) for seed in range(24)]
    # One that fails on its prompt, and one that fails on the way.
    texts[10:10] = [sentence(1, 40), lively.tokenizer.decode(lively.ids(sentence(2, 40))[:39])]
    task = lively.task("text", max_new_tokens=4, token_ids=True, **WAYS[way])
    table = pa.table({"text": texts})
    rows, result = answered(task, lively.model, table, lively.runner(task, slots=3, cache_tokens=160))
    assert {10, 11} <= set(result.errors)
    assert "scores are not finite" in result.errors[10]
    for place, row in enumerate(rows):
        numbered = table.slice(place, 1).append_column(ROW, [[place]])
        (alone,), single = answered(task, lively.model, numbered, lively.runner(task, slots=1))
        assert row == alone
        assert (place in result.errors) == bool(single.errors)
        if len(lively.ids(texts[place])) < 37:
            assert not single.errors


@pytest.mark.parametrize("tokens", [80, 48, 32])
def test_rows_that_device_memory_cannot_hold_get_the_error_and_the_others_their_texts(
    lively: Generating, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    header = sentence(77, 30)
    texts = [f"{header} {sentence(seed, 3 + seed % 5)}" for seed in range(7)] + TEXTS
    whole = lively.model.transformer.forward_tokens

    def scarce(ids: torch.Tensor, *arguments: Any) -> Any:
        if len(ids) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(ids, *arguments)

    calm, _ = lively({"text": texts}, max_new_tokens=6, token_ids=True, **DRAWN)
    monkeypatch.setattr(lively.model.transformer, "forward_tokens", scarce)
    rows, result = lively({"text": texts}, max_new_tokens=6, token_ids=True, **DRAWN)
    # A step's tokens are filled up to a multiple of 16.
    too_long = [place for place, text in enumerate(texts) if len(lively.ids(text)) > tokens]
    assert sorted(result.errors) == too_long
    assert bool(too_long) == (tokens == 32)
    assert all("out of device memory" in why for why in result.errors.values())
    assert [row for place, row in enumerate(rows) if place not in too_long] == [
        row for place, row in enumerate(calm) if place not in too_long
    ]


@pytest.mark.parametrize("call", ["forward", "forward_packed"])
def test_searches_and_their_scores_that_device_memory_cannot_hold_cost_only_their_row(
    lively: Generating, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    texts = [sentence(1, 40), *TEXTS]
    calm, _ = lively({"text": texts}, max_new_tokens=6, num_beams=2, logprobs=True)
    whole = getattr(lively.model.transformer, call)

    def scarce(given: Any, *arguments: Any, **options: Any) -> Any:
        if (given.input_ids if call == "forward_packed" else given).numel() > 45:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(given, *arguments, **options)

    monkeypatch.setattr(lively.model.transformer, call, scarce)
    rows, result = lively({"text": texts}, max_new_tokens=6, num_beams=2, logprobs=True)
    assert list(result.errors) == [0]
    assert "out of device memory" in result.errors[0]
    for row, quiet in zip(rows[1:], calm[1:], strict=True):
        assert row["generated_text"] == quiet["generated_text"]
        assert row["generated_logprobs"] == pytest.approx(quiet["generated_logprobs"], rel=1e-4, abs=1e-5)
