"""What the rows of a batch hold so far, as the functions that change scores see it.

Shapes: B rows, L tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

NO_TOKEN = -1
"""Stands in Context.ids where a row has no token."""


@dataclass(frozen=True, slots=True)
class Context:
    """Rows of tokens, each begun at the left: row b is ids[b, :lengths[b]].

    Everything is int64. ids is [B, L], with NO_TOKEN behind a row's end and where its prompt is padding. The others are
    [B]: lengths counts all places of a row, padding included, prompt_lengths those of its prompt, and max_lengths is
    the length at which the row ends at the latest.
    """

    ids: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    max_lengths: Tensor


Processor = Callable[[Context, Tensor], Tensor]
"""From the scores [B, V] of the next token to new ones; it may look at what the rows hold, and writes to neither."""

Filter = Callable[[Tensor], Tensor]
"""From scores [B, C] to new ones, some of them -inf, by the scores alone: it does not matter which tokens C are."""
