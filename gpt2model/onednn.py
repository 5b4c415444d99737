"""Float32 products by oneDNN on processors that MKL neglects, with what follows a product fused into it.

torch multiplies float32 matrices on a CPU by MKL, which on AMD's processors leaves the wider half of the vector units
idle: oneDNN, which torch carries as well, is 2.2 times as fast on a Zen 5. The operators are those that torch.compile
emits for a linear layer; they take the weight as it lies, without a second copy in a layout of their own.

Shapes: M rows, K in, N out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def takes(x: Tensor) -> bool:
    """Whether products with such rows [M, K] are better computed here than by torch.mm."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 2 and x.shape[0] > 0 and _is_better()


@cache
def _is_better() -> bool:
    mkldnn_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    mkl_there = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (mkldnn_there and mkl_there):
        return False
    info = Path("/proc/cpuinfo")
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and info.is_file() and "AuthenticAMD" in info.read_text()


def laid_out(weight: Tensor) -> Tensor:
    """The same weight [K, N] with the memory order that these products read fastest, where they are to compute it.

    The order of GPT-2's files puts a column's entries a multiple of 4 KiB apart, which costs a fifth of the rate.
    """
    return weight.T.contiguous().T if takes(weight) else weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N]: new [M, N]. A transposed view is as good a weight."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def linear_tanh_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The tanh formula of GELU over `linear`: new [M, N]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    return product


def linear_plus(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """`linear` plus other [M, N]: new [M, N]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")
    return product
