"""The pass of sequences that take one token each, as CUDA graphs: one launch in the place of hundreds.

A small model's step is over before the host has launched its kernels. A graph has fixed sizes, and reads and writes
where it did when it was recorded: the pass takes its numbers from one fixed tensor, and sizes are rounded up to a few,
for each of which a graph is recorded when it is first met. What a recording gives is held against the plain pass once,
on the numbers of its first step, before anything relies on it.

Shapes: B sequences, D width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from gpt2model.generation.blocks import BLOCK, blocks_for
from gpt2model.generation.requests import Ids
from gpt2model.generation.schedule import Schedule, Shared, Step
from gpt2model.generation.step_attention import UNSEEN, Behind, Decoding, StepAttention

if TYPE_CHECKING:
    from gpt2model.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel

Work = Callable[[], None]
LEAST = 16
"""Sequences and blocks of the pool that a graph has at least; a multiple of the engine's LEAST_ROWS."""
FINE = 8
"""Steps from one power of two to the next in which blocks are rounded up: at most an eighth is read for nothing."""
MOST_PREFIXES = 2
MOST_GRAPHS = 64
"""Beyond these the oldest is given up."""
AGREES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a recording may be from the plain pass, as a share of the greatest value: both compute the same sums."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a graph is recorded for: sequences, blocks of the pool, blocks of a sequence, blocks of each prefix."""

    rows: int
    blocks: int
    depth: int
    prefixes: tuple[int, ...]

    def fields(self) -> Iterator[tuple[int, ...]]:
        """The shapes of the numbers of a pass, in their order."""
        yield from [(self.rows,)] * 4  # slots, positions, blocks, offsets
        yield from [(self.blocks,)] * 2  # owners, filled
        yield self.rows, 1 + self.depth
        for prefix in self.prefixes:
            yield from [(1,), (prefix,), (self.rows,)]  # length, blocks, rows


