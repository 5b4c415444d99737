"""What quantization saves and what it costs: memory by arithmetic, the error against float32 on trained weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.machine import describe, print_table
from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from gpt2model.heads import next_token_loss
from gpt2model.quantization import METHODS, QuantizationConfig, linear_forms, weight_bytes

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
SIZES = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one method: the logits' error relative to their spread, and the mean loss, beside float32's."""

    method: str
    logits_error: float
    loss: float
    loss_difference: float
    same_top_token: float


def memory(config: GPT2Config) -> dict[str, float]:
    """MiB of a language model's weights by method; quantized, what stays in full is float16."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    found = {"float32": weight_bytes(model, {}, None)}
    model = model.to(torch.float16)
    found["float16"] = weight_bytes(model, {}, None)
    for method in METHODS:
        quantization = QuantizationConfig.from_name(method)
        found[method] = weight_bytes(model, linear_forms(model, quantization), quantization)
    return {method: number / 2**20 for method, number in found.items()}


def review_ids() -> list[Tensor]:
    """The sample reviews as token ids [1, L], those that predict a token and fit the model."""
    tokenizer = GPT2Tokenizer.from_pretrained(SAMPLES / "gpt2-tiny")
    texts = pq.read_table(SAMPLES / "reviews.parquet", columns=["text"])["text"].to_pylist()
    rows = (tokenizer.encode(text) for text in texts)
    return [torch.tensor([row]) for row in rows if 2 <= len(row) <= 512]


@torch.no_grad()
def sampled_ids(model: GPT2LMHeadModel, rows: int = 64, length: int = 128) -> list[Tensor]:
    """Token ids [1, L] drawn from a model itself, for one whose texts are not at hand."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((rows, 1), model.config.bos_token_id or 0)
    cache, last = None, ids
    for _ in range(length):
        outputs = model(last, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        last = torch.multinomial(outputs.logits[:, -1].softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, last], dim=1)
    return list(ids[:, None])


@torch.no_grad()
def costs(folder: Path, rows: Sequence[Tensor]) -> list[Cost]:
    """Each method against float32 on the same rows."""
    full = GPT2LMHeadModel.from_pretrained(folder, dtype="float32")
    expected = [full(row).logits for row in rows]
    loss = _mean_loss(expected, rows)
    found = [Cost("float32", 0.0, loss, 0.0, 1.0)]
    for method in METHODS:
        model = GPT2LMHeadModel.from_pretrained(folder, dtype="float32", quantization=method)
        logits = [model(row).logits for row in rows]
        now = _mean_loss(logits, rows)
        found.append(Cost(method, _relative_error(logits, expected), now, now - loss, _agreement(logits, expected)))
    return found


def _mean_loss(logits: Sequence[Tensor], rows: Sequence[Tensor]) -> float:
    """Nats a predicted token."""
    total = sum(float(next_token_loss(each, row)) * (row.shape[1] - 1) for each, row in zip(logits, rows, strict=True))
    return total / sum(row.shape[1] - 1 for row in rows)


def _relative_error(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of the difference over norm of the logits, after each position's mean, which changes nothing, is gone."""
    one, other = (torch.cat([row[0] for row in each]) for each in (logits, expected))
    one, other = (each - each.mean(-1, keepdim=True) for each in (one, other))
    return float((one - other).norm() / other.norm())


def _agreement(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    one, other = (torch.cat([row[0].argmax(-1) for row in each]) for each in (logits, expected))
    return float((one == other).float().mean())


@click.command()
@click.option("--sampled", type=click.Path(exists=True, path_type=Path), help="Also measure this checkpoint's folder.")
@click.option("--json", "as_json", is_flag=True)
def main(sampled: Path | None, as_json: bool) -> None:
    """Measure, and print tables or one JSON object."""
    measured = {"gpt2-tiny, sample reviews": costs(SAMPLES / "gpt2-tiny", review_ids())}
    if sampled is not None:
        rows = sampled_ids(GPT2LMHeadModel.from_pretrained(sampled, dtype="float32"))
        measured[f"{sampled.name}, texts of its own"] = costs(sampled, rows)
    result: dict[str, Any] = {
        "machine": describe(["torch", "bitsandbytes"]),
        "memory in MiB": {name: memory(config) for name, config in SIZES.items()},
        **{name: [asdict(cost) for cost in found] for name, found in measured.items()},
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    sizes = result["memory in MiB"]
    print_table("memory in MiB", [{"model": name} | {k: f"{v:,.0f}" for k, v in sizes[name].items()} for name in sizes])
    for name, found in measured.items():
        print_table(name, [_shown(cost) for cost in found])


def _shown(cost: Cost) -> dict[str, str]:
    return {
        "method": cost.method,
        "relative logits error": f"{cost.logits_error:.4f}",
        "loss (nats a token)": f"{cost.loss:.4f}",
        "against float32": f"{cost.loss_difference:+.4f}",
        "same top token": f"{cost.same_top_token:.1%}",
    }


if __name__ == "__main__":
    main()
