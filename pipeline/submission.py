"""What is handed to a cluster: the job as it is composed, the files that travel with it, and Ray's runtime environment.

Made on this machine alone, so that what is wrong with a job is told before anything is sent.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipeline import __version__
from pipeline.compose import compose_job
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.package import pack, travelling
from pipeline.redaction import redact

JOB_FOLDER = PurePosixPath("_submitted")
STOP_SECONDS = 60
"""What a stopped run has for its parts under way, before Ray kills it; Ray's own default is three seconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is submitted, beside the job itself."""

    working_dir: Path = Path()
    exclude: Sequence[str] = ()
    """Patterns of files that stay here, beside those that always do."""
    env: Sequence[str] = ()
    """Names of environment variables that the run is given, as they are here."""
    runtime_env: Path | None = None
    """A YAML file with more of Ray's runtime environment, such as pip."""
    as_of: str | None = None
    """What the job's `${now:…}` stands for; None: the moment at which the run begins on the cluster."""
    log_format: str = "auto"
    debug: bool = False

    @property
    def options(self) -> str:
        """Of the command that runs on the cluster, for a shell."""
        as_of = f" --as-of {shlex.quote(self.as_of)}" if self.as_of else ""
        told = f" --log-format {self.log_format}" if self.log_format != "auto" else ""
        return f"{as_of}{told}{' --debug' * self.debug}"


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that can be handed over; its secrets, if it has any, are in the package and in `runtime_env` alone."""

    entrypoint: str
    runtime_env: Mapping[str, Any]
    """Without the working directory, which is the package."""
    metadata: Mapping[str, str]
    working_dir: Path
    files: Sequence[Path]
    """Those of the working directory that travel."""
    job: PurePosixPath
    """Where the job stands in the package."""
    job_text: str

    def pack(self, target: Path) -> None:
        """Write the package. Raises JobError where it is too large for Ray."""
        pack(target, self.working_dir, self.files, self.job, self.job_text)


def make_submission(job_file: Path, overrides: Sequence[str], conf: Path | None, request: Request) -> Submission:
    """Compose and check the job, and see what goes with it. Raises JobError."""
    job, composed = compose_job(job_file, overrides, conf, request.as_of)
    models = _refuse_paths_of_here(job, request.working_dir)
    composed["cluster"] = {**(composed.get("cluster") or {}), "address": "auto"}
    inside = JOB_FOLDER / job_file.name
    return Submission(
        entrypoint=f"exec python -m pipeline run {shlex.quote(str(inside))}{request.options}",
        runtime_env=_runtime_env(request),
        metadata={"job": job_file.name, "output": redact(job.output.path), "pipeline": __version__},
        working_dir=request.working_dir,
        files=list(travelling(request.working_dir, models, request.exclude)),
        job=inside,
        job_text=yaml.safe_dump(composed, sort_keys=False, allow_unicode=True),
    )


def _refuse_paths_of_here(job: Job, working_dir: Path) -> list[Path]:
    """Refuse input and output that only this machine has; the model folders, relative, that are to travel."""
    for key, path in _data_paths(job):
        if "://" not in path.removeprefix("file://") and not path.removeprefix("file://").startswith(("/", "~")):
            raise JobError(
                f"{key} {path} is relative, and rows do not travel with a job: give an absolute path that every node "
                "of the cluster sees, or a URI such as s3://bucket/rows"
            )
    models = {Path(path) for path in _model_paths(job.model_dump()) if (working_dir / path).is_dir()}
    here = sorted(model for model in models if not model.is_absolute())
    for model in here:
        if model == Path():
            raise JobError(f"model.path {model} is the working directory: keep the model in a folder of its own")
        if (working_dir / model).resolve() != working_dir.resolve() / model:
            raise JobError(
                f"model.path {model} leads out of the working directory {working_dir}, and would not travel: give an "
                "absolute path that every node of the cluster sees, an id on the Hub, or another --working-dir"
            )
    return here


def _data_paths(job: Job) -> Iterator[tuple[str, str]]:
    yield "output.path", job.output.path
    named: Any = job.input.parquet or []
    yield from (("input.parquet", path) for path in ([named] if isinstance(named, str) else named))
    dataset = job.input.dataset
    if dataset is None:
        return
    if Path(dataset.path).is_dir():
        yield "input.dataset.path", dataset.path
    if dataset.data_dir:
        yield "input.dataset.data_dir", dataset.data_dir
    files: Any = dataset.data_files or []
    for each in files.values() if isinstance(files, Mapping) else [files]:
        yield from (("input.dataset.data_files", path) for path in ([each] if isinstance(each, str) else each))


def _model_paths(content: Any) -> Iterator[str]:
    """The path of every model that the job names, wherever it stands."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == "model" and isinstance(value, Mapping) and isinstance(value.get("path"), str):
                yield value["path"]
            yield from _model_paths(value)
    elif isinstance(content, list):
        for value in content:
            yield from _model_paths(value)


def _runtime_env(request: Request) -> dict[str, Any]:
    """Ray's runtime environment of the run, but for the working directory."""
    from pipeline.cluster import own_packages

    given = _given(request.runtime_env)
    missing = [name for name in request.env if name not in os.environ]
    if missing:
        raise JobError(f"--env {missing[0]}: no such environment variable is set here: export it first")
    return {
        **given,
        "py_modules": [*own_packages(), *given.get("py_modules", [])],
        "env_vars": {
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            **given.get("env_vars", {}),
            **{name: os.environ[name] for name in request.env},
        },
    }


def _given(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise JobError(f"--runtime-env {file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise JobError(f"--runtime-env {file}: give a mapping, such as pip: [s3fs]")
    for key, option in (("working_dir", "--working-dir"), ("excludes", "--exclude")):
        if key in content:
            raise JobError(f"--runtime-env {file}: {key} is given by {option}: leave it out")
    return content
