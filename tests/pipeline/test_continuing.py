"""Engines share one queue: every order gets its own answers in its own order, or the reason why not; none hangs."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2model.generation import Continuation, Request
from gpt2model.generation.engine import EngineCounts
from pipeline.continuing import GROUPS_AT_ONCE, EngineRunner
from pipeline.errors import WorkerBroken

PATIENCE = 60
"""Seconds after which a test that waits for nothing fails; none waits so long."""


class Counting:
    """An engine that answers a request for n tokens in its n-th step, with the request's row as its tokens."""

    device = torch.device("cpu")

    def __init__(self, slots: int, before_step: Callable[[], object] = lambda: None) -> None:
        self.counts = EngineCounts()
        self.most_unfinished = 0
        self._slots = slots
        self._before_step = before_step
        self._under_way: list[tuple[Request, int]] = []

    @property
    def unfinished(self) -> int:
        return len(self._under_way)

    @property
    def vacant(self) -> int:
        return self._slots - self.unfinished

    def submit(self, requests: list[Request]) -> None:
        assert len(requests) <= self.vacant
        self._under_way += [(each, each.max_new_tokens) for each in requests]
        self.most_unfinished = max(self.most_unfinished, self.unfinished)
        self.counts.prompt_tokens += sum(len(each.prompt_ids) for each in requests)

    def step(self, *, more: bool) -> list[Continuation]:
        assert self._under_way
        self._before_step()
        self.counts.new_tokens += self.unfinished
        ended = [request for request, left in self._under_way if left == 1]
        self._under_way = [(request, left - 1) for request, left in self._under_way if left > 1]
        return [Continuation(each, np.full(each.max_new_tokens, each.row), "length", None) for each in ended]


def runner_of(*engines: Any) -> EngineRunner:
    return EngineRunner(list(engines))


def order(rows: list[int], lengths: list[int]) -> list[Request]:
    prompt = np.zeros(2, np.int64)
    return [Request(prompt, length, ticket="the caller's", row=row) for row, length in zip(rows, lengths, strict=True)]


ENGINES = [[Counting(slots) for slots in sizes] for sizes in ([1], [4], [1, 1], [3, 8], [2, 2, 16])]
RUNNERS = [runner_of(*each) for each in ENGINES]
"""Made once: an engine's thread lives as long as the process."""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), max_size=30), min_size=1, max_size=8), st.integers(0, len(RUNNERS) - 1))
def test_orders_of_many_threads_get_their_own_answers_in_their_order(orders: list[list[int]], choice: int) -> None:
    runner = RUNNERS[choice]
    before = runner.tokens
    asked = [order([1000 * number + place for place in range(len(each))], each) for number, each in enumerate(orders)]
    with ThreadPoolExecutor(len(asked)) as threads:
        futures = [threads.submit(runner.run, each) for each in asked]
        answers = [each.result(PATIENCE) for each in futures]
    for given_order, found in zip(asked, answers, strict=True):
        expected = [[each.row] * each.max_new_tokens for each in given_order]
        assert [each.token_ids.tolist() for each in found] == expected
    assert runner.tokens - before == sum(2 + length for each in orders for length in each)


def test_all_engines_take_part_and_none_takes_more_than_its_share() -> None:
    # Both must be in a step at once, which neither could be if one had taken all.
    meeting = threading.Barrier(2, timeout=PATIENCE)
    engines = [Counting(64, meeting.wait) for _ in range(2)]
    answers = runner_of(*engines).run(order(list(range(20)), [3] * 20))
    assert [int(each.token_ids[0]) for each in answers] == list(range(20))
    assert [each.most_unfinished for each in engines] == [10, 10]


def test_an_empty_order_has_no_answers() -> None:
    assert runner_of(Counting(1)).run([]) == []


@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("steps", [0, 7])
def test_an_engine_that_raises_tells_every_order_that_waits_and_those_that_come(engines: int, steps: int) -> None:
    done, lost = iter(range(steps)), threading.Event()

    def breaking() -> None:
        if next(done, None) is None:
            lost.set()
            raise ZeroDivisionError("a kernel was lost")

    def surviving() -> None:
        assert lost.wait(PATIENCE)  # so that there is work when it breaks

    runner = runner_of(Counting(1, breaking), *(Counting(1, surviving) for _ in range(engines - 1)))
    asked = [order([0] * 50, [1] * 50) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        failures = [each.exception(PATIENCE) for each in [threads.submit(runner.run, each) for each in asked]]
    told = [each for each in failures if each is not None]
    # The engines that are left may have finished what the broken one had no part in.
    assert told if engines > 1 else len(told) == 4
    for each in told:
        assert isinstance(each, WorkerBroken)
        assert "ZeroDivisionError: a kernel was lost" in str(each)
        assert isinstance(each.__cause__, ZeroDivisionError)
    with pytest.raises(WorkerBroken, match="a kernel was lost"):
        runner.run(order([0] * 1000, [5] * 1000))


def test_a_request_that_an_engine_refuses_is_told_too() -> None:
    class Refusing(Counting):
        def submit(self, requests: list[Request]) -> None:
            raise ValueError("a prompt of 0 tokens")

    with pytest.raises(WorkerBroken, match="a prompt of 0 tokens"):
        runner_of(Refusing(1)).run(order([0], [1]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.randoms(use_true_random=False))
def test_groups_come_in_order_and_not_many_are_ahead(groups: int, chance: random.Random) -> None:
    runner = RUNNERS[2]
    lengths = [chance.randint(1, 5) for _ in range(groups)]
    begun: list[int] = []

    def source() -> Iterator[int]:
        for group in range(groups):
            begun.append(group)
            yield group

    def compute(group: int) -> int:
        (answer,) = runner.run(order([group], [lengths[group]]))
        return int(answer.token_ids[0])

    taken = 0
    for group, computed in runner.each(source(), compute):
        assert group == computed == taken
        assert len(begun) <= taken + GROUPS_AT_ONCE
        taken += 1
    assert taken == groups


def test_a_group_is_computed_beside_the_one_before() -> None:
    meeting = threading.Barrier(GROUPS_AT_ONCE, timeout=PATIENCE)
    groups = list(range(3 * GROUPS_AT_ONCE))

    def compute(group: int) -> int:
        meeting.wait()
        return -group

    assert list(RUNNERS[0].each(groups, compute)) == [(group, -group) for group in groups]


def test_parts_are_done_at_once_and_each_gets_its_own_groups() -> None:
    meeting = threading.Barrier(2, timeout=PATIENCE)

    def part(number: int) -> list[tuple[int, int]]:
        def compute(group: int) -> int:
            if group == number:
                meeting.wait()
            (answer,) = RUNNERS[3].run(order([group], [2]))
            return int(answer.token_ids[0])

        return list(RUNNERS[3].each([number, number + 1, number + 2], compute))

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(part, number) for number in (10, 20)]
        assert [each.result(PATIENCE) for each in futures] == [
            [(number + place, number + place) for place in range(3)] for number in (10, 20)
        ]


def test_what_a_group_raises_comes_after_the_groups_before_it() -> None:
    def compute(group: int) -> int:
        if group == 2:
            raise ZeroDivisionError
        return group

    seen = []
    with pytest.raises(ZeroDivisionError):
        for group, _ in RUNNERS[0].each(range(6), compute):
            seen.append(group)
    assert seen == [0, 1]


def test_what_the_reading_of_groups_raises_is_raised() -> None:
    def source() -> Iterator[int]:
        yield 0
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(RUNNERS[0].each(source(), lambda group: group))
