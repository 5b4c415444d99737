"""The steps of a run: which task wrote which columns. A job with one `task` is a run of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INPUTS = {
    "score": ("text", "prompt", "completion"),
    "generate": ("text",),
    "classify": ("text",),
    "ner": ("text", "tokens"),
    "qa": ("question", "context"),
    "choose": ("prompt", "choices"),
    "embed": ("text",),
}
"""What a task reads where neither job nor plan says more."""


@dataclass(frozen=True, slots=True)
class Step:
    """One task over the rows."""

    name: str
    task: str
    prefix: str
    """Before each of its result columns."""
    model: str | None
    inputs: Mapping[str, str]
    """The task's input name -> the column that holds it."""

    def column(self, name: str) -> str:
        """The output column of the result `name`."""
        return self.prefix + name


def steps_of(job: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Step]:
    """The steps that `job.yaml` names; what it leaves out, or cannot be read of it, `plan.json` tells."""
    columns = _mapping(_mapping(job, "input"), "columns")
    model = _mapping(job, "model").get("path")
    several = _mapping(job, "steps")
    before = str(_mapping(job, "output").get("prefix") or "")
    if several:
        given = {str(name): each for name, each in several.items() if isinstance(each, dict)}
        return [_step_of(name, each, columns, model, before) for name, each in given.items()]
    identity = _mapping(plan, "identity")
    task = str(job.get("task") or identity.get("task") or "unknown")
    prefix = _mapping(job, "output").get("prefix") or _mapping(identity, "output").get("prefix") or ""
    planned = _mapping(_mapping(identity, "input"), "columns")
    return [Step(task, task, str(prefix), model, planned or _inputs(task, columns))]


def _step_of(name: str, told: Mapping[str, Any], columns: Mapping[str, Any], model: str | None, before: str) -> Step:
    task = str(told.get("task", "unknown"))
    prefix = told.get("prefix")
    own = told.get("model")
    path = own.get("path") if isinstance(own, dict) else own
    named = _mapping(told, "columns") or columns
    prefix = f"{name}_" if prefix is None else str(prefix)
    return Step(name, task, before + prefix, path or model, _inputs(task, named))


def _inputs(task: str, columns: Mapping[str, Any]) -> dict[str, str]:
    names = INPUTS.get(task, ())
    if task == "generate":  # whose template may read any column
        names = tuple(dict.fromkeys([*names, *columns]))
    return {name: str(columns.get(name, name)) for name in names}


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def result_columns(step: Step, steps: Sequence[Step], names: Sequence[str], kept: Sequence[str]) -> dict[str, str]:
    """Short name -> column, of the columns among `names` that `step` wrote; `kept` ones are the input's.

    A column belongs to the step whose prefix is the longest that it begins with.
    """
    found = {}
    for name in names:
        owners = [each for each in steps if name.startswith(each.prefix)]
        if name not in kept and owners and max(owners, key=lambda each: len(each.prefix)) == step:
            found[name.removeprefix(step.prefix)] = name
    return found


def error_column(names: Sequence[str], job: Mapping[str, Any], kept: Sequence[str]) -> str | None:
    """The column that says why a row could not be processed."""
    prefix = _mapping(job, "output").get("prefix") or ""
    written = [name for name in names if name not in kept]
    return next((name for name in (f"{prefix}error", "error") if name in written), None)
