"""generate: what comes after each row's prompt.

Reads `text`, or the columns that `generate.template` names; and `max_new_tokens` and `seed` where `input.columns` gives
them a column. Writes generated_text (without the prompt), finish_reason (eos, stop, length), num_prompt_tokens,
num_generated_tokens, and on request generated_ids and generated_logprobs; with several samples a row, lists of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AfterValidator, Field

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks.beams import search_beams
from pipeline.tasks.prompts import start_token
from pipeline.tasks.rows import ROW, Holds, RowResults, RowTexts, read_texts
from pipeline.tasks.sequences import Ids
from pipeline.tasks.templates import Template

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from gpt2model.generation import Engine, GenerationConfig
    from pipeline.batching import PackRunner
    from pipeline.continuing import EngineRunner

LEAST_SHARED = 32
"""Tokens that prompts must begin with in common to have them computed once: below, sharing costs more than it saves."""
PER_ROW = ("max_new_tokens", "seed")
Share = Annotated[float, Field(gt=0, le=1)]


def _checked(template: str) -> str:
    Template.parse(template)
    return template


def _not_empty(strings: list[str]) -> list[str]:
    if not all(strings):
        raise ValueError(f"{strings}: an empty string would stop every row at once: leave it out")
    return strings


class GenerateOptions(Options):
    """Options of the generate task: what a job does not say is as stated here, whatever the checkpoint's defaults."""

    template: Annotated[str, AfterValidator(_checked)] | None = None
    """Prompt made of columns, as "{title}\\n\\n{text}\\nTL;DR:". null: the column `text` as it is."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    """Tokens a row gets at most; a column named by input.columns.max_new_tokens overrides it row by row."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens before which no eos is chosen."""
    do_sample: bool = False
    """Draw tokens instead of taking the likeliest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the scores: below 1 the likely become likelier."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Draw among the k likeliest tokens; 0: among all."""
    top_p: Share = 1.0
    """Draw among the likeliest tokens that hold this share of the probability."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Leave out tokens less likely than this share of the likeliest one."""
    typical_p: Share = 1.0
    """Draw among the tokens of the most typical likelihood that hold this share of the probability."""
    epsilon_cutoff: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Leave out tokens of a lower probability."""
    eta_cutoff: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Leave out tokens of a lower probability, less so where all are unlikely."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1: tokens that the row holds become less likely."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    """No run of so many tokens comes twice in a row; 0: it may."""
    suppress: list[str] = Field(default_factory=list)
    """Texts that must not be written, as their tokens."""
    num_beams: Annotated[int, Field(gt=0)] = 1
    """Above 1: beam search, batch by batch."""
    length_penalty: float = 1.0
    """Of beam search: above 0 longer texts are preferred, below 0 shorter ones."""
    early_stopping: bool | Literal["never"] = False
    """Of beam search: whether a row ends as soon as it has num_beams finished texts."""
    num_return_sequences: Annotated[int, Field(gt=0)] = 1
    """Texts a row: samples, or the best beams. Above 1 the result columns are lists."""
    stop: Annotated[list[str], AfterValidator(_not_empty)] = Field(default_factory=list)
    """A row ends where its text has one of these; the text before it is written."""
    seed: int = 0
    """Of the draws; a column named by input.columns.seed overrides it row by row."""
    logprobs: bool = False
    """Also write `generated_logprobs`: each new token's log-probability by the model itself."""
    token_ids: bool = False
    """Also write `generated_ids`."""
    overflow: Literal["truncate_left", "error"] = "truncate_left"
    """Of prompts that with max_new_tokens are longer than the context: leave out the beginning, or the row's error."""


@dataclass(frozen=True, slots=True)
class GenerateRows:
    """A group of rows in tokens; prompt i belongs to row rows[i]."""

    texts: RowTexts
    errors: Mapping[int, str]
    rows: Sequence[int]
    prompts: Sequence[Ids]
    limits: Sequence[int]
    """New tokens at most, of each prompt."""
    seeds: Sequence[int]
    places: Sequence[int]
    """The prompts' rows as their source numbers them."""
    cut: int
    """Prompts that lost their beginning."""


@dataclass(frozen=True, slots=True)
class Made:
    """One text of a row: its new tokens, why it ended, and their log-probabilities where they are kept."""

    token_ids: Ids
    finish_reason: str
    logprobs: npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class MadeRows:
    """The texts of each prompt of a group, and the rows that failed, with the reason."""

    made: Sequence[Sequence[Made]]
    failed: Mapping[int, str]


