"""transformers' GPT-2 and ours with the same random weights, and what it means that they agree."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import gpt2model
from gpt2model.config import GPT2Config

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "n_positions": 40,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TOLERANCE = 1e-4
# What transformers raises, mostly from torch's kernels, where we raise InputError.
UNTYPED = (IndexError, RuntimeError, ValueError, UserWarning)


# The id that stands for padding in `padded_ids`, and nowhere else.
PAD = SIZES["vocab_size"] - 1


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter widely, biases and layer norms too: narrow weights hide mistakes in scale and masks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            if ".ln_" in name and name.endswith("weight"):
                parameter.add_(1.0)


def ours(name: str = "GPT2LMHeadModel", *, attn_implementation: str = "sdpa", **options: Any) -> Any:
    """Our model of that class with wide random weights, in evaluation mode."""
    config = GPT2Config(**{**SIZES, **options})
    model = getattr(gpt2model, name)(config, attn_implementation=attn_implementation)
    randomize(model)
    return model.eval()


def theirs(model: Any, *, attn_implementation: str = "eager") -> Any:
    """transformers' model of the same class, with the same config and weights."""
    config = transformers.GPT2Config(**model.config.to_dict(), attn_implementation=attn_implementation)
    oracle = getattr(transformers, type(model).__name__)(config)
    oracle.load_state_dict(model.state_dict())
    return oracle.eval()


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: list[int], total: int, side: str) -> Tensor:
    """An attention mask [rows, total] with that many ones in each row, after or before the padding."""
    columns = torch.arange(total)
    filled = columns < torch.tensor(lengths)[:, None]
    return (filled if side == "right" else filled.flip(-1)).long()


def padded_ids(lengths: list[int], total: int, side: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids [rows, total] with PAD in place of what is padding, and their attention mask; side may be "none"."""
    mask = padded([total] * len(lengths) if side == "none" else lengths, total, side)
    ids = torch.randint(PAD, mask.shape, generator=torch.Generator().manual_seed(seed))
    return ids.where(mask.bool(), PAD), mask


def assert_states_agree(actual: Any, expected: Any, where: Tensor) -> None:
    """Hidden states and attention weights of two outputs are equal at the positions [..., L] that `where` marks."""
    rows = where.flatten(0, -2)
    for state, expected_state in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert state.shape == expected_state.shape
        assert_close(state.flatten(0, -3), expected_state.flatten(0, -3), rows)
    for weights, expected_weights in zip(actual.attentions, expected.attentions, strict=True):
        assert_close(weights.transpose(1, 2), expected_weights.transpose(1, 2), rows)


def assert_gradients_agree(model: nn.Module, oracle: nn.Module) -> None:
    """Every parameter has the same gradient in both; noise where the true one is 0 is measured by the greatest of all.

    A softmax does not see a constant, so that what adds one (the bias of a head over positions) has no true gradient.
    """
    expected = {name: parameter.grad for name, parameter in oracle.named_parameters() if parameter.grad is not None}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    noise = 1e-6 * max(float(gradient.abs().max()) for gradient in expected.values())
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        bound = TOLERANCE * float(expected[name].abs().max()) + noise
        assert float((gradient - expected[name]).abs().max()) <= bound, name


def assert_same_weights_named(model: nn.Module, oracle: nn.Module) -> None:
    """The state dicts have the same keys in the same order, and the same shapes."""
    shapes, expected = ([(key, value.shape) for key, value in each.state_dict().items()] for each in (model, oracle))
    assert shapes == expected


def assert_reads_alike(model: Any, oracle: Any, given: dict[str, Any]) -> None:
    """The results of one call have the same fields in the same order, None where the other's are, as tuples too."""
    record, expected = model(**given), oracle(**given)
    names = [field.name for field in fields(record)]
    assert names == [field.name for field in fields(expected)]
    assert [name for name in names if getattr(record, name) is not None] == list(expected.keys())
    as_tuple, expected_tuple = model(**given, return_dict=False), oracle(**given, return_dict=False)
    assert [type(item).__name__ for item in as_tuple] == [type(item).__name__ for item in expected_tuple]
    assert [type(item) for item in record.to_tuple()] == [type(item) for item in as_tuple]
    for place, item in enumerate(expected_tuple):
        if isinstance(item, Tensor):
            assert_close(as_tuple[place], item)
            assert_close(record[place], item)


def assert_checkpoints_go_both_ways(model: Any, folder: Path, outputs: Callable[[Any], Tensor]) -> None:
    """What we save, transformers loads, and the other way round: `outputs` of all the models are the same."""
    name = type(model).__name__
    model.save_pretrained(folder / "ours")
    oracle = getattr(transformers, name).from_pretrained(folder / "ours", attn_implementation="eager").eval()
    assert_close(outputs(oracle), outputs(model))
    oracle.save_pretrained(folder / "theirs")
    assert_close(outputs(getattr(gpt2model, name).from_pretrained(folder / "theirs")), outputs(model))


def assert_close(actual: Tensor, expected: Tensor, where: Tensor | None = None, tolerance: float = TOLERANCE) -> None:
    """Equal to `tolerance` of the greatest expected value, at the positions that `where` marks."""
    actual, expected = actual.detach(), expected.detach()
    assert actual.shape == expected.shape
    if where is not None:
        actual, expected = actual[where.bool()], expected[where.bool()]
    assert actual.isfinite().all()
    assert float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())
