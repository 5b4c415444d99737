"""From a job file and command-line overrides to a validated `Job`.

Composition is Hydra's Compose API over `conf/`; validation is pydantic's. What is added here: overrides as users write
them (`score.stride=256`, without Hydra's `+`), and errors that say where the key stands and which valid key is nearest.
"""

from __future__ import annotations

import difflib
import types
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline.errors import JobError
from pipeline.job import Job

Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """One `key=value` of the command line, and what Hydra is given for it."""

    text: str
    key: str
    hydra: str


def load_job(job_file: Path, overrides: Sequence[str] = (), conf: Path | None = None) -> Job:
    """Compose `job_file` with `overrides` and validate it.

    `conf` holds the config groups; when None it is looked for beside the job file's folder, then in the working
    directory. Raises JobError, naming key, value, place and remedy.
    """
    if not job_file.is_file():
        raise JobError(f"{job_file}: there is no such job file; give the path of a .yaml file, such as jobs/score.yaml")
    if job_file.suffix not in {".yaml", ".yml"}:
        raise JobError(f"{job_file}: a job file is YAML and its name ends in .yaml")
    conf = _conf_folder(job_file, conf)
    text = _read_yaml(job_file)
    parsed = [_override(each, conf, text) for each in overrides]
    mapping = _compose(job_file, parsed, conf)
    try:
        return Job.model_validate(mapping)
    except ValidationError as error:
        raise JobError(_explain(error, mapping, job_file, parsed, conf)) from error


def _conf_folder(job_file: Path, conf: Path | None) -> Path | None:
    if conf is not None:
        if not conf.is_dir():
            raise JobError(f"--conf {conf}: there is no such folder")
        return conf.resolve()
    for folder in (job_file.resolve().parent.parent / "conf", Path.cwd() / "conf"):
        if folder.is_dir():
            return folder
    return None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise JobError(f"{file}: a job file is a mapping of options, and this one holds {type(content).__name__}")
    return content


def _override(text: str, conf: Path | None, job: Mapping[str, Any]) -> Override:
    """Turn what the user wrote into Hydra's grammar: groups stay, a deletion stays, every other key is set."""
    key, equals, value = text.partition("=")
    bare = key.lstrip("+~")
    if not bare or (not equals and not key.startswith("~")):
        raise JobError(f"override {text!r}: overrides are written key=value, such as score.stride=256")
    if key != bare:
        return Override(text, bare, text)
    if conf is not None and (conf / bare).is_dir():
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


def _compose(job_file: Path, overrides: Sequence[Override], conf: Path | None) -> dict[str, Any]:
    arguments = [each.hydra for each in overrides]
    if conf is not None:
        arguments.insert(0, f"hydra.searchpath=[{_value(f'file://{conf}')}]")
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(job_file.resolve().parent), version_base=None):
            # Without `_self_` the job file comes after its groups, which is what a job means by naming an option.
            warnings.filterwarnings("ignore", "In .*: Defaults list is missing `_self_`", UserWarning)
            mapping = OmegaConf.to_container(compose(job_file.stem, arguments), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        message = " ".join(line.strip() for line in str(error).split("Config search path")[0].splitlines() if line)
        where = f" (config groups are looked for in {conf})" if conf else " (no conf/ folder was found)"
        raise JobError(f"{job_file}: {message}{where if 'find' in message else ''}") from error
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


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
        lines.append(f"{place}: {_what(each['type'], each['msg'], key, location, each.get('input'))}")
    unique = list(dict.fromkeys(lines))
    more = f"\n(and {len(unique) - 5} more)" if len(unique) > 5 else ""
    return "\n".join(unique[:5]) + more


def _what(kind: str, message: str, key: str, location: Location, value: Any) -> str:
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
    return f"{key}: {message[0].lower()}{message[1:]}, and it is {value!r}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in {typing.Union, types.UnionType, typing.Annotated}:
        for each in typing.get_args(annotation):
            yield from _models(each)


def _valid_keys(location: Location) -> list[str]:
    model: type[BaseModel] = Job
    for key in location:
        field = model.model_fields.get(str(key))
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            break
        model = inner
    return sorted(model.model_fields)


def _without_variants(location: Location, mapping: Any) -> Location:
    """pydantic names the tried variant of a union in a location (`parquet.str`): keep what the mapping holds."""
    kept: list[int | str] = []
    for key in location:
        try:
            mapping = mapping[key]
        except (KeyError, IndexError, TypeError):
            break
        kept.append(key)
    return tuple(kept)


def _place(location: Location, job_file: Path, overrides: Sequence[Override], conf: Path | None) -> str:
    """Where a key was written: the override, the line of the job file, or the line of the config group's file."""
    key = ".".join(map(str, location))
    for each in overrides:
        if key == each.key or key.startswith(f"{each.key}.") or each.key.startswith(f"{key}."):
            return f"override {each.text!r}"
    line = _line(job_file, location)
    if line is not None:
        return f"{job_file}:{line}"
    for group_file in _group_files(location, job_file, overrides, conf):
        line = _line(group_file, location[1:])
        if line is not None:
            return f"{group_file}:{line}"
    return str(job_file)


def _group_files(
    location: Location, job_file: Path, overrides: Sequence[Override], conf: Path | None
) -> Iterator[Path]:
    if conf is None or not location:
        return
    group = str(location[0])
    chosen = {
        key: value
        for each in _read_yaml(job_file).get("defaults") or []
        if isinstance(each, dict)
        for key, value in each.items()
    }
    chosen.update({each.key: each.text.partition("=")[2] for each in overrides})
    if group in chosen:
        file = conf / group / f"{chosen[group]}.yaml"
        if file.is_file():
            yield file


def _line(file: Path, location: Location) -> int | None:
    """The line on which the key at `location` stands; None where the file does not hold it."""
    node = yaml.compose(file.read_text(encoding="utf-8"))
    line: int | None = None
    for key in location:
        if not isinstance(node, yaml.MappingNode):
            return line
        for name, value in node.value:
            if name.value == str(key):
                line, node = name.start_mark.line + 1, value
                break
        else:
            return None
    return line
