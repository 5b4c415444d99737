"""The layers of GPT-2 that know nothing of attention.

Shapes: B any leading dimensions, D width, I inner width (n_inner, or four times D), V vocabulary.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2model import onednn
from gpt2model.config import GPT2Config
from gpt2model.errors import ConfigError

Activation = Callable[[Tensor], Tensor]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _clipped_gelu(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10, 10)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _laplace(x: Tensor) -> Tensor:
    """The attention function of MEGA (Ma et al., 2022, section 3.4): a normal distribution's cumulative function."""
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1.0 + torch.erf((x - mean) / (deviation * math.sqrt(2.0))))


def _sqrt_softplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


def _identity(x: Tensor) -> Tensor:
    return x


# The tanh formula of GELU has six names: they differ in rounding only, and torch computes it in one pass.
_tanh_gelu: Activation = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_10": _clipped_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "gelu_python": F.gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "hardswish": F.hardswish,
    "laplace": _laplace,
    "leaky_relu": F.leaky_relu,
    "linear": _identity,
    "mish": F.mish,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _squared_relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sqrtsoftplus": _sqrt_softplus,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str, option: str = "activation_function") -> Activation:
    """The function that this option of a config names; raises ConfigError for a name that none has."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    near = difflib.get_close_matches(name, ACTIVATIONS, n=1, cutoff=0.0)[0]
    raise ConfigError(f"{option}={name!r} is unknown; nearest is {near!r}, and there are: {', '.join(ACTIVATIONS)}")


class Conv1D(onednn.Prepackable):
    """A linear layer whose weight is stored [in, out], as GPT-2's checkpoints have it: [B, in] -> [B, out].

    Prepacked, it has no other copy of the weight: the parameter is empty until it is put back.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    @property
    def operand(self) -> Tensor:
        """The weight as onednn's products take it, [out, in]."""
        return self.weight.T if self._prepacked is None else self._prepacked

    def prepack(self) -> None:
        """Hold the weight in oneDNN's layout, where oneDNN computes the product."""
        if self._prepacked is None and self._pack(self.weight.T):
            self.weight.data = self.weight.data.new_empty(0)

    def unpack(self) -> None:
        if self._prepacked is not None:
            self.weight.data = self._unpacked(self._prepacked)
        super().unpack()

    @staticmethod
    def _unpacked(prepacked: Tensor) -> Tensor:
        """The weight [in, out] that was prepacked."""
        return prepacked.to_dense().T.contiguous()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._prepacked is not None:
            destination[f"{prefix}weight"] = self._unpacked(self._prepacked)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._prepacked is not None:
            weight = nn.Parameter(self._unpacked(self._prepacked), self.weight.requires_grad)
            state["_parameters"] = {**self._parameters, "weight": weight}
        return state

    def forward(self, x: Tensor) -> Tensor:
        if self._prepacked is None:
            return F.linear(x, self.weight.T, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled() or not onednn.takes(rows):
            return F.linear(x, self._prepacked.to_dense(), self.bias)
        return onednn.linear(rows, self._prepacked, self.bias).view(*x.shape[:-1], self._prepacked.shape[0])

    def extra_repr(self) -> str:
        return f"in_features={self.operand.shape[1]}, out_features={self.operand.shape[0]}"


class LanguageModelHead(onednn.Prepackable, nn.Linear):
    """Logits of the next token, [B, D] -> [B, V], by a weight that may be the token embedding's.

    Prepacked, it holds a copy of the weight in oneDNN's layout beside it, which the engine takes for its few rows.
    """

    _packed_of: tuple[Tensor, int] | None = None
    """What the copy is of: the memory, kept so that no other weight may lie there, and how often it was written to."""

    def __init__(self, config: GPT2Config) -> None:
        # The weight is drawn, or is the embedding's (`tie_weights` puts it in); on "meta" nothing is allocated.
        super().__init__(config.n_embd, config.vocab_size, bias=False, device="meta")
        if not config.tie_word_embeddings:
            weight = torch.empty(config.vocab_size, config.n_embd)
            self.weight = nn.Parameter(weight.normal_(std=config.initializer_range))

    @property
    def operand(self) -> Tensor:
        """The weight [V, D], as onednn's products take it."""
        if self._prepacked is None or self._packed_of is None:
            return self.weight
        packed, writes = self._packed_of
        unchanged = packed.data_ptr() == self.weight.data_ptr() and writes == _writes_to(self.weight)
        return self._prepacked if unchanged else self.weight

    def prepack(self) -> None:
        """Make the copy, where oneDNN computes the product."""
        if self.operand is self.weight and self._pack(self.weight):
            self._packed_of = self.weight.detach(), _writes_to(self.weight)

    def unpack(self) -> None:
        super().unpack()
        self._packed_of = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed_of": None}


def _writes_to(weight: Tensor) -> int:
    """How often the weight was written to; nothing counts that of tensors of inference mode."""
    return 0 if weight.is_inference() else weight._version


def inner_width(config: GPT2Config) -> int:
    """Width between the two layers of the feed-forward half."""
    return 4 * config.n_embd if config.n_inner is None else config.n_inner


class GPT2MLP(nn.Module):
    """The feed-forward half of a block: [B, D] -> [B, I] -> [B, D]."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, inner_width(config))
        self.c_proj = Conv1D(inner_width(config), config.n_embd)
        self.act = activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(self.act(self.c_fc(x)))
        dropped: Tensor = self.dropout(x)
        return dropped


# What follows computes the same without gradients, in memory that is there already: on a CPU, fresh memory and one
# more pass over it cost several per cent of the matrix products. A projection that is no Conv1D (a quantized one) is
# called as it is.


def project(projection: nn.Module, x: Tensor, out: Tensor | None) -> Tensor:
    """projection(x), [B, in] -> [B, out], written to `out` where there is one."""
    if isinstance(projection, Conv1D) and onednn.takes(x):
        return onednn.linear(x, projection.operand, projection.bias)
    if out is None or not isinstance(projection, Conv1D):
        projected: Tensor = projection(x)
        return projected
    return torch.mm(x, projection.weight, out=out).add_(projection.bias)


def add_projected(residual: Tensor, projection: nn.Module, x: Tensor) -> Tensor:
    """residual + projection(x), [B, out]; may be written over the residual."""
    if not isinstance(projection, Conv1D):
        return residual.add_(projection(x))
    if onednn.takes(x):
        return onednn.linear_plus(x, projection.operand, projection.bias, residual)
    return residual.add_(projection.bias).addmm_(x, projection.weight)


def activated_projection(act: Activation, projection: nn.Module, x: Tensor, out: Tensor | None) -> Tensor:
    """act(projection(x)), [B, in] -> [B, out], written to `out` where there is one."""
    if isinstance(projection, Conv1D) and act is _tanh_gelu and onednn.takes(x):
        return onednn.linear_tanh_gelu(x, projection.operand, projection.bias)
    if out is None or not isinstance(projection, Conv1D) or act is not _tanh_gelu or x.dtype != torch.float32:
        return act(project(projection, x, out))
    return _biased_tanh_gelu_(torch.mm(x, projection.weight, out=out), projection.bias)


def _biased_tanh_gelu_(x: Tensor, bias: Tensor) -> Tensor:
    """The tanh formula of x + bias over x, [B, I], a few rows at a time, so that all passes but the first find them in
    the cache.

    0.5 * x * (1 + tanh(u)) is x * sigmoid(2 * u), with u = sqrt(2 / pi) * (x + 0.044715 * x^3) (Hendrycks and Gimpel,
    2016, section 2).
    """
    rows = max(1, 2**17 // x.shape[-1])
    slope = 2 * math.sqrt(2 / math.pi)
    gate = torch.empty_like(x[:rows])
    for part in torch.split(x, rows):
        part.add_(bias)
        part_gate = gate[: part.shape[0]]
        torch.addcmul(x.new_tensor(slope), part, part, value=0.044715 * slope, out=part_gate)
        part.mul_(part_gate.mul_(part).sigmoid_())
    return x
