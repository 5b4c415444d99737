"""The engine's bookkeeping, on the host: who has which slot and which blocks, and what a step reads.

A sequence has a slot from its admission to its end, and blocks for its own tokens; a prefix has blocks while sequences
behind it may come. Everything here is numbers; keys, values and chosen tokens are on the device.

Shapes: T tokens of a step, B sequences that take one token, N blocks, J blocks of the longest sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gpt2model.errors import InputError
from gpt2model.generation.blocks import BLOCK, BlockPool, blocks_for
from gpt2model.generation.requests import Ids, Prefix, Request

NOBODY = -1
CALM = 8
"""Of the rows that are under way at once after a halving, how many times as many must end before it is taken back."""


@dataclass(slots=True)
class Shared:
    """A prefix that is in the pool or is to be."""

    prefix: Prefix
    members: int = 0
    """Requests behind it that were submitted and have not ended."""
    blocks: list[int] = field(default_factory=list)
    """Empty while it is not in the pool."""
    running: set[int] = field(default_factory=set)
    """Slots of the members that are under way."""
    sound: bool = True
    """Whether no member has met NaN."""


@dataclass(slots=True)
class Running:
    """A sequence in a slot; what changes with every step stands in the schedule's arrays."""

    request: Request
    shared: Shared | None
    number: int
    """How many began before it."""
    promised: int
    """Blocks set aside for what is still to come."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step reads: B sequences' newest tokens, then whole prompts, some of them behind a prefix.

    `loading` are prefixes to be read, `plain` the slots of prompts without one, `behind` those of prompts with one.
    """

    decoding: Sequence[int]
    """Slots of the B sequences."""
    loading: Sequence[Shared]
    plain: Sequence[int]
    behind: Sequence[tuple[Shared, Sequence[int]]]

    @property
    def slots(self) -> list[int]:
        """All slots that get a token, in the order of the step's tokens."""
        return [*self.decoding, *self.plain, *(slot for _, members in self.behind for slot in members)]


@dataclass(frozen=True, slots=True)
class Table:
    """B sequences over the first N blocks of the pool: owners and filled places of these, [N] each, and blocks [B, J].

    `behind` [B] says who goes on from a prefix. NOBODY stands for no owner, and for no block.
    """

    owners: Ids
    filled: Ids
    blocks: Ids
    behind: npt.NDArray[np.bool_]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """B, N and J."""
        return len(self.blocks), len(self.owners), self.blocks.shape[1]

    def padded(self, rows: int, blocks: int, depth: int) -> tuple[Ids, Ids, Ids]:
        """As step_attention.Decoding wants it, for so many at least: owners, filled places, the table with prefixes.

        What is beyond the B sequences and N blocks is empty.
        """
        count, held, used = self.sizes
        nothing = blocks + rows
        owners, filled = np.zeros((2, blocks), np.int64)
        owners[:held], filled[:held] = self.owners.clip(0), self.filled
        table = np.full((rows, 1 + depth), nothing)
        table[:count, 0] = np.where(self.behind, blocks + np.arange(count), nothing)
        table[:count, 1 : 1 + used] = np.where(self.blocks == NOBODY, nothing, self.blocks)
        return owners, filled, table


