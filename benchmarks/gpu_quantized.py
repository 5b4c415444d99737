"""Quantized models on a device, against transformers with bitsandbytes, and the memory that they take there."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import transformers

from benchmarks.gpu_parity import compared, draw, real
from benchmarks.gpu_setting import GIB, Case, Row, Setting, short
from gpt2model import GPT2Config, GPT2LMHeadModel, QuantizationConfig
from gpt2model.checkpoint import inspect_checkpoint
from gpt2model.quantization import METHODS


def cases(setting: Setting) -> Iterator[Case]:
    """Each method with the small model, then the memory of the large one."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield Case("all", lambda: [{"left out": "bitsandbytes is not installed"}])
        return
    for place, dtype in enumerate(setting.halves):
        for method in METHODS:
            yield Case(f"{method}, {short(dtype)}", partial(logits, setting, method, dtype))
        for size, config in setting.configs.items():
            if place == 0:
                yield Case(f"memory of {size}", partial(memory, setting, config, dtype))


@torch.inference_mode()
def logits(setting: Setting, method: str, dtype: torch.dtype) -> list[Row]:
    """Ours against theirs, both quantized from one checkpoint, and both against the full model."""
    sequences = draw(setting.small, most=256)
    with tempfile.TemporaryDirectory() as folder:
        full = setting.ours(setting.small, dtype)
        full.save_pretrained(folder)
        exact = real(full.float(), sequences, setting, False)
        model = GPT2LMHeadModel.from_pretrained(folder, device=setting.device, dtype=dtype, quantization=method)
        peer = quantized_peer(setting, folder, method, dtype)
        wanted = real(peer, sequences, setting, False)
    found = real(model, sequences, setting, False)
    return [compared(found, wanted, exact)]


def quantized_peer(setting: Setting, folder: str, method: str, dtype: torch.dtype) -> Any:
    """transformers' model, quantized by bitsandbytes; raises ImportError where accelerate is not installed."""
    import bitsandbytes

    options = QuantizationConfig.from_name(method).on(setting.device, dtype).to_dict()
    options.pop("quant_method")
    peer = transformers.GPT2LMHeadModel.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": setting.device},
        quantization_config=transformers.BitsAndBytesConfig(**options),
    )
    for module in peer.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # Where a CPU multiplies bfloat16, bitsandbytes computes in it, whatever it was told.
            module.support_avx512bf16_for_cpu = False
    return peer.eval()


@torch.inference_mode()
def memory(setting: Setting, config: GPT2Config, dtype: torch.dtype) -> list[Row]:
    """What the weights take on the device, in full and quantized, beside what the plan says; and the logits."""
    sequences = draw(config, most=256)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        setting.ours(config, dtype).save_pretrained(folder)
        exact = None
        for method in (None, "nf4", "nf4-double", "int8"):
            before = setting.memory() or 0.0
            model = GPT2LMHeadModel.from_pretrained(folder, device=setting.device, dtype=dtype, quantization=method)
            after = setting.memory()
            plan = inspect_checkpoint(
                folder, model_class=GPT2LMHeadModel, digests=False, dtype=dtype, quantization=method
            )
            found = real(model, sequences, setting, False)
            exact = found if exact is None else exact
            rows.append(
                {
                    "weights": method or short(dtype),
                    "planned GiB": plan.bytes_in_memory / GIB,
                    "allocated GiB": None if after is None else after - before,
                    "after a pass GiB": None
                    if after is None
                    else (setting.memory() or 0.0) - before - found.nbytes / GIB,
                    "logits apart": float((found - exact).norm() / exact.norm()),
                    "same argmax": float((found.argmax(-1) == exact.argmax(-1)).float().mean()),
                }
            )
            del model, found
    return rows
