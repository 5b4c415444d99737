"""Packs hold every sequence once, keep to the budget, and shrink until a sequence fits or is told."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batching import Index, PackRunner, cut_packs

LENGTHS = st.lists(st.integers(1, 50), max_size=60).map(lambda lengths: np.array(lengths, np.int64))


@given(LENGTHS, st.integers(1, 200))
def test_every_sequence_is_in_one_pack_and_packs_keep_to_the_budget(lengths: np.ndarray, budget: int) -> None:
    packs = list(cut_packs(lengths, budget))
    assert sorted(np.concatenate([*packs, np.array([], np.intp)]).tolist()) == list(range(len(lengths)))
    assert all(len(pack) == 1 or lengths[pack].sum() <= budget for pack in packs)
    ordered = [int(length) for pack in packs for length in lengths[pack]]
    assert ordered == sorted(ordered, reverse=True)


def test_the_last_packs_are_small_so_that_threads_finish_together() -> None:
    lengths = np.full(1000, 10)
    sizes = [int(lengths[pack].sum()) for pack in cut_packs(lengths, 1000)]
    assert sizes[:8] == [1000] * 8
    assert sizes[8:] == [1000, 500, 250, 120, 120, 10]


@pytest.mark.parametrize("threads", [1, 3])
@given(LENGTHS, st.integers(1, 60))
def test_memory_that_runs_out_costs_only_the_sequences_that_do_not_fit(
    threads: int, lengths: np.ndarray, memory: int
) -> None:
    done: list[int] = []
    lock = threading.Lock()

    def call(pack: Index) -> None:
        if lengths[pack].sum() > memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        with lock:
            done.extend(pack.tolist())

    failed = PackRunner(200, threads).run(lengths, call)
    assert sorted([*done, *failed]) == list(range(len(lengths)))
    assert all(lengths[each] > memory for each in failed)
    assert all(lengths[each] <= memory for each in done)


def test_another_error_than_memory_is_raised() -> None:
    def call(pack: Index) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        PackRunner(100, 2).run(np.array([1, 2, 3]), call)
