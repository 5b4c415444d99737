"""All that is to be known of a GPU, in one go: parity, quantization, speed and memory, against transformers.

    python -m benchmarks.gpu [--device cuda] [--size gpt2] [--only NAME ...] [--out gpu.json]

Models have random weights of a fixed seed. Each section has a budget of seconds: cases that would begin after it are
left out, and said to be. What fails is recorded with its message, and all else goes on; where the device itself is lost
the rest is done by a new process. `--device cpu --size tiny` tries every line in a minute or two.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_generation, gpu_heads, gpu_memory, gpu_parity, gpu_quantized, gpu_scoring
from benchmarks.gpu_setting import SIZES, Case, Row, Setting
from benchmarks.machine import describe, print_table
from gpt2model import packing

PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "numpy")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the whole, and the seconds that it may take."""

    cases: Callable[[Setting], Iterator[Case]]
    budget: float


SECTIONS: Mapping[str, Section] = {
    "parity": Section(gpu_parity.cases, 45),
    "quantized": Section(gpu_quantized.cases, 60),
    "scoring": Section(gpu_scoring.cases, 90),
    "heads": Section(gpu_heads.cases, 30),
    "generation": Section(gpu_generation.cases, 200),
    "memory": Section(gpu_memory.cases, 25),
}


def measure(section: Section, setting: Setting, keep: Callable[[Sequence[Row]], None]) -> str | None:
    """Run the cases of a section, and hand on their rows; returns the message where the device is lost."""
    began = time.perf_counter()
    for case in section.cases(setting):
        if time.perf_counter() - began > section.budget:
            keep([{"case": case.name, "left out": f"the section's {section.budget:g} s were over"}])
            continue
        at = time.perf_counter()
        try:
            rows = case.run()
        except Exception as error:  # recorded with its place; what else there is to measure does not depend on it
            rows = [{"error": f"{type(error).__name__}: {error}"[:500], "at": traceback.format_exc(limit=-3)[-700:]}]
        keep([{"case": case.name, **row, "took s": time.perf_counter() - at} for row in rows])
        gc.collect()
        if setting.on_gpu and (lost := device_loss()) is not None:
            return lost
    return None


def device_loss() -> str | None:
    """Why the device takes no more work, which an illegal access is enough for; None where it does. Frees memory."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def versions() -> dict[str, str]:
    """Of the packages that matter, those that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


def machine(setting: Setting) -> dict[str, Any]:
    """Device, versions, and which attention a pack gets."""
    told: dict[str, Any] = {**describe(()), **versions(), "size": setting.size}
    told["variable-length attention"] = packing.varlen_kernel() is not None
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(setting.device)
        told["CUDA"] = torch.version.cuda
        told["memory GiB"] = round(properties.total_memory / 2**30, 1)
    return told


def show(found: Mapping[str, Any]) -> None:
    """Print the sections as tables: rows with the same figures make one."""
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    for name, rows in found.items():
        if name == "machine":
            continue
        tables: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in rows:
            shown = {key: _shown(value) for key, value in row.items() if key not in ("took s", "at")}
            tables.setdefault(tuple(shown), []).append(shown)
        for table in tables.values():
            print_table(name, table)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="gpt2", choices=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--append", action="store_true", help="Keep the other sections that the file has.")
    return parser.parse_args(given)


def main() -> None:
    """Measure, write what there is after every case, and print tables."""
    asked = arguments()
    setting = Setting(torch.device(asked.device), asked.size)
    torch.set_float32_matmul_precision("highest")
    found: dict[str, Any] = json.loads(asked.out.read_text()) if asked.append and asked.out.exists() else {}
    found["machine"] = machine(setting)
    for place, name in enumerate(asked.only):
        rows: list[Row] = []
        found[name] = rows

        def keep(new: Sequence[Row], name: str = name, rows: list[Row] = rows) -> None:
            rows.extend(new)
            asked.out.write_text(json.dumps(found, indent=2))
            for row in new:
                print(
                    f"{name}: {', '.join(f'{key} {_shown(row[key])}' for key in row if key != 'at')}", file=sys.stderr
                )

        lost = measure(SECTIONS[name], setting, keep)
        if lost is not None:
            keep([{"case": "the device", "error": lost}])
            if rest := asked.only[place + 1 :]:
                again = ["--device", asked.device, "--size", asked.size, "--out", str(asked.out), "--append", "--only"]
                sys.exit(
                    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *again, *rest], check=False).returncode
                )
    show(found)


if __name__ == "__main__":
    main()
