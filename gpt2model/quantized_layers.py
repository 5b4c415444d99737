"""Linear layers with quantized weights. Imported when a model is quantized and not before: bitsandbytes takes seconds.

Shapes: B any leading dimensions, N out, K in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from gpt2model import onednn
from gpt2model.errors import ConfigError
from gpt2model.quantization import LinearForm, QuantizationConfig

# bitsandbytes warns of a kernel that is not installed, and of each product whose input is not float16.
_logger = logging.getLogger("bitsandbytes")
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.ERROR)

try:
    import bitsandbytes
    from bitsandbytes import functional
except ImportError as error:
    raise ConfigError(f"quantization needs bitsandbytes ({error}): pip install bitsandbytes") from error


class Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]  # bitsandbytes is untyped
    """A layer whose weight is in nf4 or fp4."""

    def __init__(self, form: LinearForm, quantization: QuantizationConfig, bias: bool) -> None:
        super().__init__(
            form.in_features,
            form.out_features,
            bias,
            quantization.bnb_4bit_compute_dtype,
            compress_statistics=quantization.bnb_4bit_use_double_quant,
            quant_type=quantization.bnb_4bit_quant_type,
        )
        # Where the CPU multiplies bfloat16, bitsandbytes 0.50 computes in it, whatever the compute dtype says, refuses
        # widths that are no multiples of 32 and 64, and repacks the weight, which then is saved wrongly.
        self.support_avx512bf16_for_cpu = False
        self._quantization = quantization

    def forward(self, x: Tensor) -> Tensor:
        if self.compute_dtype == torch.float32 and onednn.takes(x):
            weight = functional.dequantize_4bit(self.weight.data, self.weight.quant_state)
            return onednn.linear(x, weight.float(), self.bias)
        output: Tensor = super().forward(x)
        return output

    def fill(self, parts: Mapping[str, Tensor], device: torch.device) -> None:
        """Take the weight on a device: one in full [N, K], which is quantized, or the parts of a file."""
        self.weight = self._quantized(parts["weight"], device) if len(parts) == 1 else self._packed(parts, device)

    def _quantized(self, weight: Tensor, device: torch.device) -> Any:
        return bitsandbytes.nn.Params4bit(
            weight,
            requires_grad=False,
            compress_statistics=self._quantization.bnb_4bit_use_double_quant,
            quant_type=self._quantization.bnb_4bit_quant_type,
            module=self,
        ).to(device)

    def _packed(self, parts: Mapping[str, Tensor], device: torch.device) -> Any:
        return bitsandbytes.nn.Params4bit.from_prequantized(
            parts["weight"].view(torch.uint8).view(-1, 1),
            {part.removeprefix("weight."): tensor for part, tensor in parts.items() if part != "weight"},
            device=device,
            module=self,
        )


class Linear8bitLt(bitsandbytes.nn.Linear8bitLt):  # type: ignore[misc]  # bitsandbytes is untyped
    """A layer of LLM.int8() (Dettmers et al., 2022)."""

    def __init__(self, form: LinearForm, quantization: QuantizationConfig, bias: bool) -> None:
        super().__init__(
            form.in_features,
            form.out_features,
            bias,
            has_fp16_weights=False,
            threshold=quantization.llm_int8_threshold,
        )

    def fill(self, parts: Mapping[str, Tensor], device: torch.device) -> None:
        """Take the weight on a device: one in full [N, K], which is quantized, or the parts of a file."""
        self.weight = bitsandbytes.nn.Int8Params(
            parts["weight"], requires_grad=False, has_fp16_weights=False, SCB=parts.get("SCB")
        ).to(device)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.numel() and not self.training and not cpu_products_are_exact():
            return self._forward_in_float32(x)
        output: Tensor = super().forward(x)
        return output

    def _forward_in_float32(self, x: Tensor) -> Tensor:
        """What bitsandbytes computes, [B, K] -> [B, N], with the products of 8-bit numbers in float32."""
        if self.weight.CB is not None:
            self.init_8bit_state()
        state, rows = self.state, x.flatten(0, -2)
        quantized, scales, outliers = functional.int8_vectorwise_quant(rows.half(), threshold=state.threshold)
        product = _product(quantized.float(), state.CB.float())
        output = (product * torch.outer(scales, state.SCB) / 127**2).to(x.dtype)
        if self.bias is not None:
            output += self.bias
        if outliers is not None and outliers.numel():
            columns = functional.int8_vectorwise_dequant(state.CB[:, outliers], state.SCB).to(x.dtype)
            output = output.addmm(rows[:, outliers], columns.T)
        full: Tensor = output.view(*x.shape[:-1], -1)
        return full

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Linear8bitLt:
        # After a first forward the scales are where moving a model does not find them.
        scales = self.weight.SCB if self.state.SCB is None else self.state.SCB
        super()._apply(fn, recurse)
        if scales is not None:
            self.weight.CB, self.weight.SCB = self.weight.data, scales.to(self.weight.device)
            self.state.CB = self.state.SCB = None
        return self


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, K] times weight [N, K] transposed: [B, N]."""
    return onednn.linear(x, weight) if onednn.takes(x) else x @ weight.T


QuantizedLinear = Linear4bit | Linear8bitLt


def replace_layers(
    model: nn.Module, forms: Mapping[str, LinearForm], quantization: QuantizationConfig
) -> dict[str, QuantizedLinear]:
    """Put quantized layers without storage in the place of a model's own; they are to be filled."""
    layer_class = Linear8bitLt if quantization.load_in_8bit else Linear4bit
    layers: dict[str, QuantizedLinear] = {}
    for name, form in forms.items():
        had = model.get_submodule(name)
        with torch.device("meta"):
            layers[name] = layer_class(form, quantization, had.bias is not None)
        model.set_submodule(name, layers[name])
    return layers


@cache
def cpu_products_are_exact() -> bool:
    """Whether the CPU's products of 8-bit numbers are right.

    oneDNN adds pairs of them in 16 bits where it has no VNNI instructions, or is kept from them by
    ONEDNN_MAX_CPU_ISA=AVX512_CORE, and large ones are cut off.
    """
    largest = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((functional.int8_linear_matmul(largest, largest) == 127 * 127 * 64).all())
