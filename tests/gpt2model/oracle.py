"""transformers' GPT-2 and ours with the same random weights, and what it means that they agree."""

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


def assert_close(actual: Tensor, expected: Tensor, where: Tensor | None = None, tolerance: float = TOLERANCE) -> None:
    """Equal to `tolerance` of the greatest expected value, at the positions that `where` marks."""
    actual, expected = actual.detach(), expected.detach()
    assert actual.shape == expected.shape
    if where is not None:
        actual, expected = actual[where.bool()], expected[where.bool()]
    assert actual.isfinite().all()
    assert float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())
