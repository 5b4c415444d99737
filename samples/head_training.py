"""Training of the sample heads: each is the sample model with a new head, tuned as a whole on labelled examples."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from training import adamw, descend, learning_rate

from gpt2model.heads import IGNORED_LABEL
from gpt2model.pretrained import GPT2PreTrainedModel

SEED = 21
PEAK_LEARNING_RATE = 1e-3
ROWS_PER_BATCH = 16
BATCHES_PER_BUCKET = 32
REPORT_EVERY = 250

Label = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and the labels by their names in `forward`: each one number, or one for each token."""

    input_ids: tuple[int, ...]
    labels: Mapping[str, Label]


def tune(model: GPT2PreTrainedModel, examples: Sequence[Example], epochs: int) -> None:
    """Trains the model, in place, on each example so many times, and leaves it in evaluation mode."""
    rng = random.Random(SEED)
    batches = [batch for _ in range(epochs) for batch in _batches(examples, rng)]
    optimizer = adamw(model)
    losses = list[float]()
    model.train()
    for step, batch in enumerate(batches):
        rate = learning_rate(step, len(batches), PEAK_LEARNING_RATE)
        losses.append(descend(model, optimizer, collate(batch), rate))
        if (step + 1) % REPORT_EVERY == 0:
            recent = sum(losses[-REPORT_EVERY:]) / REPORT_EVERY
            print(f"step {step + 1} of {len(batches)}: loss {recent:.4f}", flush=True)
    model.eval()


def collate(batch: Sequence[Example]) -> dict[str, Tensor]:
    """The arguments of `forward` for a few examples, padded on the right."""
    names = batch[0].labels
    return {
        "input_ids": _padded([example.input_ids for example in batch], 0),
        "attention_mask": _padded([(1,) * len(example.input_ids) for example in batch], 0),
        **{name: _as_tensor([example.labels[name] for example in batch]) for name in names},
    }


def _batches(examples: Sequence[Example], rng: random.Random) -> Iterator[Sequence[Example]]:
    """All examples in a random order, those of a batch of about the same length."""
    shuffled = rng.sample(examples, len(examples))
    bucket = ROWS_PER_BATCH * BATCHES_PER_BUCKET
    ordered = [
        example
        for start in range(0, len(shuffled), bucket)
        for example in sorted(shuffled[start : start + bucket], key=lambda example: len(example.input_ids))
    ]
    batches = [ordered[start : start + ROWS_PER_BATCH] for start in range(0, len(ordered), ROWS_PER_BATCH)]
    yield from rng.sample(batches, len(batches))


def _as_tensor(labels: Sequence[Label]) -> Tensor:
    rows = [label for label in labels if isinstance(label, tuple)]
    return _padded(rows, IGNORED_LABEL) if rows else torch.tensor(labels)


def _padded(rows: Sequence[tuple[int, ...]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + (value,) * (length - len(row)) for row in rows])
