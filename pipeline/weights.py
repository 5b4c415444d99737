"""What the models of all steps take of a worker's memory, backbones that serve several heads counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gpt2model
from gpt2model.checkpoint import CheckpointInfo, inspect_checkpoint

if TYPE_CHECKING:
    from pipeline.steps import StepSpec


@dataclass(frozen=True, slots=True)
class Weights:
    """Of one worker."""

    bytes_in_memory: int
    bytes_full: int
    """As they would be in float32."""
    shared: Sequence[Sequence[str]]
    """Names of the steps that have one backbone in common, group by group."""


def weights_of(steps: Iterable[tuple[StepSpec, CheckpointInfo]]) -> Weights:
    """Read from the checkpoints' headers; loads nothing."""
    alike: dict[object, list[tuple[StepSpec, CheckpointInfo]]] = {}
    for spec, checkpoint in steps:
        alike.setdefault(spec.weights, []).append((spec, checkpoint))
    sizes = [_size(held) for held in alike.values()]
    return Weights(
        bytes_in_memory=sum(size for size, _ in sizes),
        bytes_full=sum(full for _, full in sizes),
        shared=[[spec.step.name for spec, _ in held] for held in alike.values() if len(held) > 1],
    )


def _size(held: Sequence[tuple[StepSpec, CheckpointInfo]]) -> tuple[int, int]:
    """Bytes as held and in full of one backbone and all its heads."""
    kinds = {spec.architecture: checkpoint for spec, checkpoint in held}
    first = next(iter(kinds.values()))
    if len(kinds) == 1:
        return first.bytes_in_memory, first.bytes_full
    spec = held[0][0]
    backbone = inspect_checkpoint(
        first.folder,
        model_class=gpt2model.GPT2Model,
        digests=False,
        dtype=spec.dtype,
        quantization=spec.step.model.quantization_method,
    )
    heads = [each.bytes_in_memory - backbone.bytes_in_memory for each in kinds.values()]
    full = [each.bytes_full - backbone.bytes_full for each in kinds.values()]
    return backbone.bytes_in_memory + sum(heads), backbone.bytes_full + sum(full)
