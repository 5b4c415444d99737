"""From a job file and command-line overrides to a validated `Job`.

Composition is Hydra's Compose API over `conf/`; validation is pydantic's. What is added here: overrides as users write
them (`score.stride=256`, without Hydra's `+`), and errors that say where the key stands and which valid key is nearest.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import BaseModel, ValidationError

from pipeline.dates import moment
from pipeline.errors import JobError
from pipeline.interpolation import Unresolved, mapping_of, now_is, resolved
from pipeline.job import Job
from pipeline.job_yaml import Place, line_of, read_yaml
from pipeline.redaction import redact_all

SHOWN_LETTERS = 200
LARGEST = 10**8
"""Characters that a job may have grown to, at the worst, when its interpolations are resolved."""


@dataclass(frozen=True, slots=True)
class Override:
    """One `key=value` of the command line, and what Hydra is given for it."""

    text: str
    key: str
    hydra: str


def load_job(job_file: Path, overrides: Sequence[str] = (), conf: Path | None = None, as_of: str | None = None) -> Job:
    """Compose `job_file` with `overrides` and validate it.

    `conf` holds the config groups; when None it is looked for beside the job file's folder, then in the working
    directory. `as_of` is the date, or date and time, that `${now:…}` stands for; None: the present. Raises JobError,
    naming key, value, place and remedy.
    """
    return compose_job(job_file, overrides, conf, as_of)[0]


def compose_job(
    job_file: Path, overrides: Sequence[str] = (), conf: Path | None = None, as_of: str | None = None
) -> tuple[Job, dict[str, Any]]:
    """As `load_job`; also gives the job as it was composed: whole without groups, its interpolations unresolved."""
    now = moment(as_of)
    if not job_file.is_file():
        raise JobError(f"{job_file}: there is no such job file; give the path of a .yaml file, such as jobs/score.yaml")
    if job_file.suffix not in {".yaml", ".yml"}:
        raise JobError(f"{job_file}: a job file is YAML and its name ends in .yaml")
    conf = _conf_folder(job_file, conf)
    text = _read_job(job_file)
    parsed = [_override(each, conf, text) for each in overrides]
    written, mapping = _compose(job_file, parsed, conf, now)
    for each in (written, mapping):
        _order_steps(each, text)
    try:
        return Job.model_validate(mapping), written
    except ValidationError as error:
        raise JobError(_explain(error, written, job_file, parsed, conf)) from error


def _conf_folder(job_file: Path, conf: Path | None) -> Path | None:
    if conf is not None:
        if not conf.is_dir():
            raise JobError(f"--conf {conf}: there is no such folder")
        return conf.resolve()
    for folder in (job_file.resolve().parent.parent / "conf", Path.cwd() / "conf"):
        if folder.is_dir():
            return folder
    return None


def _read_job(file: Path) -> dict[str, Any]:
    job = read_yaml(file)
    groups = job.get("defaults")
    if groups is not None and not (isinstance(groups, list) and all(isinstance(each, str | dict) for each in groups)):
        raise JobError(f"{file}:{line_of(file, ('defaults',))}: defaults is a list of groups, such as - model: gpt2")
    if "hydra" in job or any("hydra/" in str(each) for each in groups or []):
        raise JobError(f"{file}: hydra's own settings are no part of a job: leave them out")
    return job


def _override(text: str, conf: Path | None, job: Mapping[str, Any]) -> Override:
    """Turn what the user wrote into Hydra's grammar: groups stay, a deletion stays, every other key is set."""
    key, equals, value = text.partition("=")
    bare = key.lstrip("+~")
    if not bare or (not equals and not key.startswith("~")):
        raise JobError(f"override {text!r}: overrides are written key=value, such as score.stride=256")
    if re.match(r"hydra\b", bare):
        raise JobError(f"override {text!r}: hydra's own settings are no part of a job: leave it out")
    if key != bare:
        return Override(text, bare, text)
    if conf is not None and (conf / bare.partition("@")[0]).is_dir():
        named = any(isinstance(each, dict) and bare in each for each in job.get("defaults") or [])
        return Override(text, bare, text if named else f"+{text}")
    if value == "":
        value = "null"
    return Override(text, bare, f"++{bare}={_value(value)}")


