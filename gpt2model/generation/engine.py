"""Continuous batching: many continuations at once, each beginning as soon as another's end makes room for it.

A step reads the prompts that are admitted to it, whole and without padding, and gives every sequence under way one more
token. Nothing that a sequence is given depends on its neighbours.

Shapes: T tokens of a step, R sequences that get a token in it, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2model import onednn
from gpt2model.errors import InputError
from gpt2model.generation.blocks import BLOCK, BlockPool, blocks_for
from gpt2model.generation.choice import Choice, Chooser
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import NO_TOKEN, Context
from gpt2model.generation.graphs import DecodeGraphs, Work, can_be_recorded
from gpt2model.generation.noise import step_keys, stream_keys
from gpt2model.generation.requests import Continuation, FinishReason, Ids, Request
from gpt2model.generation.schedule import Schedule, Step
from gpt2model.generation.step_attention import UNSEEN, Behind, Decoding, StepAttention
from gpt2model.generation.stopping import StopStrings
from gpt2model.packing import pack

if TYPE_CHECKING:
    from gpt2model.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel

LEAST_ROWS = 16
"""Rows of every matrix product. Products of fewer are computed in another order on a CPU, and rounded otherwise."""
MANY_ROWS = 512
NO_MEMORY = "out of device memory on this row alone"
NOT_SOUND = "no token can be chosen: the scores are not finite, or the options leave no token"


@dataclass(slots=True)
class EngineCounts:
    """What an engine has done since it was made."""

    steps: int = 0
    prompt_tokens: int = 0
    """Tokens read: those of a shared beginning once."""
    new_tokens: int = 0
    busy_steps: int = 0
    """Steps after which requests still waited."""
    busy_rows: int = 0
    """Slots that were in use in those."""
    block_steps: int = 0
    """Positions of the blocks in use, added up over steps."""
    filled_steps: int = 0
    """Positions of them that held something."""
    replayed_steps: int = 0
    """Steps in which sequences under way took their token by a recorded graph."""


class Engine:
    """Continues requests by one model under one set of options. Not for several threads at once."""

    def __init__(
        self,
        model: GPT2LMHeadModel | GPT2DoubleHeadsModel,
        config: GenerationConfig,
        *,
        slots: int,
        cache_tokens: int,
        tokens_per_step: int = 2048,
        logprobs: bool = False,
        stop: StopStrings | None = None,
        graphs: bool | None = None,
    ) -> None:
        """`slots` sequences are under way at most; keys and values are kept for `cache_tokens` positions.

        Of the config, what is about lengths, beams and outputs is the requests' own affair and not looked at, and
        `stop_strings` come as the automaton `stop`. A step reads at most `tokens_per_step` tokens, or one prompt.
        `graphs` lets sequences under way take their tokens in a pass of rounded sizes beside the one of the prompts, by
        default where that can be recorded as a CUDA graph; on a CPU it is computed again each time.

        Raises InputError for a cache that can't hold one sequence of the model's context.
        """
        positions = model.config.n_positions
        least = BLOCK * (blocks_for(positions) + 1)
        if cache_tokens < least or slots < 1:
            raise InputError(
                f"slots={slots} and cache_tokens={cache_tokens}: give at least 1 and {least}, which holds one sequence "
                f"of {positions} positions"
            )
        self.counts = EngineCounts()
        self._model = model
        self._device = model.device
        self._chooser = Chooser(config, logprobs=logprobs)
        self._stop = stop
        self._slots = slots
        pool = BlockPool(model.config, cache_tokens // BLOCK, model.dtype, self._device)
        self._schedule = Schedule(pool, slots, positions, tokens_per_step)
        self._eos = torch.tensor(config.eos_token_id or (), dtype=torch.int64, device=self._device)
        # What a slot's sequence holds, by slot: all its tokens, log-probabilities at their places, and so on.
        self._ids = torch.full((slots, positions + 1), NO_TOKEN, device=self._device)
        self._logprobs = torch.zeros(slots, positions + 1, device=self._device) if logprobs else None
        self._clean = np.ones(slots, np.bool_)
        self._streams = torch.zeros(slots, dtype=torch.int64, device=self._device)
        self._stop_states = torch.zeros(slots, dtype=torch.int64, device=self._device)
        self._graphs = None
        if can_be_recorded(model) if graphs is None else graphs:
            record = None if self._device.type == "cuda" else _unrecorded
            self._graphs = DecodeGraphs(model, self._schedule, self._ids, record)

    @property
    def unfinished(self) -> int:
        """Requests that were submitted and not answered."""
        return len(self._schedule.waiting) + len(self._schedule.running)

    @property
    def vacant(self) -> int:
        """Requests that could be begun if there is room in the cache."""
        return max(0, self._slots - self.unfinished)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def submit(self, requests: Iterable[Request]) -> None:
        """Put requests behind those that wait. Raises InputError for one that can never be begun."""
        for request in requests:
            self._schedule.submit(request)

    def run(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """Continue all requests, which are taken from their iterator as they are needed; answers come as they end."""
        source = iter(requests)
        while True:
            if len(self._schedule.waiting) < self._slots:
                self.submit(islice(source, self._slots))
            if not self.unfinished:
                return
            yield from self.step()

    @torch.inference_mode()
    def step(self, *, more: bool = False) -> list[Continuation]:
        """One token for every sequence under way; returns those that ended. Something must be unfinished.

        `more` says that requests wait elsewhere, which is for the counts alone.
        Where device memory runs out, all sequences under way begin again, half as many at once and half as many tokens
        a step; one that fails even alone is answered with an error.
        """
        try:
            return self._step(more)
        except torch.OutOfMemoryError:
            pass  # what the failed step held is given back only when this clause is left
        if self._graphs is not None:
            self._graphs.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        nothing = np.zeros(0, np.int64)
        return [Continuation(request, nothing, "length", None, NO_MEMORY) for request in self._schedule.halve()]

    def _step(self, more: bool) -> list[Continuation]:
        step = self._schedule.step()
        slots = self._on_device(step.slots)
        self._begin(step)
        states = self._states(step)
        choice = self._choose(states, step.slots, slots)
        ended = self._take_in(choice, step, slots)
        self._count(step, more)
        return ended

    def _begin(self, step: Step) -> None:
        """Lay the prompts of the sequences that begin into their slots."""
        names = step.slots[len(step.decoding) :]
        if not names:
            return
        requests = [self._schedule.running[slot].request for slot in names]
        ids = np.full((len(names), self._ids.shape[1]), NO_TOKEN, np.int64)
        for row, request in zip(ids, requests, strict=True):
            row[: len(request.prompt_ids)] = request.prompt_ids
            self.counts.prompt_tokens += len(request.prompt_ids)
        self.counts.prompt_tokens -= int(self._schedule.own[names].sum())
        slots = self._on_device(names)
        self._clean[names] = True
        self._ids[slots] = self._on_device(ids)
        drawn = np.array([(each.seed, each.row, each.sample) for each in requests], np.int64).T
        self._streams[slots] = self._on_device(stream_keys(*torch.from_numpy(drawn)).numpy())
        if self._stop is not None:
            self._stop_states[slots] = self._stop.start(len(names), self._device)

    def _states(self, step: Step) -> Tensor:
        """Hidden states after the newest token of each sequence: [at least LEAST_ROWS, D], the first R of them real."""
        replayed = None if self._graphs is None else self._graphs.read(step)
        if replayed is None:
            return self._read(step)
        self.counts.replayed_steps += 1
        prompts = replace(step, decoding=())
        return torch.cat([replayed[: len(step.decoding)], self._read(prompts)]) if prompts.slots else replayed

    def _read(self, step: Step) -> Tensor:
        """The same by one pass without padding over all that the step reads."""
        schedule, count = self._schedule, len(step.decoding)
        positions, blocks, offsets = (self._padded(each) for each in schedule.places(step))
        begun = [(schedule.running[slot], int(schedule.own[slot])) for slot in step.slots[count:]]
        prompts = [entry.request.prompt_ids[own:] for entry, own in begun]
        plain = [each.prefix.ids for each in step.loading] + prompts[: len(step.plain)]
        read = [*plain, *prompts[len(step.plain) :]]
        lengths = [1] * count + [len(each) for each in read]
        newest = self._ids[self._on_device(step.decoding), positions[:count]]
        ids = torch.cat([newest, self._on_device(np.concatenate([*read, np.zeros(0, np.int64)]))])
        ids = F.pad(ids, (0, len(positions) - len(ids)))
        # Padding writes behind the pool's blocks.
        blocks[sum(lengths) :] = schedule.pool.blocks
        attention = StepAttention(
            schedule.pool,
            blocks,
            offsets,
            self._decoding(step),
            pack(plain).to(self._device) if plain else None,
            self._behind(step, count + sum(map(len, plain))),
        )
        # A prefix is read for others' sake: nothing is chosen after it.
        lasts = np.delete(np.cumsum(lengths) - 1, np.arange(count, count + len(step.loading)))
        return self._model.transformer.forward_tokens(ids, positions, attention, self._padded(lasts))

    def _padded(self, values: Ids) -> Tensor:
        """Whole numbers on the device, zeros behind them up to a multiple of LEAST_ROWS, or of four times that.

        For each number of rows oneDNN compiles kernels of its own, and keeps the last thousand.
        """
        multiple = LEAST_ROWS if len(values) <= MANY_ROWS else 4 * LEAST_ROWS
        return self._on_device(np.pad(values, (0, -len(values) % multiple)))

    def _on_device(self, values: Ids | Sequence[int]) -> Tensor:
        """Whole numbers on the device, without waiting for what it has still to do.

        torch has copied them before this returns: memory that is not pinned is staged first.
        """
        return torch.from_numpy(np.asarray(values, np.int64)).to(self._device, non_blocking=True)

    def _decoding(self, step: Step) -> Decoding | None:
        if not step.decoding:
            return None
        table = self._schedule.table(step.decoding)
        owners, filled, entries = (self._on_device(each) for each in table.padded(*table.sizes))
        empty = torch.arange(BLOCK, device=self._device) >= filled[:, None]
        return Decoding(owners, empty[:, None] * UNSEEN, entries)

    def _behind(self, step: Step, start: int) -> list[Behind]:
        """The prefixes that matter in this step; prompts behind them begin with token `start` of the step."""
        reading = {id(shared): members for shared, members in step.behind}
        decoding = self._schedule.prefixes(step.decoding)
        rows_of = {id(shared): rows for shared, rows in decoding}
        found = []
        # Those that are read behind come first and in the step's order, so that their spans follow one another.
        every = [shared for shared, _ in [*step.behind, *decoding]]
        for shared in {id(each): each for each in every}.values():
            rows, spans = rows_of.get(id(shared), []), []
            for slot in reading.get(id(shared), ()):
                spans.append(slice(start, start + int(self._schedule.tokens[slot] - self._schedule.own[slot])))
                start = spans[-1].stop
            padded = rows + rows[:1] * max(0, LEAST_ROWS - len(rows))
            blocks, places = (self._on_device(each) for each in (shared.blocks, padded))
            found.append(Behind(blocks, len(shared.prefix.ids), places, spans))
        return found

    def _choose(self, states: Tensor, names: list[int], slots: Tensor) -> Choice:
        """The next token of each of the slots, which the host calls by their names."""
        head = self._model.lm_head
        logits = onednn.linear(states, head.operand) if onednn.takes(states) else states @ head.weight.T
        schedule = self._schedule
        held = np.stack([schedule.tokens[names], schedule.prompts[names], schedule.limits[names]])
        lengths, prompts, limits = self._on_device(held)
        context = None
        if self._chooser.needs_context:
            context = Context(self._ids[slots, : held[0].max()], lengths, prompts, limits)
        return self._chooser(logits[: len(names)].float(), context, step_keys(self._streams[slots], lengths - prompts))

    def _take_in(self, choice: Choice, step: Step, slots: Tensor) -> list[Continuation]:
        """Append the chosen tokens, and end the sequences that are at their end."""
        schedule, names = self._schedule, np.array(step.slots)
        places = self._on_device(schedule.tokens[names])
        self._ids[slots, places] = choice.tokens
        if self._logprobs is not None and choice.logprobs is not None:
            self._logprobs[slots, places] = choice.logprobs
        at_eos = torch.isin(choice.tokens, self._eos)
        stopped = torch.zeros_like(at_eos)
        if self._stop is not None:
            states = self._stop.step(self._stop_states[slots], choice.tokens)
            self._stop_states[slots] = states
            stopped = self._stop.found(states)
        # One transfer: whatever else there is to know, the host knows.
        sound, clean, eos, stop = torch.stack([choice.sound, choice.clean, at_eos, stopped]).cpu().numpy()
        self._clean[names] &= clean
        schedule.tokens[names] += 1
        over = np.flatnonzero(~sound | eos | stop | (schedule.tokens[names] >= schedule.limits[names]))
        if not len(over):
            return []
        ending = self._on_device(names[over])
        ids = self._ids[ending].cpu().numpy()
        logprobs = None if self._logprobs is None else self._logprobs[ending].cpu().numpy()
        reasons: list[FinishReason] = ["eos" if eos[row] else "stop" if stop[row] else "length" for row in over]
        return [
            self._end(
                int(names[row]), reason, bool(sound[row]), ids[place], None if logprobs is None else logprobs[place]
            )
            for place, (row, reason) in enumerate(zip(over, reasons, strict=True))
        ]

    def _end(
        self, slot: int, reason: FinishReason, sound: bool, ids: Ids, logprobs: npt.NDArray[np.float32] | None
    ) -> Continuation:
        """The answer of a slot, whose ids and log-probabilities are given for all its positions."""
        schedule = self._schedule
        own = slice(int(schedule.prompts[slot]), int(schedule.tokens[slot]) - (not sound))
        request = schedule.end(slot, sound=bool(self._clean[slot]))
        own_logprobs = None if logprobs is None else logprobs[own].copy()
        return Continuation(request, ids[own].copy(), reason, own_logprobs, None if sound else NOT_SOUND)

    def _count(self, step: Step, more: bool) -> None:
        counts, schedule, running = self.counts, self._schedule, list(self._schedule.running)
        counts.steps += 1
        counts.new_tokens += len(step.slots)
        counts.prompt_tokens += sum(len(each.prefix.ids) for each in step.loading)
        if schedule.waiting or more:
            counts.busy_steps += 1
            counts.busy_rows += len(step.slots)
        filled = (schedule.tokens - schedule.own)[running].sum() + sum(len(each.prefix.ids) for each in schedule.held())
        counts.filled_steps += int(filled)
        counts.block_steps += schedule.pool.taken * BLOCK


def _unrecorded(work: Work) -> Work:
    """A CPU has no graphs: the work is done once more."""
    return work
