"""The pydantic models of a job: every option a job file may name, with its default, and nothing else.

A default lives here and nowhere else; the documentation is checked against it.
"""

from __future__ import annotations

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

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker {gpus} is above one and not whole: Ray gives fractions of one GPU only")
        return self


class Job(Options):
    """A whole job: the one description of a run."""

    task: Literal["score", "generate", "classify", "ner", "qa", "choose", "embed"]
    """What is done with every row; its options are in the section of the same name."""
    model: ModelOptions
    """Which GPT-2, and how it is held."""
    input: InputOptions
    """Where the rows come from."""
    output: OutputOptions
    """Where the rows go."""
    cluster: ClusterOptions = ClusterOptions()
    """Where the workers run."""
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
        """Rows of a part: as asked, or the task's own default."""
        return self.output.rows_per_part or (1000 if self.task == "generate" else 10_000)
