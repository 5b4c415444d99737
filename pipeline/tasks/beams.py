"""Beam search for a group of rows: padded batches of prompts of like length, which `generate` searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.tasks.sequences import Ids

if TYPE_CHECKING:
    from gpt2model.generation import GenerationConfig
    from pipeline.batching import Index, PackRunner


@dataclass(frozen=True, slots=True)
class Beam:
    """One text that a search found: its new tokens, up to and with an eos token, and their log-probabilities."""

    token_ids: Ids
    logprobs: npt.NDArray[np.float32] | None


def search_beams(
    model: Any,
    prompts: Sequence[Ids],
    limits: Sequence[int],
    generation: GenerationConfig,
    tokenizer: Any,
    runner: PackRunner,
    *,
    logprobs: bool,
) -> tuple[list[list[Beam]], dict[int, str]]:
    """The best texts behind each prompt, and the prompts that device memory can't hold, with the reason."""
    found: list[list[Beam]] = [[] for _ in prompts]
    # What a search holds: all its beams at their full length.
    lengths = np.array(
        [generation.num_beams * (len(prompt) + limit) for prompt, limit in zip(prompts, limits, strict=True)], np.int64
    )

    def call(index: Index) -> None:
        for limit in sorted({limits[each] for each in index}):
            chosen = [int(each) for each in index if limits[each] == limit]
            texts = _search(model, [prompts[each] for each in chosen], limit, generation, tokenizer)
            for each, own in zip(chosen, texts, strict=True):
                found[each] = [Beam(ids, None) for ids in own]

    failed = runner.run(lengths, call)
    if logprobs:
        _score(model, prompts, found, runner)
    return found, failed


def _search(
    model: Any, prompts: Sequence[Ids], limit: int, generation: GenerationConfig, tokenizer: Any
) -> list[list[Ids]]:
    import torch

    longest = max(map(len, prompts))
    ids = torch.from_numpy(np.stack([np.pad(each, (longest - len(each), 0)) for each in prompts]))
    mask = torch.from_numpy(np.stack([np.arange(longest) >= longest - len(each) for each in prompts]).astype(np.int64))
    sequences = model.generate(
        ids.to(model.device),
        generation.replace(max_new_tokens=limit),
        attention_mask=mask.to(model.device),
        tokenizer=tokenizer,
    )
    new = sequences[:, longest:].cpu().numpy()
    texts = [_ended(each, generation) for each in new]
    several = generation.num_return_sequences
    return [texts[start : start + several] for start in range(0, len(texts), several)]


def _ended(ids: Ids, generation: GenerationConfig) -> Ids:
    """Without the filling behind the end: from the first eos token on."""
    at_eos = np.flatnonzero(np.isin(ids, generation.eos_token_id or ()))
    return ids[: at_eos[0] + 1] if len(at_eos) else ids


def _score(model: Any, prompts: Sequence[Ids], found: list[list[Beam]], runner: PackRunner) -> None:
    """Put the log-probabilities in."""
    from gpt2model.scoring import continuation_logprobs

    lengths = [
        len(prompt) + sum(len(each.token_ids) for each in own) for prompt, own in zip(prompts, found, strict=True)
    ]

    def call(index: Index) -> None:
        own = [[each.token_ids for each in found[place]] for place in index]
        for place, scored in zip(
            index, continuation_logprobs(model, [prompts[each] for each in index], own), strict=True
        ):
            found[place] = [
                Beam(each.token_ids, each_scored.numpy())
                for each, each_scored in zip(found[place], scored, strict=True)
            ]

    runner.run(np.array(lengths, np.int64), call)
