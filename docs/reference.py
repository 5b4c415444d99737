"""Writes docs/options.md from the models of a job, where each option and its default stand.

python docs/reference.py > docs/options.md
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.job import Job, StepOptions

HEAD = """# Options of a job

Written by `python docs/reference.py > docs/options.md`; a test holds the two together.
Every option can be given in the job file or on the command line: `pipeline run JOB score.stride=256`.

| option | values | default | |
|---|---|---|---|"""


def reference() -> str:
    """The page."""
    return "\n".join([HEAD, *_rows(Job, ""), *_step_rows()]) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A line for each option, those that the class names itself before those that it inherits."""
    own = [name for name in model.model_fields if name in model.__annotations__]
    for name in [*own, *(name for name in model.model_fields if name not in own)]:
        field = model.model_fields[name]
        inner = _model(field.annotation)
        about = " ".join((field.description or "").split())
        if inner is StepOptions:
            yield f"| `{name}` | text to step | {_default(field)} | {about} |"
        elif inner is not None:
            yield from _rows(inner, f"{prefix}{name}.")
        else:
            yield f"| `{prefix}{name}` | {_values(field.annotation)} | {_default(field)} | {about} |"


def _step_rows() -> Iterator[str]:
    """What a step has beside the sections of the tasks, which are as in a job."""
    for name in StepOptions.__annotations__:
        field = StepOptions.model_fields[name]
        about = " ".join((field.description or "").split())
        values = "as `model`" if name == "model" else _values(field.annotation)
        yield f"| `steps.NAME.{name}` | {values} | {_default(field)} | {about} |"
    yield "| `steps.NAME.TASK` | as the section of that task | | Options of the step's task. |"


def _model(annotation: Any) -> type[BaseModel] | None:
    choices = typing.get_args(annotation) if typing.get_origin(annotation) in (*_UNIONS, dict) else (annotation,)
    return next((each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)), None)


_UNIONS = (typing.Union, types.UnionType)


def _values(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is typing.Annotated:
        return _values(arguments[0])
    if origin in _UNIONS:
        return " or ".join(_values(each) for each in arguments if each is not type(None))
    if origin in (list, dict):
        return f"{origin.__name__} of {' to '.join(_values(each) for each in arguments)}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}[annotation.__name__]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "null" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(reference(), end="")
