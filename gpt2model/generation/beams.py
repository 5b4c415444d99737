"""Beam search and beam sampling, every row and beam at once.

The rules are those of transformers 5.23 (`_beam_search`), which decides between equals, unlikely and missing beams by
the same numbers.

Shapes: B rows, N beams of each, K candidates of each (K > N), M any number of them, T new tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2model.generation.decoding import Search, check_some_left
from gpt2model.generation.outputs import GenerateBeamDecoderOnlyOutput, Trace

# Added to the score of what must not be chosen; transformers' number, far below any score and still finite.
_OUT_OF_QUESTION = -1.0e9


@dataclass(frozen=True, slots=True)
class Beams:
    """Some continuations of each row.

    `tokens` are int64 [B, M, T]; `origins` int64 [B, M, T] the rows of the batch (b * N + n) that read each token's
    predecessor, -1 behind an end; `scores` float32 [B, M]; `ended` bool [B, M]; `states` int64 [B, M] those of Ending.
    """

    tokens: Tensor
    origins: Tensor
    scores: Tensor
    ended: Tensor
    states: Tensor

    def taken(self, places: Tensor) -> Beams:
        """Those at places [B, M'] of each row."""
        wide = places[..., None]
        return Beams(
            tokens=self.tokens.take_along_dim(wide, dim=1),
            origins=self.origins.take_along_dim(wide, dim=1),
            scores=self.scores.gather(1, places),
            ended=self.ended.gather(1, places),
            states=self.states.gather(1, places),
        )

    def best(self, count: int) -> Beams:
        """The `count` with the greatest scores, best first."""
        return self.taken(self.scores.topk(count).indices)

    def beside(self, other: Beams) -> Beams:
        """These and the others of each row."""
        return Beams(
            tokens=torch.cat((self.tokens, other.tokens), dim=1),
            origins=torch.cat((self.origins, other.origins), dim=1),
            scores=torch.cat((self.scores, other.scores), dim=1),
            ended=torch.cat((self.ended, other.ended), dim=1),
            states=torch.cat((self.states, other.states), dim=1),
        )

    def longer(self, fill: int) -> Beams:
        """The same with a place more behind their ends."""
        return replace(
            self, tokens=F.pad(self.tokens, (0, 1), value=fill), origins=F.pad(self.origins, (0, 1), value=-1)
        )


def search_beams(search: Search) -> GenerateBeamDecoderOnlyOutput:
    """The continuations with the best scores by length_penalty; candidates are drawn where there are draws."""
    options, beams = search.options, search.options.num_beams
    prompt, trace = search.prompt.repeated(beams), Trace(search.options)
    running, finished = _at_start(search)
    improvable = torch.ones_like(running.ended[:, :1])
    reading = search.feed.begin()
    while True:
        log_probs = search.scoring(prompt, running.tokens.flatten(0, 1), reading.logits.log_softmax(dim=-1))
        trace.add(reading, log_probs)
        candidates = _candidates(search, running, log_probs, trace.scores)
        out = candidates.ended * _OUT_OF_QUESTION
        running = replace(candidates, scores=candidates.scores + out).best(beams)
        finished = _with_new_ends(search, finished, candidates, improvable)
        improvable = improvable & _may_improve(search, running, finished)
        origins = running.origins[..., -1].flatten()
        search.feed.reorder(origins)
        complete = options.early_stopping is True and bool(finished.ended.all())
        if complete or bool(candidates.ended.all()) or not bool(improvable.any()):
            break
        reading = search.feed.advance(running.tokens[..., -1].flatten())
    return _record(search, finished, trace)


def _at_start(search: Search) -> tuple[Beams, Beams]:
    """Running beams without tokens, of which the first alone counts, so that all become different; none finished."""
    beams = search.options.num_beams
    states = search.ending.start(search.prompt)[:, None].expand(-1, beams)
    scores = torch.full(states.shape, _OUT_OF_QUESTION, device=states.device)
    nothing = states.new_empty(*states.shape, 0)
    finished = Beams(nothing, nothing, scores, torch.zeros_like(states, dtype=torch.bool), states)
    first = torch.arange(beams, device=states.device) == 0
    return replace(finished, scores=scores.masked_fill(first, 0.0)), finished


def _candidates(search: Search, running: Beams, log_probs: Tensor, all_scores: tuple[Tensor, ...] | None) -> Beams:
    """K continuations of each row by one token: the best, best first, or drawn ones in the order they were drawn in.

    So many that N are left if all eos tokens are the best of every beam.
    """
    rows, beams = running.scores.shape
    vocab_size = log_probs.shape[-1]
    scores = (log_probs.view(rows, beams, vocab_size) + running.scores[..., None]).flatten(1)
    count = min(max(2, 1 + len(search.options.eos_token_id or ())) * beams, scores.shape[1])
    alive = running.scores.amax(dim=1) > _OUT_OF_QUESTION / 2
    check_some_left(scores.amax(dim=1), alive, running.tokens.shape[-1])
    if search.draws is None:
        places = scores.topk(count).indices
    else:
        places = search.draws(scores, running.tokens.shape[-1], count)
    sources, tokens = places // vocab_size, places % vocab_size
    origins = sources + beams * torch.arange(rows, device=sources.device)[:, None]
    continued = running.taken(sources)
    states = search.ending.step(continued.states, tokens)
    longer = torch.cat((continued.tokens, tokens[..., None]), dim=-1)
    ended = search.ending(search.prompt.repeated(count), longer.flatten(0, 1), states.flatten(), all_scores)
    return Beams(
        tokens=longer,
        origins=torch.cat((continued.origins, origins[..., None]), dim=-1),
        scores=scores.gather(1, places),
        ended=ended.view(rows, count),
        states=states,
    )


def _with_new_ends(search: Search, finished: Beams, candidates: Beams, improvable: Tensor) -> Beams:
    """The N best of those that were finished and those that have just ended, the first N candidates among them.

    A row that cannot improve, or is complete where that is enough, gets no more.
    """
    beams, length = finished.scores.shape[1], candidates.tokens.shape[-1]
    among_first = torch.arange(candidates.ended.shape[1], device=improvable.device) < beams
    ended = candidates.ended & among_first
    scores = candidates.scores / length**search.options.length_penalty
    if search.options.early_stopping is True:
        scores = scores + finished.ended.all(dim=1, keepdim=True) * _OUT_OF_QUESTION
    scores = scores + ~improvable * _OUT_OF_QUESTION
    scores = scores + ~ended * _OUT_OF_QUESTION
    new = replace(candidates, scores=scores, ended=ended)
    return finished.longer(search.fill).beside(new).best(beams)


def _may_improve(search: Search, running: Beams, finished: Beams) -> Tensor:
    """Whether a row's best running beam could still become better than its worst finished one, bool [B, 1].

    The beam is taken to end here, or as late as it may where early_stopping is "never" and length is rewarded.
    """
    options, prompt = search.options, search.prompt
    length: int | Tensor = running.tokens.shape[-1]
    if options.early_stopping == "never" and options.length_penalty > 0.0:
        length = (prompt.max_lengths - prompt.ids.shape[1])[:, None].double()
    hoped_for = (running.scores[:, :1] / length**options.length_penalty).float()
    worst = finished.scores.amin(dim=1, keepdim=True).where(finished.ended, _OUT_OF_QUESTION)
    return (hoped_for > worst).any(dim=1, keepdim=True)


def _record(search: Search, finished: Beams, trace: Trace) -> GenerateBeamDecoderOnlyOutput:
    """The best finished continuations of each row, num_return_sequences of them, cut to the longest."""
    options, count = search.options, search.options.num_return_sequences
    tokens, origins = finished.tokens[:, :count].flatten(0, 1), finished.origins[:, :count].flatten(0, 1)
    longest = int((origins >= 0).sum(dim=1).max())
    return GenerateBeamDecoderOnlyOutput(
        sequences=search.prompt.repeated(count).sequences(tokens[:, :longest]),
        sequences_scores=finished.scores[:, :count].flatten() if options.output_scores else None,
        beam_indices=origins[:, :longest].int(),
        past_key_values=search.feed.cache,
        **trace.kept(),
    )
