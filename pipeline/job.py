"""The pydantic models of a job: every option a job file may name, with its default, and nothing else.

A default lives here and nowhere else; the documentation is checked against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.options import Options
from pipeline.tasks.choose import ChooseOptions
from pipeline.tasks.classify import ClassifyOptions
from pipeline.tasks.embed import EmbedOptions
from pipeline.tasks.generate_options import GenerateOptions
from pipeline.tasks.ner import NerOptions
from pipeline.tasks.qa import QaOptions
from pipeline.tasks.score import ScoreOptions

Positive = Annotated[int, Field(gt=0)]
TaskName = Literal["score", "generate", "classify", "ner", "qa", "choose", "embed"]
StepName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


class ModelOptions(Options):
    """Which GPT-2, and how it is held."""

    path: str
    """Folder, or id on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; the commit it resolves to is part of the fingerprint."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """auto: float32 on a CPU, float16 on CUDA."""
    quantization: Literal["none", "nf4", "fp4", "nf4-double", "fp4-double", "int8"] = "none"
    """Hold the linear layers in 4 or 8 bits, through bitsandbytes; none: as the checkpoint has them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where a worker holds a GPU (`cluster.gpus_per_worker`), else cpu."""

    @property
    def quantization_method(self) -> str | None:
        """The method as gpt2model takes it."""
        return None if self.quantization == "none" else self.quantization


class DatasetOptions(Options):
    """Arguments of `datasets.load_dataset`; json, csv and text loaders included."""

    path: str
    """Id on the Hub, folder, or loader: json, csv, text, parquet."""
    name: str | None = None
    """Configuration of a dataset that has several."""
    split: str = "train"
    """As in `datasets`, slices included: train[:1000]."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Files for a loader: path, glob, list, or split -> files."""
    data_dir: str | None = None
    """Folder inside the dataset."""
    streaming: bool = False
    """Read shard by shard without a copy on disk."""


class InputOptions(Options):
    """Where the rows come from: Parquet, or a Hugging Face dataset."""

    parquet: str | list[str] | None = None
    """File, folder, glob or list of them; any pyarrow or fsspec URI."""
    dataset: DatasetOptions | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    """The task's input name -> the column that holds it; a name that is left out holds itself."""
    limit: Positive | None = None
    """First rows only."""
    changed: Literal["refuse", "keep", "redo"] = "refuse"
    """Of output.mode=incremental, when a file changed after it was done: refuse to run, keep its rows as they were
    done, or remove them and do the file again."""
    vanished: Literal["refuse", "keep"] = "refuse"
    """Of output.mode=incremental, when a file is gone after it was done: refuse to run, or keep its rows."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.parquet is None) == (self.dataset is None):
            found = "neither is given" if self.parquet is None else "both are given"
            raise ValueError(f"input takes either parquet or dataset, and {found}: keep one of the two")
        return self


class OutputOptions(Options):
    """Where the rows go."""

    path: str
    """Folder or URI. It belongs to one run: the same job resumes it, another is refused."""
    mode: Literal["once", "incremental"] = "once"
    """once: the input is what it was when the run began. incremental: the same command, given again, does the files
    that have come since and appends their parts."""
    columns: list[str] | None = None
    """Input columns to keep; null keeps all."""
    rows_per_part: Positive | None = None
    """Rows that are committed, and so lost, at once. null: 10,000; of generate 1,000."""
    prefix: str = ""
    """Put before the result columns, for inputs that already have such a name."""


class WorkerCount(Options):
    """How many workers: the number follows the cluster between the two."""

    min: Positive = 1
    """Asked for even where the cluster has no room yet."""
    max: Positive | None = None
    """null: as many as the cluster has devices for."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"workers.max {self.max} is below workers.min {self.min}")
        return self


class ClusterOptions(Options):
    """Where the workers run and how work is handed to them."""

    address: str | None = None
    """Ray address; null: RAY_ADDRESS where set, else a local Ray for the time of the command."""
    workers: WorkerCount = WorkerCount()
    """How many, between min and max."""
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """May be a fraction. null: 1 where this machine has a CUDA device, else 0."""
    cpus_per_worker: Positive | None = None
    """Cores and threads of one worker, which share its model. null: up to 4 on a CPU, 1 beside a GPU."""
    memory_per_worker: Annotated[float, Field(gt=0)] | None = None
    """GiB of its node's memory that a worker reserves, so that no more go there than fit. null: none."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Ray's own resources that a worker holds: {fast: 1} goes to nodes that were started with such a one."""
    placement: Literal["default", "spread"] = "default"
    """default: Ray fills a node before the next; spread: workers go to as many nodes as there are."""
    attempts: Positive = 3
    """How often a part may take its worker down before the row is looked for that does it."""
    heartbeat: Annotated[float, Field(gt=0)] | None = 600.0
    """Seconds without anything read, computed or written after which a worker hangs and is replaced. null: never."""
    tokens_per_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Tokens in one call of the model. auto: 2,048 on a CPU, 16,384 on CUDA."""
    sequences_at_once: Positive | Literal["auto"] = "auto"
    """Of generate: rows that a worker has under way together. auto: 64 a core on a CPU, 256 on CUDA."""
    cache_tokens: Positive | Literal["auto"] = "auto"
    """Of generate: positions that a worker keeps keys and values of. auto: what those rows can need, within a quarter
    of a CPU's free memory or nine tenths of a GPU's."""
    cuda_graphs: bool = True
    """Of generate on CUDA: steps are recorded and launched whole. false: kernel by kernel, slower with small models."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker {gpus} is above one and not whole: Ray gives fractions of one GPU only")
        return self


