"""The generate task over one checkpoint, by engines or by packs, and what its rows are to get."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from gpt2model import GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from gpt2model.generation.noise import gumbel, step_keys, stream_keys
from pipeline.batching import PackRunner, Runner
from pipeline.continuing import EngineRunner
from pipeline.tasks.generate import GenerateTask
from pipeline.tasks.generate_options import GenerateOptions
from pipeline.tasks.rows import RowResults


def save_lively(folder: Path, checkpoint: Path) -> Path:
    """A model whose texts vary and end now and then, even the likeliest; with `checkpoint`'s config and tokenizer."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(checkpoint))
    for name, parameter in model.named_parameters():
        if not name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
            torch.nn.init.normal_(parameter, std=0.1 if name.endswith("bias") else 0.5)
    with torch.no_grad():
        model.transformer.wte.weight[model.config.eos_token_id] *= 1.6
    model.save_pretrained(folder)
    GPT2Tokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


class Generating:
    """The task's three steps over one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.model = GPT2LMHeadModel.from_pretrained(folder).requires_grad_(False)
        self.tokenizer = GPT2Tokenizer.from_pretrained(folder)

    def task(self, *columns: str, **options: Any) -> GenerateTask:
        """`columns` are the inputs that the job names."""
        named = {name: name for name in columns}
        return GenerateTask(GenerateOptions(**options), named, self.tokenizer, self.model.config)

    def runner(
        self, task: GenerateTask, engines: int = 1, slots: int = 8, cache_tokens: int = 512, step: int = 256
    ) -> Runner:
        """What a worker would compute the task with."""
        if not task.by_engine:
            return PackRunner(step, engines)
        return EngineRunner([task.engine(self.model, slots, cache_tokens, step) for _ in range(engines)])

    def __call__(self, columns: dict[str, Any] | pa.Table, **options: Any) -> tuple[list[dict[str, Any]], RowResults]:
        """The result columns as one dictionary a row, and all that the task gave back."""
        rows = columns if isinstance(columns, pa.Table) else pa.table(columns)
        task = self.task(*rows.column_names, **options)
        return answered(task, self.model, rows, self.runner(task))

    def ids(self, text: str) -> list[int]:
        """A text's tokens."""
        found: list[int] = self.tokenizer.encode(text)
        return found

    def alone(self, text: str, seed: int = 0, **options: Any) -> list[list[int]]:
        """What model.generate adds to one prompt by itself, up to and with the eos token."""
        ids, end = torch.tensor([self.ids(text)]), self.tokenizer.eos_token_id
        config = GenerationConfig(eos_token_id=end, pad_token_id=end, **options)
        made: Any = self.model.generate(ids, config, tokenizer=self.tokenizer, seed=seed)
        new = made[:, ids.shape[1] :].tolist()
        return [each[: each.index(end) + 1] if end in each else each for each in new]

    @property
    def start(self) -> int:
        """What an empty prompt begins with."""
        assert self.tokenizer.bos_token_id is not None
        return self.tokenizer.bos_token_id

    def looped(self, ids: list[int], limit: int, noise: tuple[int, int, int] | None = None) -> list[int]:
        """Tokens by a plain loop over the model's forward: the likeliest, or drawn by (seed, row, sample)."""
        new: list[int] = []
        stream = None if noise is None else stream_keys(*(torch.tensor([each]) for each in noise))
        while len(new) < limit and len(ids) + len(new) <= self.model.config.n_positions:
            scores = self.model(torch.tensor([ids + new])).logits[:, -1]
            if stream is not None:
                scores = scores + gumbel(step_keys(stream, torch.tensor([len(new)])), torch.arange(scores.shape[1]))
            new.append(int(scores.argmax()))
            if new[-1] == self.tokenizer.eos_token_id:
                break
        return new

    def logprobs(self, ids: list[int], new: list[int]) -> list[float]:
        """Of each new token, by the model's forward over all of them."""
        scored = self.model(torch.tensor([ids + new[:-1]])).logits[0].double().log_softmax(-1)
        return [float(scored[len(ids) - 1 + place, token]) for place, token in enumerate(new)]


def answered(task: GenerateTask, model: Any, rows: pa.Table, runner: Any) -> tuple[list[dict[str, Any]], RowResults]:
    """The result columns as one dictionary a row, and all that the task gave back."""
    prepared = task.prepare(rows)
    result = task.finish(prepared, task.compute(model, prepared, runner))
    table = pa.Table.from_arrays(list(result.columns), schema=pa.schema(task.fields))
    table.validate(full=True)
    assert table.num_rows == rows.num_rows
    return table.to_pylist(), result