class GenerateTask:
    """The generate task over one tokenizer and one model."""

    def __init__(
        self, options: GenerateOptions, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config
    ) -> None:
        from gpt2model.errors import GPT2Error

        if options.do_sample and options.num_beams > 1:
            raise JobError(
                "generate.do_sample with generate.num_beams: a job's draws are a function of the row, which beams are "
                "not: give one of the two"
            )
        self.options = options
        self.tokenizer = tokenizer
        self.context = config.n_positions
        self._template = Template.parse(options.template) if options.template is not None else None
        fields = ("text",) if self._template is None else self._template.fields
        holds = Holds.TEXT if self._template is None else Holds.VALUE
        self.inputs: Mapping[str, Holds] = {
            **dict.fromkeys(fields, holds),
            **{name: Holds.WHOLE for name in PER_ROW if name in columns},
        }
        self._fields = tuple(dict.fromkeys(fields))
        start = start_token(tokenizer)
        self._start = np.array([] if start is None else [start], np.int64)
        self._before = self._start if tokenizer.add_bos_token else self._start[:0]
        try:
            self.generation = self._generation(config)
        except GPT2Error as error:
            raise JobError(f"generate: {error}") from error

    def _generation(self, config: GPT2Config) -> GenerationConfig:
        from gpt2model.generation import GenerationConfig

        options = self.options
        suppressed = [self.tokenizer.encode(text) for text in options.suppress]
        same = ["do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"]
        same += ["repetition_penalty", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "max_new_tokens"]
        beams = {"length_penalty": options.length_penalty, "early_stopping": options.early_stopping}
        return GenerationConfig(
            **{name: getattr(options, name) for name in same},
            **(beams if options.num_beams > 1 else {}),
            min_new_tokens=options.min_new_tokens or None,
            bad_words_ids=[ids for ids in suppressed if ids] or None,
            stop_strings=options.stop or None,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )

    @staticmethod
    def architecture(options: GenerateOptions, config: GPT2Config) -> str:
        """Any checkpoint with a language-model head."""
        return "GPT2LMHeadModel"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""
        several = self.options.num_return_sequences > 1
        kinds = {"generated_text": pa.string(), "finish_reason": pa.string()}
        fields = [pa.field(name, pa.list_(kind) if several else kind) for name, kind in kinds.items()]
        fields.append(pa.field("num_prompt_tokens", pa.int32()))
        fields.append(pa.field("num_generated_tokens", pa.list_(pa.int32()) if several else pa.int32()))
        for name, asked, kind in (
            ("generated_ids", self.options.token_ids, pa.list_(pa.int32())),
            ("generated_logprobs", self.options.logprobs, pa.list_(pa.float32())),
        ):
            if asked:
                fields.append(pa.field(name, pa.list_(kind) if several else kind))
        return tuple(fields)

    def prepare(self, rows: pa.Table) -> GenerateRows:
        """Make the prompts and tokenize them."""
        texts = read_texts(rows, self.inputs)
        errors = dict(texts.errors)
        numbered = rows.column(ROW).to_pylist() if ROW in rows.column_names else range(rows.num_rows)
        values = [dict(zip(self.inputs, each, strict=True)) for each in texts.values]
        ragged = self.tokenizer.encode_ragged([self._prompt(each) for each in values])
        kept: list[tuple[int, Ids, int, int, int]] = []
        cut = 0
        for row, each, ids in zip(texts.rows, values, ragged, strict=True):
            prompt = np.concatenate([self._before, ids]) if len(ids) else self._start
            limit = self._given(each, "max_new_tokens")
            room = max(self.context + 1 - limit, 1)
            if reason := self._refusal(prompt, limit, room):
                errors[row] = reason
                continue
            cut += len(prompt) > room
            kept.append((row, prompt[-room:], limit, self._given(each, "seed"), numbered[row]))
        at, prompts, limits, seeds, places = zip(*kept, strict=True) if kept else ((),) * 5
        return GenerateRows(texts, errors, at, prompts, limits, seeds, places, cut)

    def _prompt(self, values: Mapping[str, Any]) -> str:
        if self._template is None:
            return str(values["text"])
        return self._template.filled(values)

    def _given(self, values: Mapping[str, Any], name: str) -> int:
        """A per-row override, or the option where there is no column or the column is null."""
        given = values.get(name) if self.inputs.get(name) is Holds.WHOLE else None
        return int(getattr(self.options, name) if given is None else given)

    def _refusal(self, prompt: Ids, limit: int, room: int) -> str | None:
        if len(prompt) == 0:
            return "the prompt is empty, and the tokenizer has neither a bos nor an eos token that it could begin with"
        if limit < 1:
            return f"max_new_tokens is {limit}: it must be 1 or more"
        if len(prompt) > room and self.options.overflow == "error":
            return f"the prompt has {len(prompt)} tokens, and the context leaves {room} before {limit} new ones"
        return None

    def num_tokens(self, prepared: GenerateRows) -> int:
        """Tokens of the prompts."""
        return sum(map(len, prepared.prompts))

    @property
    def by_engine(self) -> bool:
        """False for beams, which are searched batch by batch."""
        return self.options.num_beams == 1

    def engine(self, model: Any, slots: int, cache_tokens: int, tokens_per_step: int) -> Engine:
        """What continues so many rows at once, within a cache of so many positions."""
        from gpt2model.generation import Engine
        from gpt2model.generation.stopping import StopStrings, token_bytes

        stop = StopStrings(token_bytes(self.tokenizer), self.options.stop) if self.options.stop else None
        return Engine(
            model,
            self.generation,
            slots=slots,
            cache_tokens=cache_tokens,
            tokens_per_step=tokens_per_step,
            logprobs=self.options.logprobs,
            stop=stop,
        )

    def compute(self, model: Any, prepared: GenerateRows, runner: Any) -> MadeRows:
        """Continue every prompt."""
        return self._continued(prepared, runner) if self.by_engine else self._searched(model, prepared, runner)

    def _continued(self, prepared: GenerateRows, runner: EngineRunner) -> MadeRows:
        from gpt2model.generation import Request, share_prefixes

        samples = self.options.num_return_sequences
        # The longest first, so that all end at about the same time.
        order = sorted(range(len(prepared.prompts)), key=lambda place: -prepared.limits[place])
        owners = [place for place in order for _ in range(samples)]
        prefixes = share_prefixes([prepared.prompts[place] for place in owners], LEAST_SHARED)
        requests = [
            Request(
                prepared.prompts[place],
                prepared.limits[place],
                seed=prepared.seeds[place],
                row=prepared.places[place],
                sample=number % samples,
                prefix=prefix,
            )
            for number, (place, prefix) in enumerate(zip(owners, prefixes, strict=True))
        ]
        made: list[list[Made]] = [[] for _ in prepared.prompts]
        failed: dict[int, str] = {}
        for place, answer in zip(owners, runner.run(requests), strict=True):
            made[place].append(Made(answer.token_ids, answer.finish_reason, answer.logprobs))
            if answer.error is not None:
                failed[prepared.rows[place]] = answer.error
        return MadeRows(made, failed)

    def _searched(self, model: Any, prepared: GenerateRows, runner: PackRunner) -> MadeRows:
        found, unfit = search_beams(
            model,
            prepared.prompts,
            prepared.limits,
            self.generation,
            self.tokenizer,
            runner,
            logprobs=self.options.logprobs,
        )
        made = [[Made(each.token_ids, self._reason(each.token_ids), each.logprobs) for each in own] for own in found]
        return MadeRows(made, {prepared.rows[place]: why for place, why in unfit.items()})

    def _reason(self, ids: Ids) -> str:
        """Why a text that a search found has ended."""
        if len(ids) and ids[-1] in (self.generation.eos_token_id or ()):
            return "eos"
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True) if self.options.stop else ""
        return "stop" if any(each in text for each in self.options.stop) else "length"

    def finish(self, prepared: GenerateRows, computed: MadeRows) -> RowResults:
        """Turn tokens into text, and both into columns."""
        errors = {**prepared.errors, **computed.failed}
        found = {
            row: (len(prompt), made)
            for row, prompt, made in zip(prepared.rows, prepared.prompts, computed.made, strict=True)
            if row not in errors
        }
        texts = iter(self._texts([each for _, made in found.values() for each in made]))
        read = {row: [next(texts) for _ in made] for row, (_, made) in found.items()}
        several = self.options.num_return_sequences > 1
        values: dict[str, list[Any]] = {field.name: [None] * prepared.texts.count for field in self.fields}
        for row, (prompt_tokens, made) in found.items():
            cells: dict[str, list[Any]] = {
                "generated_text": read[row],
                "finish_reason": [each.finish_reason for each in made],
                "num_generated_tokens": [len(each.token_ids) for each in made],
                "generated_ids": [each.token_ids for each in made],
                "generated_logprobs": [each.logprobs for each in made],
            }
            for name, column in values.items():
                column[row] = (
                    prompt_tokens if name == "num_prompt_tokens" else cells[name] if several else cells[name][0]
                )
        columns = [pa.array(values[field.name], field.type) for field in self.fields]
        return RowResults(columns, errors, dict(self._figures(prepared, found)))

    def _texts(self, made: Sequence[Made]) -> list[str]:
        from gpt2model.generation.stopping import cut_at_stop

        decoded = self.tokenizer.batch_decode([each.token_ids.tolist() for each in made], skip_special_tokens=True)
        return [
            cut_at_stop(text, self.options.stop) if each.finish_reason == "stop" else text
            for each, text in zip(made, decoded, strict=True)
        ]

    def _figures(
        self, prepared: GenerateRows, found: Mapping[int, tuple[int, Sequence[Made]]]
    ) -> Iterator[tuple[str, float]]:
        every = [each for _, made in found.values() for each in made]
        yield "tokens", float(sum(tokens for tokens, _ in found.values()))
        yield "new_tokens", float(sum(len(each.token_ids) for each in every))
        yield "texts", float(len(every))
        yield "cut", float(prepared.cut)
        for reason in ("eos", "stop", "length"):
            yield f"ended by {reason}", float(sum(each.finish_reason == reason for each in every))

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """Tokens read and made, how the texts ended, prompts that were cut."""
        lines: dict[str, float | None] = {
            "prompt tokens": figures.get("tokens", 0),
            "new tokens": figures.get("new_tokens", 0),
            "texts": figures.get("texts", 0),
        }
        for reason in ("eos", "stop", "length"):
            if count := figures.get(f"ended by {reason}", 0):
                lines[f"texts ended by {reason}"] = count
        return {**lines, **({"prompts cut at the left": cut} if (cut := figures.get("cut", 0)) else {})}
