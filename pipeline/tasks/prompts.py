"""A prompt and what follows it, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.tasks.sequences import Ids

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer


DOUBLE_HEADS = "GPT2DoubleHeadsModel"


def language_model(config: GPT2Config) -> str:
    """Name of the class with a language-model head for a checkpoint: a head beside it is loaded with it."""
    return DOUBLE_HEADS if DOUBLE_HEADS in (config.architectures or ()) else "GPT2LMHeadModel"


def start_token(tokenizer: GPT2Tokenizer) -> int | None:
    """What a text without anything before it follows: bos, or eos where there is none."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def added_tokens(tokenizer: GPT2Tokenizer) -> tuple[Ids, Ids]:
    """Ids that the tokenizer's template adds before and behind a text."""
    (content,) = tokenizer.encode_ragged(["a"])
    whole = tokenizer.encode_ragged(["a"], add_special_tokens=True, return_chars=True)
    assert whole.chars is not None
    first = int(np.argmax(whole.chars[:, 1] > whole.chars[:, 0]))
    return whole.ids[:first], whole.ids[first + len(content) :]


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: GPT2Tokenizer, prefix: Ids) -> list[tuple[Ids, int]]:
    """Prompt and completion as lm-evaluation-harness encodes them: all tokens, and how many of them are given.

    The prompt is encoded alone, the completion is what the whole has behind as many tokens; spaces at the prompt's end
    belong to the completion. An empty prompt is the start token `prefix`, which is not put before a prompt of its own;
    with an empty prefix nothing is given then.
    """
    whole = tokenizer.encode_ragged([prompt + completion for prompt, completion in pairs])
    alone = tokenizer.encode_ragged([prompt.rstrip() for prompt, _ in pairs])
    encoded = []
    for given, ids in zip(alone, whole, strict=True):
        if len(given):
            encoded.append((np.concatenate([given, ids[len(given) :]]), len(given)))
        else:
            # A completion that begins with the start token is its own context.
            begun = len(ids) > 0 and np.array_equal(ids[:1], prefix)
            encoded.append((ids if begun else np.concatenate([prefix, ids]), len(prefix)))
    return encoded
