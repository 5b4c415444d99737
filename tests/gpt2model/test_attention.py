"""The attention kernels agree with each other, and masks mean what they say."""

import pytest
import torch
from torch import Tensor

from gpt2model.attention import AttentionMask, eager_attention, sdpa_attention, self_attention_mask

from .oracle import assert_close, padded


def heads(length: int, keys: int, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, length, 8), (2, 3, keys, 8), (2, 3, keys, 8))
    return tuple((spread * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes)


def mask_of(attention_mask: Tensor | None, length: int, past: int) -> AttentionMask:
    return self_attention_mask(attention_mask, None, batch=2, length=length, past=past, device=torch.device("cpu"))


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize(("length", "past"), [(6, 0), (1, 5), (4, 2), (1, 0)])
def test_kernels_agree_and_no_query_sees_padding_or_later_keys(length: int, past: int, padding: str | None) -> None:
    total = past + length
    attention_mask = None if padding is None else padded([total, 1], total, padding)
    query, key, value = heads(length, total)
    mask = mask_of(attention_mask, length, past)
    out, weights = eager_attention(query, key, value, mask, scale=0.3, dropout=0.0, upcast=False)
    fused = sdpa_attention(query, key, value, mask, scale=0.3, dropout=0.0)
    seen = torch.ones(length, total, dtype=torch.bool).tril(past).expand(2, 3, length, total)
    if attention_mask is not None:
        seen = seen & attention_mask.bool()[:, None, None, :]
    answered = seen.any(-1)
    assert_close(fused, out, answered)
    assert fused.isfinite().all()
    assert not weights[answered[..., None] & ~seen].any()
    assert_close(weights.sum(-1), torch.ones(2, 3, length))


def test_mask_without_padding_costs_no_mask() -> None:
    assert mask_of(torch.ones(2, 6), 6, 0) == AttentionMask(causal=True)
    assert mask_of(torch.ones(2, 6), 1, 5) == AttentionMask()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_kernel_keeps_scores_in_float32_in_half_precision(dtype: torch.dtype) -> None:
    query, key, value = heads(12, 12, dtype, spread=6.0)
    mask = mask_of(None, 12, 0)
    exact, _ = eager_attention(query.double(), key.double(), value.double(), mask, scale=1.0, dropout=0.0, upcast=False)
    upcast, _ = eager_attention(query, key, value, mask, scale=1.0, dropout=0.0, upcast=True)
    rounded, _ = eager_attention(query, key, value, mask, scale=1.0, dropout=0.0, upcast=False)
    fused = sdpa_attention(query, key, value, mask, scale=1.0, dropout=0.0)
    error = {
        name: float((out.double() - exact).abs().max())
        for name, out in {"upcast": upcast, "fused": fused, "rounded": rounded}.items()
    }
    assert error["upcast"] < error["rounded"] / 2
    assert error["fused"] < error["rounded"] / 2
