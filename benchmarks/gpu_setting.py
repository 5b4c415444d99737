"""Where and on what the GPU benchmarks run: device, models of both libraries on the same weights, clocks and rates.

Imports nothing but torch, transformers, numpy and gpt2model, so that it runs where Ray and Arrow are not installed.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import gpt2model
from benchmarks.workloads import Ids
from gpt2model import GPT2Config

Row = dict[str, Any]
"""Figures of one case, by their names."""
GIB = 2**30
PACK_TOKENS = 16_384
"""Tokens of a pack on a CUDA device, as a worker takes them by default."""
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
SPREAD = 0.05
"""Deviation of all weights: that of GPT-2's scheme, 0.02, hides mistakes and makes near ties of all tokens."""
SIZES: Mapping[str, Mapping[str, GPT2Config]] = {
    "gpt2": {
        "gpt2": GPT2Config(id2label=LABELS, pad_token_id=50_256),
        "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25, id2label=LABELS, pad_token_id=50_256),
    },
    "tiny": {
        "tiny": GPT2Config(
            vocab_size=997, n_positions=256, n_embd=64, n_layer=2, n_head=4, id2label=LABELS, pad_token_id=996,
            bos_token_id=0, eos_token_id=0,
        ),
        "tiny-xl": GPT2Config(
            vocab_size=997, n_positions=256, n_embd=128, n_layer=3, n_head=4, id2label=LABELS, pad_token_id=996,
            bos_token_id=0, eos_token_id=0,
        ),
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure: its name, and what gives its rows of figures."""

    name: str
    run: Callable[[], Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Setting:
    """The device, and which models: `gpt2` and `gpt2-xl`, or tiny ones, with which only the code is tried."""

    device: torch.device
    size: str

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Some CPUs kill whoever multiplies bfloat16."""
        return (torch.float32, torch.float16, torch.bfloat16) if self.on_gpu else (torch.float32,)

    @property
    def halves(self) -> tuple[torch.dtype, ...]:
        """The dtypes that one would run in: half precision, on a CPU float32."""
        return self.dtypes[1:] or self.dtypes

    @property
    def configs(self) -> Mapping[str, GPT2Config]:
        """The small and the large model, in this order."""
        return SIZES[self.size]

    @property
    def small(self) -> GPT2Config:
        return next(iter(self.configs.values()))

    def rows(self, count: int) -> int:
        """So many rows with the real models, a few with tiny ones."""
        return count if self.size == "gpt2" else max(6, min(count, count // 64))

    def ours(self, config: GPT2Config, dtype: torch.dtype, name: str = "GPT2LMHeadModel") -> Any:
        """Our model of that class with wide random weights, always the same."""
        with self.device:
            model = getattr(gpt2model, name)(config)
        widen(model)
        return model.to(dtype).eval()

    def theirs(self, model: Any) -> Any:
        """transformers' model of the same class, with the weights and dtype of ours."""
        config = transformers.GPT2Config(**model.config.to_dict(), attn_implementation="sdpa")
        with self.device:
            peer = getattr(transformers, type(model).__name__)(config)
        peer = peer.to(model.dtype)
        peer.load_state_dict(model.state_dict())
        return peer.eval()

    def seconds(self, call: Callable[[], object]) -> float:
        """Wall time of one call, until the device has done all of it."""
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def median_seconds(self, call: Callable[[], object], rounds: int = 3, *, warm: bool = False) -> float:
        """The median, after a call that warms up where it is not warm."""
        if not warm:
            call()
        return statistics.median(self.seconds(call) for _ in range(rounds))

    def wait(self) -> None:
        """Until the device is idle."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def memory(self) -> float | None:
        """GiB that tensors hold on the device."""
        return torch.cuda.memory_allocated(self.device) / GIB if self.on_gpu else None

    def reserved(self) -> float | None:
        """GiB that torch holds for tensors and graphs, beside what it would give back."""
        if not self.on_gpu:
            return None
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device) / GIB

    def peak_memory(self, call: Callable[[], object]) -> float | None:
        """GiB that tensors hold at most during a call, beyond what they held before it."""
        if not self.on_gpu:
            call()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / GIB

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations a second of a product of two large square matrices."""
        size, times = (8192, 8) if self.on_gpu else (512, 2)
        one, other = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(one)
        return 2 * size**3 * times / self.median_seconds(lambda: [torch.mm(one, other, out=out) for _ in range(times)])

    def copy_rate(self) -> float:
        """Bytes a second that a copy within the device's memory reads and writes."""
        size, times = (GIB, 8) if self.on_gpu else (2**24, 2)
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size * times / self.median_seconds(lambda: [target.copy_(source) for _ in range(times)])


@torch.no_grad()
def widen(model: nn.Module) -> None:
    """Draw every parameter widely, biases and layer norms too."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.normal_(std=SPREAD)
        if ".ln_" in name and name.endswith("weight"):
            parameter.add_(1.0)


def packs_of(sequences: Sequence[Ids], tokens: int = PACK_TOKENS) -> list[list[Ids]]:
    """Sequences, the longest first, in packs of at most so many tokens, or of one sequence."""
    packs: list[list[Ids]] = []
    room = 0
    for sequence in sorted(sequences, key=len, reverse=True):
        if len(sequence) > room:
            packs.append([])
            room = tokens
        packs[-1].append(sequence)
        room -= len(sequence)
    return packs


def batches_of(sequences: Sequence[Ids], size: int) -> Iterator[list[Ids]]:
    """Sequences sorted by length, so many in a batch."""
    ordered = sorted(sequences, key=len)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def padded(sequences: Sequence[Ids], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids [B, L], zeros where there is padding, and their mask."""
    longest = max(map(len, sequences))
    sides = [(longest - len(each), 0) if left else (0, longest - len(each)) for each in sequences]
    ids = np.stack([np.pad(each, side) for each, side in zip(sequences, sides, strict=True)])
    mask = np.stack([np.pad(np.ones_like(each), side) for each, side in zip(sequences, sides, strict=True)])
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def quickest(sizes: Sequence[int], seconds: Callable[[int], float]) -> tuple[int, Mapping[int, float]]:
    """The batch size of the least time, and the times; those for which memory does not suffice are left out."""
    took: dict[int, float] = {}
    for size in sizes:
        with suppress(torch.OutOfMemoryError):
            took[size] = seconds(size)
        if size not in took:
            torch.cuda.empty_cache()
    return min(took, key=lambda size: took[size]), took


def short(dtype: torch.dtype) -> str:
    """A dtype's name."""
    return str(dtype).removeprefix("torch.")
