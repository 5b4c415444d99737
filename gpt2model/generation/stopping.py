"""When a row ends: at a stop string, at an eos token, at its greatest length, or when the time is up.

Stop strings are found by the automaton of Aho and Corasick (1975) over bytes, compiled into one over tokens: a token
may hold the end of a string, the whole of it, or half a character.

Shapes: B rows, L tokens, N nodes of the automaton, V tokens of the tokenizer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2model.errors import InputError
from gpt2model.generation.context import NO_TOKEN, Context
from gpt2model.generation.processors import last_tokens
from gpt2model.tokenizer import GPT2Tokenizer
from gpt2model.vocabulary import bytes_of

Integers = NDArray[np.int32]

# Transitions computed at once, so that the numbers between them stay in the cache.
_CHUNK = 2**18


class StopStrings:
    """Finds, token by token, where a row's text has any of several strings.

    A row's state is an int64: which beginning of a string its text ends with, or that a string was found, which it
    stays. Tokens without bytes (None, such as special tokens, or unknown to the tokenizer) break a string in two.

    `token_bytes` is what each token stands for, by id. The table takes 4 V (1 + bytes of all strings) bytes.
    Raises InputError for an empty string.
    """

    def __init__(self, token_bytes: Sequence[bytes | None], strings: Sequence[str]) -> None:
        # A lone surrogate is no text: it is looked for, in vain.
        patterns = [text.encode(errors="surrogatepass") for text in strings]
        if not all(patterns):
            raise InputError(f"strings={list(strings)!r}: an empty string is found everywhere; leave it out")
        moves, ends = _automaton(patterns)
        self._nodes = len(moves)
        self._longest = max(map(len, patterns), default=1)
        self._table = torch.from_numpy(_compiled(moves, ends, token_bytes))

    def start(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """The states [B] of rows without text."""
        return torch.zeros(rows, dtype=torch.int64, device=device)

    def step(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states [B] after one more token [B] of each row; NO_TOKEN leaves a state alone."""
        return torch.where(self.found(states), states, self._moved(states, tokens))

    def found(self, states: Tensor) -> Tensor:
        """Whether a row's text had a string, bool [B]."""
        return states >= self._nodes

    def after(self, states: Tensor, ids: Tensor) -> Tensor:
        """The states [B] after text that was there before, such as a prompt: ids [B, L] with NO_TOKEN anywhere.

        A string that lies wholly in it is not found, but one may begin in it. As transformers does, which looks for
        strings that the newest token is part of.
        """
        # What lies further back than the longest string does not matter, and each token has one byte or more.
        places = (ids != NO_TOKEN).to(torch.int8).argsort(dim=1, stable=True)[:, -self._longest :]
        begun = states
        for tokens in ids.gather(1, places).unbind(dim=1):
            begun = self._moved(begun, tokens) % self._nodes
        return torch.where(self.found(states), states, begun)

    def _moved(self, states: Tensor, tokens: Tensor) -> Tensor:
        if self._table.device != states.device:
            self._table = self._table.to(states.device)
        unknown = len(self._table) - 1
        moved = self._table[tokens.clamp(min=0, max=unknown), states % self._nodes].long()
        return torch.where(tokens == NO_TOKEN, states, moved)


def token_bytes(tokenizer: GPT2Tokenizer, skip_special_tokens: bool = True) -> list[bytes | None]:
    """The bytes that each token adds to a text decoded likewise, by id; None for special tokens that are skipped.

    Not skipped, a special token stands for its name, so that a stop string can name it, as in transformers.
    """
    added = tokenizer.added_tokens_decoder if skip_special_tokens else {}
    special = {index for index, token in added.items() if token.special}
    vocabulary = tokenizer.get_vocab()
    held: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        if index not in special:
            held[index] = bytes_of(token)
    return held


def cut_at_stop(text: str, strings: Sequence[str]) -> str:
    """The text before the first place where any of the strings begins; all of it where none does."""
    places = [text.find(each) for each in strings]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def ended_by_token(context: Context, tokens: Sequence[int]) -> Tensor:
    """Whether a row's last token is one of these, bool [B]."""
    last = last_tokens(context, 1)[:, 0]
    ended = torch.zeros_like(last, dtype=torch.bool)
    for token in tokens:
        ended = ended | (last == token)
    return ended


def ended_by_length(context: Context) -> Tensor:
    """Whether a row is as long as it may become, bool [B]."""
    return context.lengths >= context.max_lengths


def deadline(max_time: float | None, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """A function that says whether more than `max_time` seconds have gone by since this call; None is for ever."""
    if max_time is None:
        return lambda: False
    end = clock() + max_time
    return lambda: clock() > end


def _automaton(patterns: Sequence[bytes]) -> tuple[Integers, NDArray[np.bool_]]:
    """Where a byte leads from each node, [N, 256], and the nodes [N] that end with a pattern; node 0 is the start."""
    children: list[dict[int, int]] = [{}]
    ends = [False]
    for pattern in patterns:
        node = 0
        for byte in pattern:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(False)
            node = children[node][byte]
        ends[node] = True
    moves = np.zeros((len(children), 256), dtype=np.int32)
    # By depth, so that what is known of a node's longest other beginning of a pattern is known in time.
    waiting = deque([(0, 0)])
    while waiting:
        node, shorter = waiting.popleft()
        ends[node] = ends[node] or ends[shorter]
        moves[node] = moves[shorter]
        for byte, child in children[node].items():
            # In this order: from the start, nothing shorter goes on with the byte.
            waiting.append((child, int(moves[shorter, byte])))
            moves[node, byte] = child
    return moves, np.array(ends)


def _compiled(moves: Integers, ends: NDArray[np.bool_], tokens: Sequence[bytes | None]) -> Integers:
    """Where a token leads from each node, [V + 1, N], plus N where a pattern ends in it; the last row is no token's.

    Tokens are read side by side, a byte of each at a time, the longest first: the shorter drop out at the end.
    """
    nodes = len(moves)
    # A node plus N is one that was reached over the end of a pattern, which is not forgotten.
    reached = np.concatenate([np.where(ends[moves], moves + nodes, moves), moves + nodes]).astype(np.int64)
    by_byte = reached.T.ravel()
    lengths = np.array([len(token or b"") for token in tokens], dtype=np.int64)
    longest_first = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    table = np.zeros((len(tokens) + 1, nodes), dtype=np.int32)
    rows = max(1, _CHUNK // nodes)
    for start in range(0, len(longest_first), rows):
        chunk = longest_first[start : start + rows]
        led = np.tile(np.arange(nodes), (len(chunk), 1))
        for place in range(lengths[chunk[0]]):
            count = np.count_nonzero(lengths[chunk] > place)
            read = np.array([(tokens[index] or b"")[place] for index in chunk[:count]], dtype=np.int64)
            led[:count] = by_byte[led[:count] + read[:, None] * 2 * nodes]
        table[chunk] = led
    return table
