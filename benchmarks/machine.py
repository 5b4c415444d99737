"""What a figure is worth without: hardware, versions, and the matrix-product rate of the same minute."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from gpt2model import onednn

SIZE = 2048


def describe(packages: Sequence[str]) -> dict[str, str]:
    """Processor, threads and versions."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else (names or [platform.processor()])[0]
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class MatrixRate:
    """Floating-point operations a second of a float32 product of two 2048 x 2048 matrices."""

    torch_mm: float
    fastest: float
    """By torch.mm, or by oneDNN where the model takes it."""

    def __add__(self, other: MatrixRate) -> MatrixRate:
        return MatrixRate(self.torch_mm + other.torch_mm, self.fastest + other.fastest)


def matrix_rate() -> MatrixRate:
    """The rate of this moment; a shared machine's moves by a tenth and more."""
    one, other = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    torch_mm = _rate(lambda: torch.mm(one, other))
    return MatrixRate(torch_mm, _rate(lambda: onednn.linear(one, other)) if onednn.takes(one) else torch_mm)


def _rate(product: Callable[[], object]) -> float:
    return 2 * SIZE**3 / statistics.median(seconds(product) for _ in range(11))


def beside_the_rate(call: Callable[[], object]) -> tuple[float, MatrixRate]:
    """Seconds of a call, and the matrix-product rate just before and after it."""
    before = matrix_rate()
    took = seconds(call)
    both = before + matrix_rate()
    return took, MatrixRate(both.torch_mm / 2, both.fastest / 2)


def median(values: Iterable[float]) -> float:
    """The median of what may be read once only."""
    return statistics.median(list(values))


def print_table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Rows of equal keys, aligned."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    print(f"\n{title}")
    print("  ".join(name.ljust(widths[name]) for name in names))
    for row in rows:
        print("  ".join(row[name].ljust(widths[name]) for name in names))
