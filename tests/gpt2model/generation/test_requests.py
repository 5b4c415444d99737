"""Shared beginnings are found, and shared where that saves the most tokens."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2model.generation import Prefix, share_prefixes


def saved(prefixes: list[Prefix | None], cost: int) -> int:
    """Tokens that are not read again."""
    groups = {id(each): each for each in prefixes if each is not None}
    count = [sum(other is each for other in prefixes) for each in groups.values()]
    return sum((members - 1) * len(each.ids) - cost for members, each in zip(count, groups.values(), strict=True))


def most_that_can_be_saved(prompts: list[list[int]], least: int, cost: int) -> int:
    """By trying every division of the sorted prompts into runs."""
    ranked = sorted(prompts)

    @cache
    def best(first: int) -> int:
        if first == len(ranked):
            return 0
        found = best(first + 1)
        for end in range(first + 2, len(ranked) + 1):
            run = ranked[first:end]
            columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*run, strict=False))
            length = min(len(list(columns)), min(map(len, run)) - 1)
            if length >= least:
                found = max(found, (end - first - 1) * length - cost + best(end))
        return found

    return best(0)


PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=7), max_size=9)


@settings(max_examples=300, deadline=None)
@given(PROMPTS, st.integers(1, 3), st.sampled_from([0, 1, 3, 6]))
def test_nothing_saves_more(prompts: list[list[int]], least: int, cost: int) -> None:
    prefixes = share_prefixes([np.array(prompt) for prompt in prompts], least, cost)
    assert len(prefixes) == len(prompts)
    for prompt, prefix in zip(prompts, prefixes, strict=True):
        if prefix is not None:
            assert least <= len(prefix.ids) < len(prompt)
            assert prompt[: len(prefix.ids)] == prefix.ids.tolist()
            assert sum(other is prefix for other in prefixes) > 1
    assert saved(prefixes, cost) == most_that_can_be_saved(prompts, least, cost)


def test_samples_of_one_prompt_share_all_but_its_last_token() -> None:
    prompt = np.arange(40)
    first, second, other = share_prefixes([prompt, prompt.copy(), np.arange(100, 140)], 16, cost=0)
    assert first is second is not None
    assert other is None
    assert first.ids.tolist() == list(range(39))


@pytest.mark.parametrize("count", [0, 1])
def test_there_is_nothing_to_share_alone(count: int) -> None:
    assert share_prefixes([np.arange(50)] * count, 1, cost=0) == [None] * count


def test_thousands_behind_one_header_share_it() -> None:
    drawn = np.random.default_rng(0)
    header = drawn.integers(0, 50_257, 200)
    prompts = [np.concatenate([header, drawn.integers(0, 50_257, 1 + place % 50)]) for place in range(4096)]
    prefixes = {id(prefix): prefix for prefix in share_prefixes(prompts, 32)}
    (only,) = prefixes.values()
    assert only is not None
    assert only.ids.tolist() == header.tolist()
