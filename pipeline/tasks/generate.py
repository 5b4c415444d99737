"""generate: what comes after each row's prompt.

Reads `text`, or the columns that `generate.template` names; and `max_new_tokens` and `seed` where `input.columns` gives
them a column. Writes generated_text (without the prompt), finish_reason (eos, stop, length), num_prompt_tokens,
num_generated_tokens, and on request generated_ids and generated_logprobs; with several samples a row, lists of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.tasks.beams import Searcher
from pipeline.tasks.generate_options import SEEDS, GenerateOptions
from pipeline.tasks.prompts import added_tokens, language_model, start_token
from pipeline.tasks.rows import ROW, Holds, RowResults, RowTexts, read_texts
from pipeline.tasks.sequences import Ids
from pipeline.tasks.templates import Template

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from gpt2model.generation import Engine
    from gpt2model.generation.stopping import StopStrings
    from pipeline.batching import PackRunner
    from pipeline.continuing import EngineRunner

PER_ROW = ("max_new_tokens", "seed")


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
        if idle := options.idle():
            raise JobError(
                f"generate.{idle} does nothing without {options.wanted_by(idle)}: add that, or leave it at its default "
                f"{options.default_of(idle)}"
            )
        self.options = options
        self.tokenizer = tokenizer
        self.context = config.n_positions
        self._template = Template.parse(options.template) if options.template is not None else None
        fields = ("text",) if self._template is None else self._template.fields
        per_row = [name for name in PER_ROW if name in columns]
        for name in per_row:
            if name in fields:
                raise JobError(
                    f"generate.template names {{{name}}}, which input.columns gives to generate.{name}: name the "
                    f"column otherwise for the template, as input.columns.{name}_told={columns[name]}"
                )
        holds = Holds.TEXT if self._template is None else Holds.VALUE
        self.inputs: Mapping[str, Holds] = {**dict.fromkeys(fields, holds), **dict.fromkeys(per_row, Holds.WHOLE)}
        start = start_token(tokenizer)
        self._start = np.array([] if start is None else [start], np.int64)
        self._before, _ = added_tokens(tokenizer)
        try:
            self.generation = options.generation_config(tokenizer, config)
        except GPT2Error as error:
            raise JobError(f"generate: {error}") from error

    @staticmethod
    def architecture(options: GenerateOptions, config: GPT2Config) -> str:
        """Any checkpoint with a language-model head, be there another beside it."""
        return language_model(config)

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
            limit, seed = self._given(each, "max_new_tokens"), self._given(each, "seed")
            room = self.context + 1 - limit
            if reason := self._refusal(prompt, limit, seed, room):
                errors[row] = reason
                continue
            room = max(room, self.context // 2)
            cut += len(prompt) > room
            kept.append((row, self._last(prompt, room), min(limit, self.context), seed, numbered[row]))
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

    def _last(self, prompt: Ids, room: int) -> Ids:
        """What there is room for: the prompt's end, behind what the tokenizer puts before a text."""
        if len(prompt) <= room:
            return prompt
        before = self._before[: room - 1]
        return np.concatenate([before, prompt[len(prompt) - room + len(before) :]])

    def _refusal(self, prompt: Ids, limit: int, seed: int, room: int) -> str | None:
        if len(prompt) == 0:
            return "the prompt is empty, and the tokenizer has neither a bos nor an eos token that it could begin with"
        if limit < 1:
            return f"max_new_tokens is {limit}: it must be 1 or more"
        if seed not in SEEDS:
            return f"seed is {seed}: it must be from -2**63 to 2**63 - 1"
        if len(prompt) > room and self.options.overflow == "error":
            return f"the prompt has {len(prompt)} tokens, and the context leaves {max(room, 0)} before {limit} new ones"
        return None

    def num_tokens(self, prepared: GenerateRows) -> int:
        """Tokens of the prompts."""
        return sum(map(len, prepared.prompts))

    @property
    def by_engine(self) -> bool:
        """False for beams, which are searched batch by batch."""
        return self.options.num_beams == 1

    def engine(
        self, model: Any, slots: int, cache_tokens: int, tokens_per_step: int, graphs: bool | None = None
    ) -> Engine:
        """What continues so many rows at once, within a cache of so many positions; `graphs` as Engine takes it."""
        from gpt2model.generation import Engine

        return Engine(
            model,
            self.generation,
            slots=slots,
            cache_tokens=cache_tokens,
            tokens_per_step=tokens_per_step,
            logprobs=self.options.logprobs,
            stop=self._stop,
            graphs=graphs,
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
        prefixes = share_prefixes([prepared.prompts[place] for place in owners])
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
        searcher = Searcher(model, self.generation, self._stop, self.options.logprobs)
        found, unfit = searcher.search(prepared.prompts, prepared.limits, runner)
        made = [[Made(each.token_ids, self._reason(each.token_ids), each.logprobs) for each in own] for own in found]
        return MadeRows(made, {prepared.rows[place]: why for place, why in unfit.items()})

    def _reason(self, ids: Ids) -> str:
        """Why a text that a search found has ended."""
        if len(ids) and ids[-1] in (self.generation.eos_token_id or ()):
            return "eos"
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True) if self.options.stop else ""
        return "stop" if any(each in text for each in self.options.stop) else "length"

    @cached_property
    def _stop(self) -> StopStrings | None:
        from gpt2model.generation.stopping import StopStrings, token_bytes

        return StopStrings(token_bytes(self.tokenizer), self.options.stop) if self.options.stop else None

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
