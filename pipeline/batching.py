"""From many sequences of many lengths to calls of the model: packs of a token budget, halved where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

Index = npt.NDArray[np.intp]


def cut_packs(lengths: npt.NDArray[np.int64], budget: int) -> Iterator[Index]:
    """Indices of sequences, longest first, in packs of at most `budget` tokens.

    A sequence longer than the budget is a pack by itself. Sorting puts equal lengths side by side, which is what
    packed attention computes in one call. The packs follow from `lengths` and `budget` alone.
    """
    order = np.argsort(-lengths, kind="stable")
    start, tokens = 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        if tokens + length > budget and place > start:
            yield order[start:place]
            start, tokens = place, 0
        tokens += length
    if start < len(order):
        yield order[start:]


def run_packs(lengths: npt.NDArray[np.int64], budget: int, call: Callable[[Index], None]) -> dict[int, str]:
    """Run `call` on every pack; a pack that device memory can't hold is halved, down to the one sequence.

    Returns the sequences that do not fit even alone, with the reason.
    """
    failed: dict[int, str] = {}
    waiting = list(cut_packs(lengths, budget))[::-1]
    while waiting:
        pack = waiting.pop()
        try:
            call(pack)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(pack) == 1:
                failed[int(pack[0])] = f"out of device memory on a sequence of {lengths[pack[0]]} tokens"
            else:
                middle = len(pack) // 2
                waiting += [pack[middle:], pack[:middle]]
    return failed
