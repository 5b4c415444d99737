"""From many sequences of many lengths to calls of the model: packs of a token budget, halved where memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import WorkerBroken

Index = npt.NDArray[np.intp]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Runner(Protocol):
    """What a worker computes with, for its whole life."""

    @property
    def tokens(self) -> int:
        """Tokens computed since the start: what tells slow work from none."""

    def each(self, groups: Iterable[Item], compute: Callable[[Item], Result]) -> Generator[tuple[Item, Result]]:
        """The groups of one part in their order, with what was computed of them. For several threads."""


SMALLEST_SHARE = 8
"""The last packs are not cut smaller than this part of the budget."""


def cut_packs(lengths: npt.NDArray[np.int64], budget: int) -> Iterator[Index]:
    """Indices of sequences, longest first, in packs of at most `budget` tokens.

    A sequence longer than the budget is a pack by itself. Sorting puts equal lengths side by side, which is what
    packed attention computes in one call. Towards the end a pack takes half of what is left, so that threads finish
    together (guided self-scheduling, Polychronopoulos and Kuck, 1987). The packs follow from `lengths` and `budget`
    alone.
    """
    order = np.argsort(-lengths, kind="stable")
    left = int(lengths.sum())
    start, tokens, room = 0, 0, _room(left, budget)
    for place, length in enumerate(lengths[order].tolist()):
        if tokens + length > room and place > start:
            yield order[start:place]
            left -= tokens
            start, tokens, room = place, 0, _room(left, budget)
        tokens += length
    if start < len(order):
        yield order[start:]


def _room(left: int, budget: int) -> int:
    return min(budget, max(left // 2, budget // SMALLEST_SHARE))


class PackRunner:
    """Runs calls of the model over packs of at most `tokens_per_batch` tokens.

    On a CPU, several packs are computed at once, each by one thread: that keeps the cores busier than one pack by
    several threads, and a pack's values do not depend on how many threads there are.
    """

    def __init__(self, tokens_per_batch: int, threads: int | None = None) -> None:
        """`threads` None, for a CUDA device: the caller's thread makes the calls."""
        self.tokens_per_batch = tokens_per_batch
        self.tokens = 0
        """Tokens computed since the start: what tells slow work from none."""
        self._counting = threading.Lock()
        self._device = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        if threads is not None:
            # The same threads for the whole run: what their allocator keeps for them does not grow from part to part.
            self._pool = ThreadPoolExecutor(threads, "pack", initializer=torch.set_num_threads, initargs=(1,))

    def each(self, groups: Iterable[Item], compute: Callable[[Item], Result]) -> Generator[tuple[Item, Result]]:
        """One group after the other; the device is one part's at a time, in the order they came."""
        with self._device:
            for group in groups:
                yield group, compute(group)

    def run(self, lengths: npt.NDArray[np.int64], call: Callable[[Index], None]) -> dict[int, str]:
        """Run `call` on every pack; a pack that device memory can't hold is halved, down to the one sequence.

        `call` must bear being called by several threads. Returns the sequences that do not fit even alone, with the
        reason.
        """
        failed: dict[int, str] = {}

        def attempt(pack: Index) -> None:
            if _fits(call, pack):
                with self._counting:
                    self.tokens += int(lengths[pack].sum())
            elif len(pack) == 1:
                failed[int(pack[0])] = f"out of device memory on a sequence of {lengths[pack[0]]} tokens"
            else:
                torch.cuda.empty_cache()
                for half in np.array_split(pack, 2):
                    attempt(half)

        packs = cut_packs(lengths, self.tokens_per_batch)
        for _ in map(attempt, packs) if self._pool is None else self._pool.map(attempt, list(packs)):
            continue
        return failed


def _fits(call: Callable[[Index], None], pack: Index) -> bool:
    """Run `call`; False where memory ran out. Only after the return is what the failed call held given back.

    Raises WorkerBroken where the device is lost, which it stays for every later call of the process.
    """
    try:
        call(pack)
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:
        # torch's allocator for CPUs raises no class of its own.
        if "can't allocate memory" in str(error):
            return False
        if str(error).startswith("CUDA error"):
            raise WorkerBroken(str(error).splitlines()[0]) from error
        raise
    return True