class TaskSections(Options):
    """The options of each task, in a section of its name."""

    score: ScoreOptions = ScoreOptions()
    """Options of the score task."""
    generate: GenerateOptions = GenerateOptions()
    """Options of the generate task."""
    classify: ClassifyOptions = ClassifyOptions()
    """Options of the classify task."""
    ner: NerOptions = NerOptions()
    """Options of the ner task."""
    qa: QaOptions = QaOptions()
    """Options of the qa task."""
    choose: ChooseOptions = ChooseOptions()
    """Options of the choose task."""
    embed: EmbedOptions = EmbedOptions()
    """Options of the embed task."""


class StepOptions(TaskSections):
    """One of several tasks that a job does with every row."""

    task: TaskName
    """What this step does with every row; its options are in the section of the same name."""
    model: ModelOptions | None = None
    """Which GPT-2, and how it is held; null: the job's own `model`."""
    columns: dict[str, str] | None = None
    """The task's input name -> the column that holds it; null: as `input.columns` says."""
    prefix: str | None = None
    """Put before the step's result columns; null: the step's name and an underscore."""

    @model_validator(mode="after")
    def _own_section_only(self) -> Self:
        _refuse_idle(self, [name for name in TaskSections.model_fields if name != self.task], f"a {self.task} step")
        return self


@dataclass(frozen=True, slots=True)
class Step:
    """One task over every row, with all that a job says of it."""

    name: str
    """Empty where it is the job's only one."""
    task: TaskName
    options: Options
    """The task's own section."""
    model: ModelOptions
    model_key: str
    """The option that says which model."""
    columns: Mapping[str, str]
    """Input name -> column, as far as the job says."""
    columns_key: str
    """The option that says which columns."""
    prefix: str
    """Of the result columns."""


class Job(TaskSections):
    """A whole job: the one description of a run."""

    task: TaskName | None = None
    """What is done with every row; its options are in the section of the same name. null: see `steps`."""
    model: ModelOptions | None = None
    """Which GPT-2, and how it is held; with `steps` the one of those that name none."""
    input: InputOptions
    """Where the rows come from."""
    output: OutputOptions
    """Where the rows go."""
    cluster: ClusterOptions = ClusterOptions()
    """Where the workers run."""
    steps: dict[StepName, StepOptions] = Field(default_factory=dict)
    """Instead of `task`: several, each under a name, whose results stand side by side in one table."""

    @model_validator(mode="after")
    def _one_task_or_steps(self) -> Self:
        if not self.steps:
            for name in ("task", "model"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is missing; add it to the job file or give {name}=… on the command line")
            return self
        if self.task is not None:
            raise ValueError(f"task is {self.task} and there are steps as well: keep one of the two")
        lacking = [name for name, step in self.steps.items() if step.model is None and self.model is None]
        if lacking:
            raise ValueError(f"steps.{lacking[0]}.model is missing; give it, or a model for all steps")
        _refuse_idle(self, TaskSections.model_fields, "a job with steps")
        if self.input.columns and all(step.columns is not None for step in self.steps.values()):
            raise ValueError("input.columns does nothing where every step has its own columns: leave it out")
        return self

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The job's steps in their order; of a job with one task, that."""
        if self.task is not None and self.model is not None:
            options, columns = getattr(self, self.task), self.input.columns
            return (Step("", self.task, options, self.model, "model", columns, "input.columns", self.output.prefix),)
        return tuple(self._step(name, step) for name, step in self.steps.items())

    def _step(self, name: str, step: StepOptions) -> Step:
        model = step.model or self.model
        assert model is not None
        return Step(
            name=name,
            task=step.task,
            options=getattr(step, step.task),
            model=model,
            model_key="model" if step.model is None else f"steps.{name}.model",
            columns=self.input.columns if step.columns is None else step.columns,
            columns_key="input.columns" if step.columns is None else f"steps.{name}.columns",
            prefix=self.output.prefix + (f"{name}_" if step.prefix is None else step.prefix),
        )

    @model_validator(mode="after")
    def _growing(self) -> Self:
        given = self.input
        for key, value in (("changed", given.changed), ("vanished", given.vanished)):
            if self.output.mode == "once" and value != "refuse":
                raise ValueError(
                    f"input.{key}={value} has a meaning with output.mode=incremental alone: give both, or neither"
                )
        if self.output.mode == "incremental" and given.dataset is not None:
            raise ValueError(
                "output.mode=incremental follows Parquet files, and input is a dataset: name its Parquet files in "
                "input.parquet (hf:// reaches the Hub's), or give output.mode=once"
            )
        if self.output.mode == "incremental" and given.limit is not None:
            raise ValueError(
                f"output.mode=incremental does all that comes, and input.limit={given.limit} would not: leave it out, "
                "or try the job with output.mode=once into another output.path"
            )
        return self

    @property
    def rows_per_part(self) -> int:
        """Rows of a part: as asked, or the tasks' own default."""
        slow = any(step.task == "generate" for step in self.all_steps)
        return self.output.rows_per_part or (1000 if slow else 10_000)


def _refuse_idle(options: TaskSections, sections: Iterable[str], where: str) -> None:
    """Sections that were given and that nobody would read."""
    idle = [name for name in sections if name in options.model_fields_set and getattr(options, name).model_fields_set]
    if idle:
        raise ValueError(f"{idle[0]} does nothing in {where}: leave it out, or give it to the step whose task it is")
