"""The options of the generate task, and what the engine and the beam search are told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.options import Options
from pipeline.tasks.templates import Template

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from gpt2model.generation import GenerationConfig

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
SEARCH = ("length_penalty", "early_stopping")
SEEDS = range(-(2**63), 2**63)
Share = Annotated[float, Field(gt=0, le=1)]


def _checked(template: str) -> str:
    Template.parse(template)
    return template


def _not_empty(strings: list[str]) -> list[str]:
    if not all(strings):
        raise ValueError(f"{strings}: an empty string is found everywhere: leave it out")
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
    suppress: Annotated[list[str], AfterValidator(_not_empty)] = Field(default_factory=list)
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
    seed: Annotated[int, Field(ge=SEEDS.start, lt=SEEDS.stop)] = 0
    """Of the draws; a column named by input.columns.seed overrides it row by row."""
    logprobs: bool = False
    """Also write `generated_logprobs`: each new token's log-probability by the model itself."""
    token_ids: bool = False
    """Also write `generated_ids`."""
    overflow: Literal["truncate_left", "error"] = "truncate_left"
    """Of prompts that with max_new_tokens are longer than the context: leave out the beginning, or the row's error."""

    def idle(self) -> str | None:
        """The name of an option that was given and does nothing, since the one it goes with was forgotten.

        Where that one was said to be off, the others are what a job file had for the time when it is on.
        """
        changed = [name for name in type(self).model_fields if getattr(self, name) != self.default_of(name)]
        kept = list(SAMPLING) if not self.do_sample and "do_sample" not in self.model_fields_set else []
        kept += list(SEARCH) if self.num_beams == 1 and "num_beams" not in self.model_fields_set else []
        return next((name for name in changed if name in kept), None)

    @staticmethod
    def wanted_by(name: str) -> str:
        """What an option goes with."""
        return "generate.do_sample=true" if name in SAMPLING else "generate.num_beams above 1"

    @classmethod
    def default_of(cls, name: str) -> object:
        """What an option is where a job does not say."""
        return cls.model_fields[name].get_default(call_default_factory=True)

    def generation_config(self, tokenizer: GPT2Tokenizer, config: GPT2Config) -> GenerationConfig:
        """What the model is told; the checkpoint has its say on eos and pad tokens alone. Raises ConfigError."""
        from gpt2model.generation import GenerationConfig

        same = ["do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"]
        same += ["repetition_penalty", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "max_new_tokens"]
        beams = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        suppressed = [tokenizer.encode(text, add_special_tokens=False) for text in self.suppress]
        return GenerationConfig(
            **{name: getattr(self, name) for name in same},
            **(beams if self.num_beams > 1 else {}),
            min_new_tokens=self.min_new_tokens or None,
            bad_words_ids=[ids for ids in suppressed if len(ids) > 1] or None,
            # As a bad word, an eos token would be let through.
            suppress_tokens=[ids[0] for ids in suppressed if len(ids) == 1] or None,
            stop_strings=self.stop or None,
            eos_token_id=_natural(config.eos_token_id),
            pad_token_id=next(iter(_natural(config.pad_token_id) or ()), None),
        )


def _natural(ids: int | tuple[int, ...] | None) -> list[int] | None:
    """Token ids without the negative ones, which stand for none in old files."""
    given = ids if isinstance(ids, tuple) else (ids,)
    return [each for each in given if each is not None and each >= 0] or None