def _value(value: str) -> str:
    """A value that Hydra's grammar can't read, or would read as a sweep, is quoted: it is meant as a string."""
    try:
        parsed = OverridesParser.create().parse_override(f"++key={value}")
    except HydraException:
        parsed = None
    if parsed is not None and not parsed.is_sweep_override():
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _compose(
    job_file: Path, overrides: Sequence[Override], conf: Path | None, now: datetime
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The composed job as written, and with its interpolations resolved."""
    arguments = [each.hydra for each in overrides]
    if conf is not None:
        arguments.insert(0, f"hydra.searchpath=[{_value(f'file://{conf}')}]")
    try:
        folder = str(job_file.resolve().parent)
        with warnings.catch_warnings(), initialize_config_dir(folder, version_base=None), now_is(now):
            # Without `_self_` the job file comes after its groups, which is what a job means by naming an option.
            warnings.filterwarnings("ignore", "In .*: Defaults list is missing `_self_`", UserWarning)
            warnings.filterwarnings("ignore", ".* is deprecated", UserWarning)
            composed = compose(job_file.stem, arguments)
            written = mapping_of(composed, resolve=False)
            _refuse_growth(written, job_file)
            return written, resolved(composed, written)
    except JobError:
        raise
    except Unresolved as error:
        place = _place(error.place, job_file, overrides, conf)
        raise JobError(f"{place}: {'.'.join(map(str, error.place))}: {error}") from error
    except Exception as error:  # beside their own, Hydra and OmegaConf let through what their internals raise
        lines = [line.strip() for line in str(error).split("Config search path")[0].splitlines() if line.strip()]
        message = " ".join(lines) or f"can't be composed ({type(error).__name__})"
        where = f" (config groups are looked for in {conf})" if conf else " (no conf/ folder was found)"
        raise JobError(f"{job_file}: {message}{where if 'find' in message else ''}") from error


def _order_steps(mapping: dict[str, Any], job: Mapping[str, Any]) -> None:
    """Put the steps in the order of the job file, which its groups, composed before, would change."""
    steps, named = mapping.get("steps"), job.get("steps")
    if isinstance(steps, dict) and isinstance(named, dict):
        mapping["steps"] = {name: steps[name] for name in dict.fromkeys([*named, *steps]) if name in steps}


def _refuse_growth(written: Mapping[str, Any], job_file: Path) -> None:
    """Interpolations that double each other grow a few lines without bound: n of them to 3^(n/3) times at the worst."""
    text = str(written)
    count = text.count("${") - text.count("${oc.env:") - text.count("${now:")
    if len(text) * 3 ** (count / 3) > LARGEST:
        raise JobError(f"{job_file}: {count} interpolations of other keys are too many: write values out")


def _explain(
    error: ValidationError,
    mapping: Mapping[str, Any],
    job_file: Path,
    overrides: Sequence[Override],
    conf: Path | None,
) -> str:
    """The first things that are wrong, one line each: place, key, value, remedy."""
    lines = []
    for each in error.errors(include_url=False):
        location = each["loc"] if each["type"] == "missing" else _without_variants(each["loc"], mapping)
        key = ".".join(map(str, location))
        place = _place(location, job_file, overrides, conf)
        shown = _shown(each.get("input"), location, mapping)
        lines.append(f"{place}: {_what(each['type'], each['msg'], key, location, shown)}")
    unique = list(dict.fromkeys(lines))
    more = f"\n(and {len(unique) - 5} more)" if len(unique) > 5 else ""
    return "\n".join(unique[:5]) + more


def _what(kind: str, message: str, key: str, location: Place, shown: str) -> str:
    if kind == "extra_forbidden":
        valid = _valid_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"valid keys here: {', '.join(valid)}"
        return f"there is no option {key}; {remedy}"
    if kind == "missing":
        return f"{key} is missing; add it to the job file or give {key}=… on the command line"
    message = message.removeprefix("Value error, ")
    if kind == "value_error":
        return message if not key else f"{key}: {message}"
    return f"{key}: {message[0].lower()}{message[1:]}, and it is {shown}"


def _shown(value: Any, location: Place, written: Any) -> str:
    """The value, its first letters; one that an interpolation brought as it was written, since it may be a secret."""
    try:
        for key in location:
            written = written[key]
    except (KeyError, IndexError, TypeError):  # nothing was written there
        written = None
    return _cut(repr(redact_all(written if "${" in str(written) else value)))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in {typing.Union, types.UnionType, typing.Annotated}:
        for each in typing.get_args(annotation):
            yield from _models(each)
    elif typing.get_origin(annotation) is dict:
        yield from _models(typing.get_args(annotation)[1])


def _valid_keys(location: Place) -> list[str]:
    model: type[BaseModel] = Job
    keys = iter(location)
    for key in keys:
        field = model.model_fields.get(str(key))
        inner = next(_models(field.annotation), None) if field else None
        if field is None or inner is None:
            break
        model = inner
        if typing.get_origin(field.annotation) is dict:
            next(keys, None)  # the name that the user gave
    return sorted(model.model_fields)


def _without_variants(location: Place, mapping: Any) -> Place:
    """pydantic names the tried variant of a union in a location (`parquet.str`): keep what the mapping holds."""
    kept: list[int | str] = []
    for key in location:
        try:
            mapping = mapping[key]
        except (KeyError, IndexError, TypeError):
            break
        kept.append(key)
    return tuple(kept)


def _place(location: Place, job_file: Path, overrides: Sequence[Override], conf: Path | None) -> str:
    """Where a key was written: the override, the line of the job file, or the line of the config group's file."""
    key = ".".join(map(str, location))
    for each in overrides:
        if key == each.key or key.startswith(f"{each.key}.") or each.key.startswith(f"{key}."):
            return f"override {_cut(repr(each.text))}"
    line = line_of(job_file, location)
    if line is not None:
        return f"{job_file}:{line}"
    for group_file, inside in _group_files(location, job_file, overrides, conf):
        line = line_of(group_file, inside)
        if line is not None:
            return f"{group_file}:{line}"
    return str(job_file)


def _group_files(
    location: Place, job_file: Path, overrides: Sequence[Override], conf: Path | None
) -> Iterator[tuple[Path, Place]]:
    """The config groups' files that fill the place of a key, and where in them it would stand."""
    if conf is None:
        return
    chosen = {
        key: value
        for each in read_yaml(job_file).get("defaults") or []
        if isinstance(each, dict)
        for key, value in each.items()
    }
    chosen.update({each.key: each.text.partition("=")[2] for each in overrides})
    for name, option in chosen.items():
        group, _, package = name.partition("@")
        filled = tuple((package or group).split("."))
        file = conf / group / f"{option}.yaml"
        if location[: len(filled)] == filled and file.is_file():
            yield file, location[len(filled) :]
