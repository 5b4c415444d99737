"""How likely each of several continuations of a prompt is, the prompt computed once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.tasks.sequences import Ids

if TYPE_CHECKING:
    from pipeline.batching import Index, PackRunner

Normalization = Literal["none", "tokens", "bytes"]


@dataclass(frozen=True, slots=True)
class Forks:
    """Prompts and their continuations, in tokens; fork i belongs to row rows[i]."""

    rows: Sequence[int]
    prompts: Sequence[Ids]
    continuations: Sequence[Sequence[Ids]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each fork."""
        sums = [len(prompt) + sum(map(len, own)) for prompt, own in zip(self.prompts, self.continuations, strict=True)]
        return np.array(sums, np.int64)


@dataclass(frozen=True, slots=True)
class ForkScores:
    """One number for each continuation of each fork, and the rows that could not be computed, with the reason."""

    scores: Sequence[npt.NDArray[np.float64]]
    failed: Mapping[int, str]


def likelihoods(model: Any, forks: Forks, runner: PackRunner) -> ForkScores:
    """Log-likelihood (nats, summed over its tokens) of each continuation by a model with a language-model head."""
    from gpt2model.scoring import continuation_logprobs

    def score(prompts: list[Ids], continuations: list[Sequence[Ids]]) -> list[npt.NDArray[np.float64]]:
        found = continuation_logprobs(model, prompts, continuations)
        return [np.array([float(each.double().sum()) for each in own]) for own in found]

    return _run(forks, runner, score)


def choice_logits(model: Any, forks: Forks, runner: PackRunner) -> ForkScores:
    """The multiple-choice head's logit of each continuation."""
    from gpt2model import pack_branches

    def score(prompts: list[Ids], continuations: list[Sequence[Ids]]) -> list[npt.NDArray[np.float64]]:
        packed = pack_branches(prompts, continuations).to(model.device)
        flat = model.choice_logits(packed).double().cpu().numpy()
        return np.split(flat, np.cumsum([len(own) for own in continuations])[:-1])

    return _run(forks, runner, score)


def _run(forks: Forks, runner: PackRunner, score: Any) -> ForkScores:
    scores: list[npt.NDArray[np.float64]] = [np.zeros(len(own)) for own in forks.continuations]
    pieces = list(_pieces(forks, runner.tokens_per_batch))

    def call(index: Index) -> None:
        chosen = [pieces[each] for each in index]
        found = score(
            [forks.prompts[fork] for fork, _ in chosen], [forks.continuations[fork][part] for fork, part in chosen]
        )
        for (fork, part), own in zip(chosen, found, strict=True):
            scores[fork][part] = own

    lengths = [len(forks.prompts[fork]) + sum(map(len, forks.continuations[fork][part])) for fork, part in pieces]
    unfit = runner.run(np.array(lengths, np.int64), call)
    failed = {forks.rows[pieces[each][0]]: why for each, why in unfit.items()}
    for each, own in enumerate(scores):
        if not np.isfinite(own).all():
            failed.setdefault(forks.rows[each], "the scores are not finite: the model overflows in this dtype")
    return ForkScores(scores, failed)


def _pieces(forks: Forks, budget: int) -> Iterator[tuple[int, slice]]:
    """The forks' continuations in runs of at most `budget` tokens with their prompt, or one by one beyond it.

    The memory of attention grows with the square of a run.
    """
    for fork, (prompt, own) in enumerate(zip(forks.prompts, forks.continuations, strict=True)):
        start, tokens = 0, len(prompt)
        for place, each in enumerate(own):
            if tokens + len(each) > budget and place > start:
                yield fork, slice(start, place)
                start, tokens = place, len(prompt)
            tokens += len(each)
        if start < len(own):
            yield fork, slice(start, len(own))


def normalized(
    scores: npt.NDArray[np.float64], normalization: Normalization, tokens: Sequence[int], texts: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Log-likelihoods as they are, or a token, or a UTF-8 byte of the text (as lm-evaluation-harness's acc_norm)."""
    if normalization == "none":
        return scores
    units = tokens if normalization == "tokens" else [len(text.encode()) for text in texts]
    return scores / np.maximum(units, 1)
