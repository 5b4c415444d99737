"""Many prompts in one call get what generate() gives each alone."""

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2model import GenerationConfig, generate_many
from gpt2model.errors import ConfigError, InputError
from gpt2model.generation import many
from tests.gpt2model.oracle import ours, random_ids

LENGTHS = [1, 5, 33, 40, 17, 5]
ROOT = Path(__file__).resolve().parents[3]


def prompts() -> list[torch.Tensor]:
    return [random_ids(length, seed=length + place) for place, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def model() -> Any:
    return ours(n_positions=60, eos_token_id=11)


@pytest.mark.parametrize("limit", [7, [3, 9, 1, 30, 12, 4], None])
def test_greedy_search_ends_at_eos_or_at_the_limit(model: Any, limit: int | list[int] | None) -> None:
    found = generate_many(model, prompts(), max_new_tokens=limit, slots=3)
    limits = limit if isinstance(limit, list) else [limit or 20] * len(LENGTHS)
    for prompt, most, (answer,) in zip(prompts(), limits, found, strict=True):
        expected = model.generate(prompt[None], max_new_tokens=most)[0, len(prompt) :].tolist()
        assert answer.token_ids.tolist() == expected
        assert answer.finish_reason == ("eos" if expected[-1] == 11 else "length")


def test_samples_are_those_of_the_prompts_place(model: Any) -> None:
    config = GenerationConfig(do_sample=True, num_return_sequences=3, max_new_tokens=9, top_k=0)
    twice = [prompts()[1]] * 2
    found = generate_many(model, twice, config, seed=4, logprobs=True)
    batch = model.generate(torch.stack(twice), config, seed=4)[:, LENGTHS[1] :].tolist()
    flat = [answer for answers in found for answer in answers]
    assert len({tuple(row) for row in batch}) == len(flat) == 6
    for answer, row in zip(flat, batch, strict=True):
        length = len(answer.token_ids)
        assert answer.token_ids.tolist() == row[:length]
        assert set(row[length:]) <= {11}
        assert answer.logprobs is not None
        assert len(answer.logprobs) == length


@pytest.mark.parametrize(("options", "lengths"), [({"max_length": 36}, [20, 31, 3, 1, 19, 31]), ({}, [20] * 6)])
def test_the_configs_own_lengths_count(model: Any, options: dict[str, int], lengths: list[int]) -> None:
    found = generate_many(model, prompts(), GenerationConfig(**options))
    expected = [max(36 - length, 1) for length in LENGTHS] if options else lengths
    assert [len(answer.token_ids) for (answer,) in found] == expected


def test_what_it_does_not_do_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="num_beams=2"):
        generate_many(model, prompts(), GenerationConfig(num_beams=2))
    with pytest.raises(InputError, match="2 numbers for 6 prompts"):
        generate_many(model, prompts(), max_new_tokens=[1, 2])
    with pytest.raises(InputError, match="a prompt of 61 tokens"):
        generate_many(model, [torch.zeros(61, dtype=torch.int64)])
    assert generate_many(model, []) == []


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = (each for each in doctest.DocTestFinder().find(many) if each.name.endswith(".generate_many"))
    exec("".join(part.source for part in example.examples), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("length")
    assert second.rpartition(" ")[2] in ("eos", "length")
