"""What leaves out tokens by their scores alone, before one is sampled.

Each filter is the one of transformers 5.23 of the same purpose (generation/logits_process.py), but that equally likely
tokens are kept or left out together. What stays therefore does not depend on the order of the columns.

Shapes: B rows, C candidates. Filtered scores are -inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import Filter

# Of the likeliest tokens, how many top-p looks at before it sorts them all.
_SELECTED = 1024
# Candidates among which top-h measures entropy, as in transformers.
_TOP_H_CANDIDATES = 100


def filters_of(config: GenerationConfig) -> tuple[Filter, ...]:
    """What a config asks to be done with the scores that tokens are drawn by, in transformers' order."""
    filters = _sampling_filters(config) if config.do_sample else []
    if config.renormalize_logits:
        filters.append(LogSoftmax())
    return tuple(filters)


def _sampling_filters(config: GenerationConfig) -> list[Filter]:
    # A beam needs one candidate that does not end it.
    keep = 1 if config.num_beams == 1 else len(config.eos_token_id or (0,)) + 1
    filters: list[Filter] = []
    if config.temperature != 1.0:
        filters.append(Temperature(config.temperature))
    if config.top_h is not None:
        filters.append(TopH(config.top_h))
    if config.top_k:
        filters.append(TopK(max(config.top_k, keep)))
    if config.top_p < 1.0:
        filters.append(TopP(config.top_p, keep))
    if config.min_p is not None:
        filters.append(MinP(config.min_p, keep))
    if config.typical_p < 1.0:
        filters.append(Typical(config.typical_p, keep))
    if config.epsilon_cutoff:
        filters.append(Epsilon(config.epsilon_cutoff, keep))
    if config.eta_cutoff:
        filters.append(Eta(config.eta_cutoff, keep))
    return filters


@dataclass(frozen=True, slots=True)
class Temperature:
    """Divides scores: below 1 the likely become likelier."""

    temperature: float

    def __call__(self, scores: Tensor) -> Tensor:
        return scores / self.temperature


@dataclass(frozen=True, slots=True)
class TopH:
    """Keeps the likeliest tokens, one at least, whose entropy adds up to at most `share` of that of the best 100.

    Source: Potraghloo et al., 2025 (top-H decoding), in transformers' form.
    """

    share: float

    def __call__(self, scores: Tensor) -> Tensor:
        best = scores.topk(min(_TOP_H_CANDIDATES, scores.shape[-1])).values
        terms = best.log_softmax(dim=-1)
        # 0 log 0 is 0.
        entropy = torch.where(terms.isneginf(), 0.0, -terms.exp() * terms).cumsum(dim=-1)
        return _from(scores, _last(best, entropy <= self.share * entropy[:, -1:], keep=1))


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps the `count` likeliest tokens, and those as likely as the last of them (Fan et al., 2018, section 5.4)."""

    count: int

    def __call__(self, scores: Tensor) -> Tensor:
        return _from(scores, _best(scores, self.count))


@dataclass(frozen=True, slots=True)
class TopP:
    """Keeps the likeliest tokens that together have a probability of `mass` (Holtzman et al., 2019, section 3.1)."""

    mass: float
    keep: int = 1

    def __call__(self, scores: Tensor) -> Tensor:
        quick = scores.device.type == "cpu" and scores.shape[-1] >= 4 * _SELECTED
        return _from(scores, self._by_selection(scores) if quick else self._by_sorting(scores))

    def _by_sorting(self, scores: Tensor) -> Tensor:
        """The least score [B, 1] that is kept."""
        ordered = scores.sort(dim=-1, descending=True).values
        weights = (ordered - ordered[:, :1]).exp()
        # Summed from the least likely, as transformers does: a sum that rounds differently may cut elsewhere.
        rest = weights.flip(-1).cumsum(dim=-1).flip(-1)
        return _last(ordered, rest > (1 - self.mass) * rest[:, :1], self.keep)

    def _by_selection(self, scores: Tensor) -> Tensor:
        """The same, with a sort for those rows alone that keep more than the best few: a tenth of the time on a CPU."""
        best = scores.topk(_SELECTED).values
        weights = (best - best[:, :1]).exp()
        total = (scores - best[:, :1]).exp_().sum(dim=-1, keepdim=True)
        rest = weights.flip(-1).cumsum(dim=-1).flip(-1) + (total - weights.sum(dim=-1, keepdim=True))
        kept = rest > (1 - self.mass) * total
        least = _last(best, kept, self.keep)
        beyond = kept[:, -1].nonzero()[:, 0]
        least[beyond] = self._by_sorting(scores[beyond])
        return least


@dataclass(frozen=True, slots=True)
class MinP:
    """Keeps tokens with at least `share` of the likeliest one's probability (Nguyen et al., 2024, section 3)."""

    share: float
    keep: int = 1

    def __call__(self, scores: Tensor) -> Tensor:
        least = scores.amax(dim=-1, keepdim=True) + (math.log(self.share) if self.share else -math.inf)
        return _from(scores, torch.minimum(least, _best(scores, self.keep)))


