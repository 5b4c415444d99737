"""The best spans are those that trying every span finds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2model.encoding import Ragged
from pipeline.tasks.spans import Spans, best_spans, merged, trimmed

LOGITS = st.floats(-20, 20, width=32)


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, characters of the tokens (up to four tokens make one), visible tokens, logits of no answer."""
    places = [
        place
        for place, tokens in enumerate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=10)))
        for _ in range(tokens)
    ]
    logits = draw(st.lists(st.tuples(LOGITS, LOGITS), min_size=len(places), max_size=len(places)))
    visible = draw(st.lists(st.booleans(), min_size=len(places), max_size=len(places)))
    bounds = np.stack([places, np.array(places) + 1], axis=1)
    nothing = np.array(draw(st.tuples(LOGITS, LOGITS)), np.float32)
    return np.array(logits, np.float32), bounds, np.array(visible), nothing


@given(windows(), st.integers(1, 60), st.integers(1, 12), st.booleans())
def test_the_best_spans_of_a_window_are_those_that_a_search_of_all_finds(
    window: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], max_tokens: int, top_k: int, allowed: bool
) -> None:
    logits, bounds, visible, nothing = window
    everything = np.vstack([nothing, logits] if allowed else [logits]).astype(np.float64)
    probabilities = np.exp(everything) / np.exp(everything).sum(axis=0)
    best: dict[tuple[int, int], float] = {(0, 0): math.prod(probabilities[0])} if allowed else {}
    starts, ends = probabilities[-len(logits) :].T
    for i in range(len(logits)):
        for j in range(i, min(i + max_tokens, len(logits))):
            if visible[i] and visible[j]:
                span = (int(bounds[i, 0]), int(bounds[j, 1]))
                best[span] = max(best.get(span, 0.0), starts[i] * ends[j])
    found = best_spans(
        logits, bounds, visible, nothing=nothing if allowed else None, max_tokens=max_tokens, top_k=top_k
    )
    ours = merged([found], top_k)
    spans = [(start, end) for start, end in ours.bounds.tolist()]
    assert len(set(spans)) == len(spans) == min(top_k, len(best))
    np.testing.assert_allclose(np.exp(ours.scores), sorted(best.values(), reverse=True)[:top_k], rtol=1e-6)
    np.testing.assert_allclose(np.exp(ours.scores), [best[span] for span in spans], rtol=1e-6)


def test_a_span_of_two_windows_counts_once_at_its_best_and_no_answer_at_its_least() -> None:
    one = Spans(np.array([[3, 5], [0, 9]]), np.log([0.2, 0.1]), math.log(0.3))
    two = Spans(np.array([[3, 5], [7, 9]]), np.log([0.4, 0.4]), math.log(0.15))
    best = merged([one, two], 4)
    assert best.bounds.tolist() == [[3, 5], [7, 9], [0, 0], [0, 9]]
    assert np.exp(best.scores) == pytest.approx([0.4, 0.4, 0.15, 0.1])


@given(
    st.lists(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\u3000"))), min_size=1)
)
def test_tokens_lose_the_white_space_that_strip_takes_away(texts: list[str]) -> None:
    spans = [(i, j) for text in texts for i in range(0, len(text), 3) for j in [min(i + 3, len(text))]]
    offsets = np.cumsum([0, *(math.ceil(len(text) / 3) for text in texts)])
    chars = np.array(spans, np.int64).reshape(-1, 2)
    bounds, visible = trimmed(Ragged(np.zeros(len(spans), np.int64), offsets, chars), texts)
    for text, start, stop in zip(texts, offsets, offsets[1:], strict=False):
        for token in range(start, stop):
            whole = text[slice(*chars[token])]
            assert visible[token] == bool(whole.strip())
            if visible[token]:
                assert text[slice(*bounds[token])] == whole.strip()