class DecodeGraphs:
    """The graphs of one engine, and the memory that they share."""

    def __init__(
        self,
        model: GPT2LMHeadModel | GPT2DoubleHeadsModel,
        schedule: Schedule,
        ids: Tensor,
        record: Callable[[Work], Work] | None = None,
    ) -> None:
        """`ids` [slots, positions] are where the engine keeps every sequence's tokens.

        `record` makes of the work on fixed tensors what does it again; by default a CUDA graph.
        """
        self._transformer = model.transformer
        self._schedule, self._pool, self._ids = schedule, schedule.pool, ids
        self._positions = model.config.n_positions
        self._record = record or CudaRecorder(model.device)
        self._recorded: dict[Sizes, _Recorded] = {}
        self._given_up = False

    def read(self, step: Step) -> Tensor | None:
        """Hidden states after the newest tokens of the step's B sequences: [B or more, D], the first B of them real.

        They stand until the next call. None where the plain pass is to do it.
        """
        if self._given_up or not step.decoding:
            return None
        prefixes = self._schedule.prefixes(step.decoding)
        if len(prefixes) > MOST_PREFIXES:
            return None
        sizes, numbers = self._numbers(step, prefixes)
        recorded = self._recorded.get(sizes) or self._recording(sizes, numbers.to(self._ids.device))
        if recorded is None:
            return None
        recorded.numbers.copy_(numbers, non_blocking=True)
        recorded.replay()
        return recorded.states

    def forget(self) -> None:
        """Give the memory of all graphs back; what is needed again is recorded again."""
        self._recorded.clear()

    def _numbers(self, step: Step, prefixes: Sequence[tuple[Shared, Sequence[int]]]) -> tuple[Sizes, Tensor]:
        """The sizes of the pass, and its numbers one after the other."""
        table = self._schedule.table(step.decoding)
        count, blocks, depth = table.sizes
        most = blocks_for(self._positions)
        sizes = Sizes(
            rounded(count, 1, -(-len(self._ids) // LEAST) * LEAST),
            rounded(blocks, FINE, self._pool.blocks),
            rounded(depth, 1, most),
            tuple(rounded(len(shared.blocks), 1, most, least=1) for shared, _ in prefixes),
        )
        places = self._schedule.places(Step(step.decoding, [], [], []))
        beyond = sizes.rows - count
        numbers = [np.pad(np.array(step.decoding), (0, beyond)), *(np.pad(each, (0, beyond)) for each in places)]
        numbers[2][count:] = self._pool.blocks  # what nobody reads is written behind the pool's blocks
        numbers += table.padded(sizes.rows, sizes.blocks, sizes.depth)
        for (shared, rows), held in zip(prefixes, sizes.prefixes, strict=True):
            numbers += [np.array([len(shared.prefix.ids)]), _filled_up(shared.blocks, held)]
            numbers.append(_filled_up(rows, sizes.rows))
        return sizes, torch.from_numpy(np.concatenate([each.ravel() for each in numbers]))

    def _recording(self, sizes: Sizes, numbers: Tensor) -> _Recorded | None:
        """A new graph that agrees with the plain pass on these numbers; None where there is none to be had."""
        if len(self._recorded) >= MOST_GRAPHS:
            del self._recorded[next(iter(self._recorded))]
        states = self._pass(sizes, numbers)
        # Of copies, so that nothing of this step is left in it.
        fixed, found = numbers.clone(), torch.zeros_like(states)

        def work() -> None:
            found.copy_(self._pass(sizes, fixed))

        try:
            replay = self._record(work)
            found.zero_()
            replay()
            apart = _apart(found, states)
        except Exception as error:  # whatever a driver has against it, the plain pass does the same
            self._give_up(f"{type(error).__name__}: {error}")
            return None
        if apart > AGREES.get(states.dtype, 0.0):
            self._give_up(f"what was recorded for {sizes} is {apart:.2g} from the plain pass")
            return None
        self._recorded[sizes] = _Recorded(fixed, found, replay)
        return self._recorded[sizes]

    def _pass(self, sizes: Sizes, numbers: Tensor) -> Tensor:
        """Hidden states [rows, D] by the numbers of a pass, all of it on the device."""
        fields = list(sizes.fields())
        parts = torch.split(numbers, [math.prod(shape) for shape in fields])
        views = (part.view(shape) for part, shape in zip(parts, fields, strict=True))
        slots, positions, blocks, offsets, owners, filled, table = (next(views) for _ in range(7))
        empty = torch.arange(BLOCK, device=numbers.device) >= filled[:, None]
        behind = []
        for prefix in sizes.prefixes:
            length, held, rows = next(views), next(views), next(views)
            unseen = (torch.arange(prefix * BLOCK, device=numbers.device) >= length) * UNSEEN
            behind.append(Behind(held, prefix * BLOCK, rows, (), unseen))
        attention = StepAttention(
            self._pool, blocks, offsets, Decoding(owners, empty[:, None] * UNSEEN, table), None, behind
        )
        # A sequence that is not there has no token.
        ids = self._ids[slots, positions].clamp(min=0)
        return self._transformer.forward_tokens(ids, positions, attention)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self.forget()
        _logger.warning("CUDA graphs are not used, and steps take longer: %s", reason)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The fixed tensors of a graph, and how to do its work again."""

    numbers: Tensor
    states: Tensor
    replay: Work


class CudaRecorder:
    """Records work of a device as CUDA graphs, which share one pool of memory: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Those that are still there: with the last of them their pool is gone, and torch takes no more graphs into it.
        self._graphs: WeakSet[Any] = WeakSet()

    def __call__(self, work: Work) -> Work:
        """What does the work again on the same tensors. The work has run before, so that all libraries are set up."""
        graph = torch.cuda.CUDAGraph()
        # A recording that fails leaves its stream the current one. Other threads may go on with work of their own.
        pool, stream = next((each.pool() for each in self._graphs), None), _recording_stream(self._device)
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            work()
        self._graphs.add(graph)
        return graph.replay


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which graphs are recorded; torch's own is of the device that it first recorded on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def can_be_recorded(model: GPT2LMHeadModel | GPT2DoubleHeadsModel) -> bool:
    """Whether a model's passes never wait for the device: LLM.int8() looks there for columns that are out of range."""
    return model.device.type == "cuda" and not any(type(each).__name__ == "Linear8bitLt" for each in model.modules())


def rounded(count: int, steps: int, most: int, least: int = LEAST) -> int:
    """At least `count`, in so many steps from one power of two to the next, and within the bounds."""
    octave = 1 << (max(count, 2) - 1).bit_length() - 1
    step = max(1, octave // steps)
    return min(max(-(-count // step) * step, least), most)


def _apart(one: Tensor, other: Tensor) -> float:
    """The greatest difference of two tensors, as a share of the greatest value; infinite where one alone is finite."""
    finite = other.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return math.inf
    difference, value = (each.float().where(finite, 0.0).abs().max() for each in (one - other, other))
    return float(difference / value.clamp(min=torch.finfo(torch.float32).tiny))


def _filled_up(values: Sequence[int], count: int) -> Ids:
    """The values, and the first of them again and again."""
    return np.array([*values, *[values[0]] * (count - len(values))], np.int64)