class Schedule:
    """Admits requests in their order, and keeps the tables of slots and blocks.

    By slot: `tokens` that the sequence has, the prompt's included (the newest one is not in the pool yet), tokens of
    its `prompts`, the `limits` at which it ends, and the position where its `own` blocks begin: behind the prefix.
    """

    def __init__(self, pool: BlockPool, slots: int, n_positions: int, tokens_per_step: int) -> None:
        self.pool = pool
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Running] = {}
        self.tokens, self.prompts, self.limits, self.own = np.zeros((4, slots), np.int64)
        self._n_positions = n_positions
        self._tokens_per_step = tokens_per_step
        self._most = slots
        self._calm = 0
        self._begun = 0
        self._free = list(range(slots))[::-1]
        self._shared: dict[int, Shared] = {}
        # By slot: its blocks, and how many; by block: whose it is, and which one of his.
        self._blocks = np.zeros((slots, blocks_for(n_positions)), np.int64)
        self._used = np.zeros(slots, np.int64)
        self._owner = np.full(pool.blocks, NOBODY, np.int64)
        self._place = np.zeros(pool.blocks, np.int64)

    def submit(self, request: Request) -> None:
        """Put a request behind the others. Raises InputError for one that can never be begun."""
        prompt, prefix = request.prompt_ids, request.prefix
        if not 0 < len(prompt) <= self._n_positions:
            raise InputError(
                f"a prompt of {len(prompt)} tokens: it needs one at least, and n_positions is {self._n_positions}: "
                "leave out its beginning, or give an empty text a start token"
            )
        if request.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={request.max_new_tokens} must be at least 1")
        if not -(2**63) <= request.seed < 2**63:
            raise InputError(f"seed={request.seed}: give an integer from -2**63 to 2**63 - 1")
        if prefix is not None and not _begins(prompt, prefix.ids):
            raise InputError("a prefix is what the prompt begins with, and leaves at least one token of it")
        self._behind(request)
        self.waiting.append(request)

    def step(self) -> Step:
        """Admit what there is room for, and say what the next step reads."""
        decoding = sorted(self.running)
        self._grow(np.array(decoding, np.int64))
        budget = self._tokens_per_step - len(decoding)
        loading: list[Shared] = []
        admitted: list[int] = []
        while self.waiting and self._free and len(self.running) < self._most:
            request = self.waiting[0]
            shared = None if request.prefix is None else self._shared[id(request.prefix)]
            loads = shared is not None and not shared.blocks
            cost = len(request.prompt_ids) - (0 if loads else _before(shared))
            if (cost > budget and admitted) or not self._has_room(request, shared):
                break
            self.waiting.popleft()
            budget -= cost
            if shared is not None and loads:
                self._load(shared)
                loading.append(shared)
            admitted.append(self._admit(request, shared))
        return self._sorted(decoding, loading, admitted)

    def held(self) -> list[Shared]:
        """The prefixes that are in the pool."""
        return [each for each in self._shared.values() if each.blocks]

    def prefixes(self, decoding: Sequence[int]) -> list[tuple[Shared, list[int]]]:
        """The prefixes that the sequences of these slots go on from, and their places among them."""
        row_of = {slot: row for row, slot in enumerate(decoding)}
        found = ((each, [row_of[slot] for slot in sorted(each.running) if slot in row_of]) for each in self.held())
        return [(shared, rows) for shared, rows in found if rows]

    def end(self, slot: int, *, sound: bool = True) -> Request:
        """Give a slot and its blocks back, which are not sound where they may hold NaN."""
        ended = self.running.pop(slot)
        blocks = self._blocks[slot, : self._used[slot]].tolist()
        self._free.append(slot)
        self._used[slot] = 0
        self.pool.give_back(blocks, sound=sound)
        self.pool.release(ended.promised)
        self._owner[blocks] = NOBODY
        self._recover()
        if ended.shared is not None:
            ended.shared.running.discard(slot)
            ended.shared.sound &= sound
            ended.shared.members -= 1
            if ended.shared.members == 0:
                self._unload(ended.shared)
                del self._shared[id(ended.shared.prefix)]
        return ended.request

    def halve(self) -> list[Request]:
        """Let all sequences under way begin again, in their order, with half the slots and half the tokens a step.

        Where there was but one, it is given up and returned.
        """
        begun = sorted(self.running, key=lambda slot: self.running[slot].number)
        requests = [self.running[slot].request for slot in begun]
        given_up = requests if len(begun) == 1 else []
        if not given_up:
            self._most = len(begun) // 2
            self._tokens_per_step = max(1, self._tokens_per_step // 2)
            for request in reversed(requests):
                self._behind(request)
                self.waiting.appendleft(request)
        for slot in begun:
            self.end(slot)
        for shared in self.held():
            self._unload(shared)  # perhaps it was this step that was to read it
        self._calm = 0
        return given_up

    def _recover(self) -> None:
        """After many rows that ended well, take back one halving."""
        self._calm += 1
        if self._calm >= CALM * self._most and self._most < len(self.tokens):
            self._calm = 0
            self._most = min(2 * self._most, len(self.tokens))
            self._tokens_per_step *= 2

    def _behind(self, request: Request) -> None:
        """Count a request among the members of its prefix."""
        if request.prefix is not None:
            self._shared.setdefault(id(request.prefix), Shared(request.prefix)).members += 1

    def places(self, step: Step) -> tuple[Ids, Ids, Ids]:
        """Of each token of the step, [T]: its position, the block its keys and values go to, and the place there."""
        decoding = np.array(step.decoding, np.int64)
        positions = [self.tokens[decoding] - 1]
        own = [positions[0] - self.own[decoding]]
        blocks = [self._blocks[decoding, own[0] // BLOCK]]
        for each in step.loading:
            positions.append(np.arange(len(each.prefix.ids)))
            own.append(positions[-1])
            blocks.append(np.array(each.blocks)[own[-1] // BLOCK])
        for slot in step.slots[len(decoding) :]:
            positions.append(np.arange(self.own[slot], self.tokens[slot]))
            own.append(positions[-1] - self.own[slot])
            blocks.append(self._blocks[slot, own[-1] // BLOCK])
        return np.concatenate(positions), np.concatenate(blocks), np.concatenate(own) % BLOCK

    def table(self, decoding: Sequence[int]) -> Table:
        """The sequences of these slots over the pool."""
        slots = np.array(decoding, np.int64)
        used = self._used[slots]
        valid = np.arange(used.max()) < used[:, None]
        table = np.where(valid, self._blocks[slots, : used.max()], NOBODY)
        # One more, which NOBODY finds.
        row_of = np.full(len(self.tokens) + 1, NOBODY, np.int64)
        row_of[slots] = np.arange(len(slots))
        owners = row_of[self._owner[: 1 + int(table.max())]]
        held = (self.tokens - self.own)[slots][owners] - self._place[: len(owners)] * BLOCK
        filled = np.where(owners == NOBODY, 0, held.clip(0, BLOCK))
        return Table(owners, filled, table, self.own[slots] > 0)

    def _needs(self, request: Request, shared: Shared | None) -> int:
        """Blocks for all that a request may come to. The last token is never read, so that it needs no position."""
        return blocks_for(self._limit(request) - 1 - _before(shared))

    def _limit(self, request: Request) -> int:
        return min(len(request.prompt_ids) + request.max_new_tokens, self._n_positions + 1)

    def _has_room(self, request: Request, shared: Shared | None) -> bool:
        """Whether the blocks for a request can be promised, if need be after prefixes that nobody is behind left."""
        needed = self._needs(request, shared)
        if shared is not None and not shared.blocks:
            needed += blocks_for(len(shared.prefix.ids))
        for other in self._shared.values():
            if self.pool.unpromised >= needed:
                break
            if other is not shared and not other.running:
                self._unload(other)
        return self.pool.unpromised >= needed

    def _load(self, shared: Shared) -> None:
        count = blocks_for(len(shared.prefix.ids))
        self.pool.promise(count)
        shared.blocks = [self.pool.take() for _ in range(count)]

    def _unload(self, shared: Shared) -> None:
        self.pool.give_back(shared.blocks, sound=shared.sound)
        shared.blocks = []

    def _admit(self, request: Request, shared: Shared | None) -> int:
        slot, promised = self._free.pop(), self._needs(request, shared)
        self.pool.promise(promised)
        self.running[slot] = Running(request, shared, self._begun, promised)
        self._begun += 1
        if shared is not None:
            shared.running.add(slot)
        self.tokens[slot] = self.prompts[slot] = len(request.prompt_ids)
        self.limits[slot], self.own[slot] = self._limit(request), _before(shared)
        for _ in range(blocks_for(len(request.prompt_ids) - _before(shared))):
            self._take(slot)
        return slot

    def _grow(self, decoding: Ids) -> None:
        """Have a block for the newest token of each sequence."""
        full = self.tokens[decoding] - self.own[decoding] > self._used[decoding] * BLOCK
        for slot in decoding[full].tolist():
            self._take(slot)

    def _take(self, slot: int) -> None:
        block, place = self.pool.take(), self._used[slot]
        self.running[slot].promised -= 1
        self._owner[block], self._place[block] = slot, place
        self._blocks[slot, place] = block
        self._used[slot] += 1

    def _sorted(self, decoding: Sequence[int], loading: Sequence[Shared], admitted: Sequence[int]) -> Step:
        plain, behind = [], dict[int, tuple[Shared, list[int]]]()
        for slot in admitted:
            shared = self.running[slot].shared
            if shared is None:
                plain.append(slot)
            else:
                behind.setdefault(id(shared), (shared, []))[1].append(slot)
        return Step(decoding, loading, plain, list(behind.values()))


def _before(shared: Shared | None) -> int:
    """Tokens of the prefix."""
    return 0 if shared is None else len(shared.prefix.ids)


def _begins(prompt: Ids, prefix: Ids) -> bool:
    """Whether a prompt begins with a prefix, and goes on."""
    return 0 < len(prefix) < len(prompt) and np.array_equal(prefix, prompt[: len(prefix)])
