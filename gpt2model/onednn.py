"""Float32 products by oneDNN on processors that MKL neglects, with what follows a product fused into it.

torch multiplies float32 matrices on a CPU by MKL, which on AMD's processors leaves the wider half of the vector units
idle: oneDNN, which torch carries as well, is 2.2 times as fast on a Zen 5. The operators are those that torch.compile
emits for a linear layer; they take a weight as it lies, or in a layout of their own, which saves them its rearrangement
in every product: a twentieth of the time of a thousand rows, a quarter of that of thirty.

Shapes: M rows, K in, N out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn


def takes(x: Tensor) -> bool:
    """Whether products with such rows [M, K] are better computed here than by torch.mm."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 2 and _is_better()


@cache
def _is_better() -> bool:
    mkldnn_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    mkl_there = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (mkldnn_there and mkl_there):
        return False
    info = Path("/proc/cpuinfo")
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and info.is_file() and "AuthenticAMD" in info.read_text()


class Prepackable(nn.Module):
    """A linear layer whose weight may lie in oneDNN's own layout, for computing without gradients.

    What changes the weight, training, loading, or a move to another device or dtype, puts it back first.
    """

    _prepacked: Tensor | None = None

    def _pack(self, weight: Tensor) -> bool:
        """Hold the weight [N, K] in oneDNN's layout; False where products by it are not computed here."""
        if takes(weight):
            self._prepacked = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        return self._prepacked is not None

    def unpack(self) -> None:
        """Hold the weight as it was; does nothing where it is not prepacked."""
        self._prepacked = None

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.unpack()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which are not prepacked: tensors in oneDNN's layout can't be copied."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_prepacked": None}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] times weight [N, K] transposed, plus bias [N]: new [M, N].

    A prepacked weight is the fastest; one that lies transposed is slower, by up to a half where K or N is a multiple of
    1,024.
    """
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
