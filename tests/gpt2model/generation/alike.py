"""transformers' generate and ours on the same weights, and what it means that they agree."""

from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.gpt2model.oracle import PAD, TOLERANCE, ours, padded_ids, randomize, theirs

RECORD: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
# Lengths of the three prompts of `prompts`, which has that many places.
LENGTHS, PLACES = [7, 4, 2], 7


@cache
def models(name: str = "GPT2LMHeadModel", seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """Ours and theirs, which no test may write to."""
    model = ours(name, **{"pad_token_id": PAD, **options})
    randomize(model, seed)
    return model, theirs(model)


def prompts(side: str = "left", seed: int = 0) -> dict[str, Tensor]:
    """Three prompts, unpadded ("none") or with padding, and their mask."""
    ids, mask = padded_ids(LENGTHS, PLACES, side, seed)
    return {"input_ids": ids, "attention_mask": mask}


def frequent(model: Any, given: dict[str, Tensor], count: int = 3) -> list[int]:
    """Tokens that a model often says after these prompts, the most frequent first; good ends for rows."""
    said = model.generate(**given, max_new_tokens=12, eos_token_id=None)[:, given["input_ids"].shape[1] :].flatten()
    tokens, counts = said[said != PAD].unique(return_counts=True)
    return [int(token) for token in tokens[counts.argsort(descending=True, stable=True)[:count]]]


def generated_alike(model: Any, oracle: Any, given: dict[str, Any], **options: Any) -> Any:
    """Our record, which agrees with theirs in every field but the cache and the model's states."""
    record = model.generate(**given, **RECORD, **options)
    expected = oracle.generate(**given, **RECORD, **options)
    assert [field.name for field in fields(record)] == [field.name for field in fields(expected)]
    assert_same(record.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert_all_close(getattr(record, name), getattr(expected, name))
    if "beam_indices" in expected:
        assert_same(record.beam_indices, expected.beam_indices)
        assert_finite_close(record.sequences_scores, expected.sequences_scores)
    said = (record.sequences, record.scores, getattr(record, "beam_indices", None))
    for normalize in (False, True):
        chosen = model.compute_transition_scores(*said, normalize_logits=normalize)
        assert_finite_close(chosen, oracle.compute_transition_scores(*said, normalize_logits=normalize))
    return record


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal in type, shape and every number."""
    assert actual.dtype == expected.dtype
    assert actual.tolist() == expected.tolist()


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, other in zip(actual, expected, strict=True):
        assert_finite_close(mine, other)


def assert_finite_close(actual: Tensor, expected: Tensor) -> None:
    """Infinite or not at the same places, and equal to the tolerance of the greatest number where it is finite."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    assert torch.equal(actual[~finite], expected[~finite])
    if finite.any():
        bound = TOLERANCE * float(expected[finite].abs().max())
        assert float((actual[finite] - expected[finite]).abs().max()) <= bound
