"""Everything that can be known to be wrong before anything starts: model, device, dtype, input, columns, output.

Needs no Ray and loads no weights. What it finds out is all that the workers are told.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fsspec.utils import glob_translate

import gpt2model
from gpt2model.checkpoint import CheckpointInfo, inspect_checkpoint
from gpt2model.errors import GPT2Error, WeightsMismatch
from pipeline.cores import available_cpus
from pipeline.errors import JobError, OutputRefused
from pipeline.growth import Growth, look
from pipeline.job import Job, Step
from pipeline.locations import Location, locate
from pipeline.memory import memory_in_all
from pipeline.messages import WorkerSpec
from pipeline.plan import Plan, PlannedStep, make_plan
from pipeline.sources import open_source
from pipeline.sources.parquet import is_glob
from pipeline.steps import StepSpec
from pipeline.store import Store
from pipeline.tasks import Task, architecture_of, make_task
from pipeline.weights import Weights, weights_of

OTHER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CPU_THREADS = 4
KNOCK_SECONDS = 5
PROBE = "import torch; x = torch.ones(64, 64, dtype=torch.{dtype}); torch.mm(x, x).sum().item()"


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step that can be done."""

    step: Step
    task: Task
    checkpoint: CheckpointInfo
    architecture: str
    """Name of the gpt2model class to load the checkpoint as."""
    dtype: str
    eos_token_id: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that can run."""

    job: Job
    plan: Plan
    spec: WorkerSpec
    steps: tuple[PreparedStep, ...]
    weights: Weights
    """Of one worker, which holds the models of all steps."""
    num_gpus: float
    growth: Growth | None = None
    """Of an incremental run, what has come since the last round."""

    @property
    def store(self) -> Store:
        return self.spec.store

    def as_recorded(self) -> Prepared:
        """Without what has come since the last round; all of it where the input does not grow."""
        return self if self.growth is None else replace(self, plan=self.growth.before(self.plan))


def prepare(job: Job, to_run: bool = True) -> Prepared:
    """Check the whole job. Raises JobError naming key, value and remedy; writes nothing.

    Not `to_run`: cluster, device and a folder that can be written are not asked for.
    """
    if to_run:
        _check_address(job)
    num_gpus, device = _device(job, to_run)
    steps = tuple(_step(job, step, device) for step in job.all_steps)
    store = Store(locate(job.output.path, "output.path"))
    growth = look(job, store, refuse=to_run) if job.output.mode == "incremental" else None
    source = growth.source if growth else open_source(job.input)
    plan = make_plan(job, source, [PlannedStep(each.step, each.task, _model_identity(each)) for each in steps])
    _refuse_output_in_input(job, store.folder)
    _refuse_linked_records(store)
    if to_run:
        store.check_writable()
    spec = WorkerSpec(
        job=job,
        fingerprint=plan.fingerprint,
        schema=plan.schema,
        read_columns=plan.input_columns,
        source=source,
        store=store,
        device=device,
        threads=_threads(job, device),
        steps=tuple(_told(each, columns) for each, columns in zip(steps, plan.task_columns, strict=True)),
    )
    weights = weights_of(zip(spec.steps, (each.checkpoint for each in steps), strict=True))
    if to_run and not named_cluster(job):
        _refuse_too_large(weights, device, num_gpus)
    return Prepared(job, plan, spec, steps, weights, num_gpus, growth)


def _refuse_too_large(weights: Weights, device: str, gpus: float) -> None:
    there = memory_in_all(device, gpus)
    if there is not None and weights.bytes_in_memory > there:
        raise JobError(
            f"a worker would hold {weights.bytes_in_memory / 2**30:,.2f} GiB of weights, and {device} has "
            f"{there / 2**30:,.2f} GiB for it: hold them in 4 bits (model.quantization=nf4), or do several steps "
            "in jobs of their own"
        )


def _step(job: Job, step: Step, device: str) -> PreparedStep:
    dtype = _dtype(job, step, device)
    architecture, checkpoint, tokenizer = _checkpoint(step, dtype)
    eos = _eos_token_id(step, Path(checkpoint.folder))
    task = make_task(step, tokenizer, checkpoint.config, eos)
    return PreparedStep(step, task, checkpoint, architecture, dtype, eos)


def _told(prepared: PreparedStep, columns: Mapping[str, str]) -> StepSpec:
    """What a worker is told of a step."""
    checkpoint = prepared.checkpoint
    local = checkpoint.revision is None
    return StepSpec(
        step=prepared.step,
        columns=columns,
        model=str(checkpoint.folder.absolute()) if local else prepared.step.model.path,
        revision=checkpoint.revision,
        architecture=prepared.architecture,
        dtype=prepared.dtype,
        eos_token_id=prepared.eos_token_id,
    )


def _check_address(job: Job) -> None:
    """Ray tries for minutes to reach an address that nobody answers at, so knock first."""
    address = job.cluster.address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise JobError(
            f"cluster.address {address}: nobody answers there ({error}): give the address of a running Ray head, "
            "or none for a Ray on this machine (unset RAY_ADDRESS as well)"
        ) from error


def _refuse_output_in_input(job: Job, output: Location) -> None:
    """Parts written into the folder that is read would be input of the next run."""
    names = job.input.parquet or []
    for name in [names] if isinstance(names, str) else names:
        folder = locate(name, "input.parquet")
        if folder.scheme == output.scheme and _reaches(name, folder, output):
            raise JobError(
                f"output.path {output.uri} lies inside input.parquet {folder.uri}, so that its parts would be read as "
                "input: give a folder outside"
            )


def _reaches(name: str, folder: Location, output: Location) -> bool:
    """Whether parts in `output` would be found in `folder`, or by the pattern that it is."""
    part = f"{_resolved(output)}/part-00000-0123456789.parquet"
    if is_glob(name):
        return re.fullmatch(glob_translate(folder.path), part) is not None
    return part.startswith(f"{_resolved(folder)}/")


def _resolved(place: Location) -> str:
    """The path without links and dots that lead elsewhere."""
    return os.path.realpath(place.path) if place.local else place.path


def _refuse_linked_records(store: Store) -> None:
    """What a link in the output folder points at would be written to, and of staging emptied."""
    for place in (store.records, store.records.child("staging")):
        if place.local and os.path.islink(place.path):
            raise OutputRefused(
                f"output.path {store.folder.uri}: {place.path} is a link to {os.path.realpath(place.path)}, and a run "
                "writes in its own folder alone: remove the link, or give a new output.path"
            )


def _device(job: Job, to_run: bool) -> tuple[float, str]:
    asked, gpus = _asked_device(job), job.cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else 0.0
    device = asked if asked != "auto" else ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise JobError(
            "model.device is cuda and cluster.gpus_per_worker is 0, so no worker would have a GPU: "
            "give cluster.gpus_per_worker=1, or model.device=cpu"
        )
    if to_run and device == "cuda" and not named_cluster(job) and not torch.cuda.is_available():
        raise JobError(
            "model.device: this machine has no CUDA device and no cluster is named: "
            "give model.device=cpu, or cluster.address for a cluster that has one"
        )
    return gpus, device


def _asked_device(job: Job) -> str:
    """Of all steps: a worker, which does them all, has one device."""
    asked = {step.model.device: step for step in job.all_steps}
    if len(asked) > 1:
        (one, first), (other, second) = list(asked.items())[:2]
        raise JobError(
            f"{second.model_key}.device is {other}, and {first.model_key}.device {one}: a worker does all steps on one "
            "device, so give all of them the same"
        )
    return next(iter(asked))


def named_cluster(job: Job) -> bool:
    """Whether the workers run elsewhere than on a Ray that this command starts."""
    return bool(job.cluster.address or os.environ.get("RAY_ADDRESS"))


def _dtype(job: Job, step: Step, device: str) -> str:
    """The dtype that `auto` stands for, and a check that this CPU computes it.

    Some processors advertise bfloat16 instructions and kill the process that uses them, so a child process tries first.
    """
    dtype = step.model.dtype
    if dtype == "auto":
        return "float32" if device == "cpu" else "float16"
    if device == "cpu" and dtype != "float32" and not named_cluster(job):
        done = subprocess.run([sys.executable, "-c", PROBE.format(dtype=dtype)], capture_output=True, check=False)
        if done.returncode != 0:
            raise JobError(
                f"{step.model_key}.dtype {dtype} kills or fails the process on this CPU (exit code {done.returncode}): "
                f"give {step.model_key}.dtype=float32"
            )
    return dtype


def _threads(job: Job, device: str) -> int:
    if job.cluster.cpus_per_worker is not None:
        return job.cluster.cpus_per_worker
    return 1 if device == "cuda" else min(CPU_THREADS, available_cpus())


def _checkpoint(step: Step, dtype: str) -> tuple[str, CheckpointInfo, gpt2model.GPT2Tokenizer]:
    """The class to load the checkpoint as, what it is, and its tokenizer."""
    path, revision, key = step.model.path, step.model.revision, f"{step.model_key}.path"
    try:
        config = gpt2model.GPT2Config.from_pretrained(path, revision=revision)
        architecture = architecture_of(step, config)
        checkpoint = inspect_checkpoint(
            path,
            model_class=getattr(gpt2model, architecture),
            revision=revision,
            dtype=dtype,
            quantization=step.model.quantization_method,
        )
        tokenizer = gpt2model.GPT2Tokenizer.from_pretrained(
            path if checkpoint.revision else checkpoint.folder, revision=checkpoint.revision
        )
    except WeightsMismatch as error:
        if " missing (" not in str(error):
            raise JobError(f"{key} {path}: {error}") from error
        saved = f" (config.json says {', '.join(config.architectures)})" if config.architectures else ""
        raise JobError(
            f"{key} {path}: task {step.task} needs a checkpoint of {architecture}{saved}: "
            f"name one that was trained for it. {error} (in Python; a job takes trained heads only)"
        ) from error
    except GPT2Error as error:
        raise JobError(f"{key} {path}{f' at {revision}' if revision else ''}: {error}") from error
    if len(tokenizer) > checkpoint.config.vocab_size:
        raise JobError(
            f"{key} {path}: its tokenizer has {len(tokenizer)} tokens and the model knows "
            f"{checkpoint.config.vocab_size}: the two are not of one checkpoint"
        )
    return architecture, checkpoint, tokenizer


def _eos_token_id(step: Step, folder: Path) -> tuple[int, ...] | None:
    """What generation_config.json says of the end of a text; of a job's rows nothing else in it counts."""
    file = folder / "generation_config.json"
    if step.task != "generate" or not file.is_file():
        return None
    try:
        said = json.loads(file.read_text(encoding="utf-8"))["eos_token_id"]
        return tuple(int(each) for each in (said if isinstance(said, list) else [said]) if int(each) >= 0) or None
    except KeyError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise JobError(
            f"{step.model_key}.path {step.model.path}: {file.name}: its eos_token_id can't be read ({error}): "
            "give a token id there, or a list of them"
        ) from error


def _model_identity(prepared: PreparedStep) -> dict[str, Any]:
    checkpoint = prepared.checkpoint
    files = {file.name: file.sha256 for file in checkpoint.files}
    for name in OTHER_FILES:
        file = Path(checkpoint.folder) / name
        if file.is_file():
            files[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return {
        "architecture": prepared.architecture,
        "revision": checkpoint.revision,
        "files": files,
        "dtype": prepared.dtype,
        "quantization": None if checkpoint.quantization is None else checkpoint.quantization.to_dict(),
    }
