"""Windows equal the reference implementations' and score every token once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks.windows import rolling, sliding

LENGTHS = st.integers(0, 60)
WINDOWS = st.integers(1, 16)


@given(LENGTHS, WINDOWS)
def test_rolling_cuts_a_text_as_lm_eval_does(length: int, window: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens = list(range(1, length + 1))
    theirs = list(map(make_disjoint_window, get_rolling_token_windows(tokens, 0, window, context_len=1)))
    sequence = [0, *tokens]
    ours = [
        (sequence[begin:first], sequence[first:end]) for begin, end, first in rolling(length + 1, 1, window, window)
    ]
    assert ours == theirs


@given(LENGTHS, WINDOWS, st.integers(1, 16))
def test_rolling_with_a_stride_is_lm_eval_with_a_longer_context(length: int, window: int, stride: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    stride = min(stride, window)
    tokens = list(range(1, length + 1))
    theirs = get_rolling_token_windows(tokens, 0, window, context_len=window - stride + 1)
    sequence = [0, *tokens]
    ours = [
        (sequence[begin:first], sequence[first:end]) for begin, end, first in rolling(length + 1, 1, window, stride)
    ]
    assert ours == list(map(make_disjoint_window, theirs))


@given(st.integers(1, 30), st.integers(1, 16), WINDOWS)
def test_a_completion_that_fits_is_one_window_that_ends_with_it(context: int, completion: int, window: int) -> None:
    completion = min(completion, window)
    total = context + completion
    assert list(rolling(total, context, window, window)) == [(max(0, total - window - 1), total, context)]


@given(LENGTHS, st.integers(1, 20), WINDOWS, st.integers(1, 16), st.sampled_from([rolling, sliding]))
def test_every_token_is_scored_once_and_no_window_is_too_long(length, context, window, stride, cut) -> None:
    stride = min(stride, window)
    scored = []
    for begin, end, first in cut(context + length, context, window, stride):
        assert 0 <= begin < first < end
        assert end - begin - 1 <= window
        scored += range(first, end)
    assert scored == sorted(set(scored))
    if cut is rolling or stride < window:
        assert scored == list(range(context, context + length))


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 4, 2), (37, 8, 3), (5, 8, 4), (16, 8, 8), (1, 4, 2)])
def test_sliding_scores_what_the_loop_of_the_hugging_face_guide_scores(length: int, window: int, stride: int) -> None:
    theirs, previous = [], 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        labels = [position if position >= previous else -100 for position in range(begin, end)]
        theirs += [label for label in labels[1:] if label != -100]  # the model shifts labels by one
        previous = end
        if end == length:
            break
    ours = [token for _, end, first in sliding(length, 1, window, stride) for token in range(first, end)]
    assert ours == theirs