@dataclass(frozen=True, slots=True)
class Typical:
    """Keeps the tokens whose information is closest to the expected one and that together have a probability of `mass`.

    Source: Meister et al., 2022, section 4.
    """

    mass: float
    keep: int = 1

    def __call__(self, scores: Tensor) -> Tensor:
        ordered = scores.sort(dim=-1, descending=True).values
        total, entropy = _total_and_entropy(ordered)
        surprise = _distance(ordered, total, entropy)
        surprise, order = surprise.sort(dim=-1, stable=True)
        sums = (ordered.gather(-1, order) - total).exp().cumsum(dim=-1)
        place = (sums < self.mass).sum(dim=-1, keepdim=True)
        place = place.clamp(min=self.keep - 1).clamp(max=scores.shape[-1] - 1)
        untypical = _distance(scores, total, entropy) > surprise.gather(-1, place)
        return scores.masked_fill(untypical, -math.inf)


@dataclass(frozen=True, slots=True)
class Epsilon:
    """Keeps tokens with a probability of at least `cutoff` (Hewitt et al., 2022, section 4)."""

    cutoff: float
    keep: int = 1

    def __call__(self, scores: Tensor) -> Tensor:
        total = scores.logsumexp(dim=-1, keepdim=True)
        return _from(scores, torch.minimum(total + math.log(self.cutoff), _best(scores, self.keep)))


@dataclass(frozen=True, slots=True)
class Eta:
    """Keeps tokens with a probability of at least min(cutoff, sqrt(cutoff) exp(-entropy)).

    Source: Hewitt et al., 2022, section 4.
    """

    cutoff: float
    keep: int = 1

    def __call__(self, scores: Tensor) -> Tensor:
        total, entropy = _total_and_entropy(scores)
        least = torch.minimum(0.5 * math.log(self.cutoff) - entropy, torch.full_like(entropy, math.log(self.cutoff)))
        return _from(scores, torch.minimum(total + least, _best(scores, self.keep)))


@dataclass(frozen=True, slots=True)
class LogSoftmax:
    """Makes scores log-probabilities."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores.log_softmax(dim=-1)


def _from(scores: Tensor, least: Tensor) -> Tensor:
    """The scores that are at least `least` [B, 1]."""
    return scores.masked_fill(scores < least, -math.inf)


def _best(scores: Tensor, count: int) -> Tensor:
    """The count-th greatest score of each row, [B, 1]."""
    if count == 1:
        return scores.amax(dim=-1, keepdim=True)
    return scores.topk(min(count, scores.shape[-1])).values[:, -1:]


def _last(ordered: Tensor, kept: Tensor, keep: int) -> Tensor:
    """The least kept score [B, 1] of descending ones; `kept` marks the first few, and `keep` stay in any case."""
    place = kept.sum(dim=-1, keepdim=True).clamp(min=keep) - 1
    return ordered.gather(-1, place.clamp(max=ordered.shape[-1] - 1))


def _total_and_entropy(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the sum of exponentials, and the distribution's entropy in nats, both [B, 1]."""
    total = scores.logsumexp(dim=-1, keepdim=True)
    terms = scores - total
    # 0 log 0 is 0.
    return total, -torch.where(terms.isneginf(), 0.0, terms.exp() * terms).sum(dim=-1, keepdim=True)


def _distance(scores: Tensor, total: Tensor, entropy: Tensor) -> Tensor:
    """How far each token's information is from the expected one."""
    return (total - scores - entropy).abs()
