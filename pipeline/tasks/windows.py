"""How a sequence that may be longer than the model's context is cut into windows, so that every token is scored once.

A window is (begin, end, first): the model reads tokens begin..end-2, predicts tokens begin+1..end-1, and the
predictions of tokens first..end-1 count. `context` tokens at the start of the sequence are given, never predicted.
"""

from __future__ import annotations

from collections.abc import Iterator

Window = tuple[int, int, int]


def rolling(total: int, context: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of `window` inputs; the first predicts as many tokens as fit, each later one `stride` more.

    With stride = window this is lm-evaluation-harness (`get_rolling_token_windows` with context_len 1 for a text,
    `loglikelihood` with its left truncation for a prompt and its completion).
    """
    done = context
    while done < total:
        end = min(total, done + (window if done == context else stride))
        yield max(0, end - window - 1), end, done
        done = end


def sliding(total: int, context: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of `window` tokens that start every `stride` tokens, as in Hugging Face's guide to perplexity.

    The first token of a window has nothing to follow, so with stride = window it is not scored, as in the guide.
    """
    done = context
    for begin in range(0, total, stride):
        end = min(begin + window, total)
        first = max(done, begin + 1)
        if first < end:
            yield begin, end, first
        done = max(done, end)
        if end == total:
            return
