"""Several tasks over the same rows: their models in one worker, and their results side by side.

A job with one task is a job with one step, whose name is empty; nothing is then called otherwise than the task says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.job import Step
from pipeline.tasks import Task, make_task
from pipeline.tasks.rows import RowResults

LANGUAGE_MODELS = ("GPT2LMHeadModel", "GPT2DoubleHeadsModel")
"""Their heads are tied to the backbone's embedding, so that the backbone that is shared has to be one of theirs."""


@dataclass(frozen=True, slots=True)
class StepSpec:
    """All that a worker needs to do one step, on whatever node."""

    step: Step
    columns: Mapping[str, str]
    """The task's input name -> the column that holds it."""
    model: str
    """Absolute folder, or Hub id."""
    revision: str | None
    """The resolved commit, so that every worker holds the same weights."""
    architecture: str
    """Name of the gpt2model class."""
    dtype: str
    eos_token_id: tuple[int, ...] | None = None
    """The tokens that end a text, where the checkpoint's generation_config.json names them."""

    @property
    def weights(self) -> tuple[str, str | None, str, str]:
        """What two steps have alike when one backbone serves both."""
        return self.model, self.revision, self.dtype, self.step.model.quantization


@dataclass(frozen=True, slots=True)
class Loaded:
    """A step in a worker that can do it."""

    name: str
    task: Task
    model: Any


def load_steps(specs: Sequence[StepSpec], device: str) -> list[Loaded]:
    """The steps with their tasks and models. Heads of one checkpoint have its backbone in common."""
    import gpt2model

    models = _Models(device)
    order = sorted(specs, key=lambda spec: spec.architecture not in LANGUAGE_MODELS)
    held = {spec.step.name: models.of(spec) for spec in order}
    loaded = []
    for spec in specs:
        tokenizer = gpt2model.GPT2Tokenizer.from_pretrained(spec.model, revision=spec.revision)
        model = held[spec.step.name]
        task = make_task(spec.step, tokenizer, model.config, spec.eos_token_id)
        loaded.append(Loaded(spec.step.name, task, model))
    return loaded


class _Models:
    """Loads each model once, and each backbone."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._held: dict[tuple[object, ...], Any] = {}

    def of(self, spec: StepSpec) -> Any:
        key = (spec.weights, spec.architecture)
        if key not in self._held:
            self._held[key] = self._made(spec)
        return self._held[key]

    def _made(self, spec: StepSpec) -> Any:
        import gpt2model

        standing = next((model for (weights, _), model in self._held.items() if weights == spec.weights), None)
        if standing is not None and spec.architecture == "GPT2Model":
            return standing.base_model
        model = getattr(gpt2model, spec.architecture).from_pretrained(
            spec.model,
            revision=spec.revision,
            dtype=spec.dtype,
            quantization=spec.step.model.quantization_method,
            device=self.device,
        )
        if standing is not None:
            setattr(model, model.base_model_prefix, standing.base_model)
        model.prepack()
        # Before there are threads: bitsandbytes' 8-bit layers rearrange themselves in their first call.
        model.base_model.forward_packed(gpt2model.pack([[0]]).to(model.device))
        return model


def without_rows(result: RowResults, rows: Collection[int]) -> RowResults:
    """The result without the errors of `rows`, which were left out on purpose."""
    if not rows:
        return result
    errors = {row: reason for row, reason in result.errors.items() if row not in rows}
    return RowResults(result.columns, errors, result.figures)


def failed_steps(reason: str, names: Collection[str]) -> list[str]:
    """The steps that a row's `error` tells of; all, where it tells of none: the row was set aside, or has one task."""
    told = [name for name in names if name and f"; {name}: " in f"; {reason}"]
    return told or list(names)


def told_of(reason: str, failed: Sequence[str], names: Sequence[str]) -> str:
    """The `error` of a row for which these steps, of all the `names`, have one reason in common."""
    return reason if len(failed) == len(names) else "; ".join(f"{name}: {reason}" for name in failed)


def places_of_columns(count: int, widths: Mapping[str, int]) -> dict[str, range]:
    """Where the result columns of each step stand among `count`, of which the last is the error."""
    places, start = {}, count - 1 - sum(widths.values())
    for name, width in widths.items():
        places[name] = range(start, start + width)
        start += width
    return places


def side_by_side(names: Sequence[str], results: Sequence[RowResults]) -> RowResults:
    """The results of all steps as those of one: a row's error says which step failed, and a figure whose it is."""
    if names == [""]:
        return results[0]
    errors: dict[int, list[str]] = {}
    figures: dict[str, float] = {}
    for name, result in zip(names, results, strict=True):
        for row, reason in result.errors.items():
            errors.setdefault(row, []).append(f"{name}: {reason}")
        figures |= {f"{name}.{figure}": value for figure, value in result.figures.items()}
    columns = [column for result in results for column in result.columns]
    return RowResults(columns, {row: "; ".join(reasons) for row, reasons in errors.items()}, figures)


def summarize(tasks: Mapping[str, Task], figures: Mapping[str, float]) -> dict[str, float | None]:
    """What a finished run says of the figures added up over all rows, step by step."""
    if "" in tasks:
        return tasks[""].summarize(figures)
    told: dict[str, float | None] = {}
    for name, task in tasks.items():
        own = {key.removeprefix(f"{name}."): value for key, value in figures.items() if key.startswith(f"{name}.")}
        told |= {f"{name}: {figure}": value for figure, value in task.summarize(own).items()}
    return told
