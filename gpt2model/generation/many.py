"""Many prompts of any lengths continued in one call, by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2model.errors import ConfigError, InputError
from gpt2model.generation.blocks import BLOCK, blocks_for
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.engine import Engine
from gpt2model.generation.generate import settings_of
from gpt2model.generation.requests import Continuation, Request, share_prefixes
from gpt2model.packing import TokenIds, as_ids

if TYPE_CHECKING:
    from gpt2model.generation.stopping import StopStrings
    from gpt2model.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel

DEFAULT_NEW_TOKENS = 20


def generate_many(
    model: GPT2LMHeadModel | GPT2DoubleHeadsModel,
    prompts: Sequence[TokenIds],
    config: GenerationConfig | None = None,
    *,
    max_new_tokens: int | Sequence[int] | None = None,
    seed: int = 0,
    logprobs: bool = False,
    stop: StopStrings | None = None,
    slots: int = 64,
    cache_tokens: int | None = None,
) -> list[list[Continuation]]:
    """What follows each prompt, `num_return_sequences` of them: as generate() gives it for the prompt alone.

    >>> from gpt2model import GPT2LMHeadModel, GPT2Tokenizer, generate_many
    >>> model = GPT2LMHeadModel.from_pretrained("samples/gpt2-tiny")
    >>> tokenizer = GPT2Tokenizer.from_pretrained("samples/gpt2-tiny")
    >>> prompts = tokenizer(["The soup", "We stayed at the inn for a week and"])["input_ids"]
    >>> for (answer,) in generate_many(model, prompts, max_new_tokens=[5, 20]):
    ...     print(tokenizer.decode(answer.token_ids), answer.finish_reason)

    Greedy search or sampling, by `config`; what it leaves open, the model's own says. max_new_tokens is one limit, or
    one for each prompt; where it is not given, the config's, else 20. A row ends at the context's edge at the latest.
    Samples are a function of seed, the prompt's place among the prompts and the sample's number. `slots` continuations
    are under way at once, and the cache has `cache_tokens` positions, by default all that these can need.

    `stop` looks at new tokens alone.

    Raises ConfigError for beams and time limits, InputError for an empty prompt or one longer than the context.
    """
    config = settings_of(model.generation_config, config, {})
    if config.num_beams > 1:
        raise ConfigError(f"num_beams={config.num_beams}: generate_many takes no beams; give prompts to generate()")
    for name in ("stop_strings", "max_time"):
        if getattr(config, name) is not None and not (name == "stop_strings" and stop is not None):
            raise ConfigError(
                f"{name}={getattr(config, name)!r}: generate_many takes stop strings as `stop`, and no time"
            )
    ids = [as_ids(prompt, place) for place, prompt in enumerate(prompts)]
    limits = _limits([len(each) for each in ids], max_new_tokens, config)
    samples = config.num_return_sequences
    # The longest first, so that all end at about the same time.
    order = sorted(range(len(ids)), key=lambda place: -limits[place])
    rows = [(place, sample) for place in order for sample in range(samples)]
    prefixes = share_prefixes([ids[place] for place, _ in rows])
    requests = [
        Request(ids[place], limits[place], (place, sample), seed=seed, row=place, sample=sample, prefix=prefix)
        for (place, sample), prefix in zip(rows, prefixes, strict=True)
    ]
    slots = max(1, min(slots, len(requests)))
    if cache_tokens is None:
        cache_tokens = BLOCK * (slots * blocks_for(model.config.n_positions) + 1)
    engine = Engine(model, config, slots=slots, cache_tokens=cache_tokens, logprobs=logprobs, stop=stop)
    answers = {answer.request.ticket: answer for answer in engine.run(requests)}
    return [[answers[place, sample] for sample in range(samples)] for place in range(len(ids))]


def _limits(lengths: Sequence[int], asked: int | Sequence[int] | None, config: GenerationConfig) -> list[int]:
    """New tokens at most, of each prompt."""
    if asked is None:
        asked = config.max_new_tokens
    if asked is None and config.max_length is not None:
        return [max(config.max_length - length, 1) for length in lengths]
    if asked is None or isinstance(asked, int):
        return [DEFAULT_NEW_TOKENS if asked is None else asked] * len(lengths)
    if len(asked) != len(lengths):
        raise InputError(
            f"max_new_tokens has {len(asked)} numbers for {len(lengths)} prompts: give one for each, or one"
        )
    return list(asked)
