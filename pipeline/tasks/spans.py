"""Which spans of a context score best as answers, by the logits of where an answer starts and where it ends.

The rules are those of transformers 4's QuestionAnsweringPipeline (transformers 5 has none):

    score(i, j) = p_start(i) * p_end(j),    i <= j < i + max_tokens

with p_start and p_end a softmax over the context's tokens in one window. Where no answer is allowed, the first token of
the window takes part in both; the score of no answer is p_start * p_end there, and of several windows the least counts.

Shapes: C tokens of one context in one window (of all contexts in `trimmed`), S spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gpt2model.encoding import Ragged

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

WHITE_SPACE = np.array([code for code in range(0x3001) if chr(code).isspace()], np.uint32)
"""All characters that str.strip takes away; U+3000 is the last."""

TWINS = 16
"""Spans of tokens that may be the same characters: one character is up to four tokens at either end."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans of one context, as characters from, and up to without: bounds [S, 2]; scores [S] are logarithms.

    `nothing` is the score of no answer, None where that isn't allowed.
    """

    bounds: Places
    scores: Floats
    nothing: float | None = None


def trimmed(contexts: Ragged, texts: Sequence[str]) -> tuple[Places, npt.NDArray[np.bool_]]:
    """The characters of each token without white space around them, [C, 2], and which tokens have any, [C].

    `contexts` are the encoded texts, with their characters.
    """
    assert contexts.chars is not None
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    base = np.repeat(np.cumsum(lengths) - lengths, contexts.lengths)
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    inked = np.flatnonzero(~np.isin(characters, WHITE_SPACE))
    first, behind = np.searchsorted(inked, contexts.chars.T + base)
    visible = first < behind
    bounds = np.zeros_like(contexts.chars)
    bounds[visible, 0] = inked[first[visible]] - base[visible]
    bounds[visible, 1] = inked[behind[visible] - 1] + 1 - base[visible]
    return bounds, visible


def best_spans(
    logits: npt.NDArray[np.float32],
    bounds: Places,
    visible: npt.NDArray[np.bool_],
    *,
    nothing: npt.NDArray[np.float32] | None,
    max_tokens: int,
    top_k: int,
) -> Spans:
    """Enough of one window's spans for `top_k` that differ, in no order.

    Start and end logits are [C, 2], `nothing` those of the first token of the window, [2], or None. Spans start and end
    at a visible token, so that none is empty and none is white space at its ends.
    """
    scored = logits if nothing is None else np.vstack([nothing, logits])
    logprobs = _log_softmax(scored.astype(np.float64))
    starts, ends = np.where(visible, logprobs[-len(logits) :].T, -np.inf)
    width = min(max_tokens, len(logits))
    reach = np.lib.stride_tricks.sliding_window_view(np.append(ends, np.full(width - 1, -np.inf)), width)
    scores = (starts[:, None] + reach).ravel()
    take = min(TWINS * top_k, len(scores))
    best = np.argpartition(-scores, take - 1)[:take]
    best = best[np.isfinite(scores[best])]
    start, more = np.divmod(best, width)
    found = np.stack([bounds[start, 0], bounds[start + more, 1]], axis=1)
    return Spans(found, scores[best], None if nothing is None else float(logprobs[0].sum()))


def merged(windows: Sequence[Spans], top_k: int) -> Spans:
    """The best of all windows' spans, best first; one that several windows or tokens make counts once, at its best.

    Of equal scores the earlier span comes first, then the shorter. No answer is the span (0, 0).
    """
    bounds = np.concatenate([each.bounds for each in windows])
    scores = np.concatenate([each.scores for each in windows])
    nothings = [each.nothing for each in windows if each.nothing is not None]
    if nothings:
        bounds, scores = np.vstack([bounds, [0, 0]]), np.append(scores, min(nothings))
    order = np.lexsort((bounds[:, 1], bounds[:, 0], -scores))
    _, first = np.unique(bounds[order], axis=0, return_index=True)
    kept = order[np.sort(first)[:top_k]]
    return Spans(bounds[kept], scores[kept])


def _log_softmax(values: Floats) -> Floats:
    """Over the first axis."""
    shifted = values - values.max(axis=0)
    normal: Floats = shifted - np.log(np.exp(shifted).sum(axis=0))
    return normal
