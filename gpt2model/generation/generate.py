"""generate: continues prompts by greedy search, sampling, beam search or beam sampling."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpt2model.cache import Cache, DynamicCache, StaticCache
from gpt2model.errors import ConfigError, InputError
from gpt2model.generation.beams import search_beams
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import NO_TOKEN
from gpt2model.generation.decoding import Search, Streamer, decode
from gpt2model.generation.draws import Draws
from gpt2model.generation.feed import Feed
from gpt2model.generation.option_values import IDLE_IN_FILES, NOT_OFFERED
from gpt2model.generation.outputs import GenerateOutput, usable_in_training
from gpt2model.generation.processors import AllowedTokens, PrefixConstrained
from gpt2model.generation.prompt import Inputs, Prompt, prompt_of
from gpt2model.generation.rules import Ending, LogitsProcessor, Scoring, StoppingCriteria
from gpt2model.generation.stopping import StopStrings, token_bytes

if TYPE_CHECKING:
    from gpt2model.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel
    from gpt2model.tokenizer import GPT2Tokenizer


def generate(
    model: GPT2LMHeadModel | GPT2DoubleHeadsModel,
    input_ids: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: Cache | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    logits_processor: Sequence[LogitsProcessor] | None = None,
    stopping_criteria: Sequence[StoppingCriteria] | None = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    tokenizer: GPT2Tokenizer | None = None,
    streamer: Streamer | None = None,
    seed: int = 0,
    **options: Any,
) -> Tensor | GenerateOutput:
    """Prompts and their continuations, int64 [rows * num_return_sequences, length], or a record that tells more.

    >>> from gpt2model import GPT2LMHeadModel, GPT2Tokenizer
    >>> model = GPT2LMHeadModel.from_pretrained("samples/gpt2-tiny")
    >>> tokenizer = GPT2Tokenizer.from_pretrained("samples/gpt2-tiny")
    >>> prompts = tokenizer("The town of", return_tensors="pt")
    >>> tokenizer.decode(model.generate(**prompts, max_new_tokens=12)[0])
    'The town of my friend Henrik. The story began to end.'

    Options are GenerationConfig's. They go before the config given, and its Nones are filled from the model's
    `generation_config`. With return_dict_in_generate the result is a record of outputs.py.

    Prompts are input_ids [rows, length], or inputs_embeds [rows, length, width] (then the result holds new tokens
    alone, unless there are input_ids for the same places), or where nothing is given one bos token. They are padded on
    the left: where attention_mask is 0, or without one where the pad token is, unless that is an eos token too.
    Positions do not count padding. With past_key_values, give all ids from the first on, or new ones alone with an
    attention_mask for all. New tokens have the last one's token type.

    A row ends with an eos token or a stop string (which needs the tokenizer), at its greatest length, with the token
    behind the context's last position, when max_time is over, or where one of stopping_criteria says so. Pad tokens
    fill it up, the first eos token where there is none, -1 where there is neither. logits_processor come before
    temperature and the other options of sampling. What is drawn is a function of seed, the row's place in the batch,
    the number of its sample and the position, whatever torch's random state. A streamer gets the prompts, then one
    token of each row at a time.

    Raises ConfigError for options and InputError for arguments: unknown or impossible ones, such as contradict each
    other, prompts beyond the context, and a step that leaves no token to choose.
    """
    settings = settings_of(model.generation_config, generation_config, options)
    if streamer is not None and settings.num_beams > 1:
        raise InputError(f"num_beams={settings.num_beams} with a streamer: beams revise what they said; leave one out")
    tensors = {
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "token_type_ids": token_type_ids,
        "inputs_embeds": inputs_embeds,
        "encoder_hidden_states": encoder_hidden_states,
        "encoder_attention_mask": encoder_attention_mask,
    }
    past = _positions_held(past_key_values, settings)
    prompt, inputs = prompt_of(
        input_ids, tensors, past=past, options=settings, config=model.config, device=model.device
    )
    constraint = prefix_allowed_tokens_fn and PrefixConstrained(prefix_allowed_tokens_fn, settings.num_beams)
    search = Search(
        options=settings,
        prompt=prompt,
        feed=_feed(model, prompt, inputs, past_key_values, settings),
        scoring=Scoring(settings, constraint, logits_processor or ()),
        ending=Ending(settings, _stop_strings(settings, tokenizer), stopping_criteria or ()),
        draws=_draws(prompt, settings, seed),
        fill=_fill(settings),
    )
    with torch.inference_mode():
        record: GenerateOutput = decode(search, streamer) if settings.num_beams == 1 else search_beams(search)
    return usable_in_training(record) if settings.return_dict_in_generate else record.sequences.clone()


def settings_of(
    defaults: GenerationConfig, given: GenerationConfig | None, changes: Mapping[str, Any]
) -> GenerationConfig:
    """The options of one call: `changes` go before the config given, whose Nones are filled from the defaults.

    Raises ConfigError for an unknown option and what GenerationConfig refuses.
    """
    names = [field.name for field in fields(GenerationConfig)]
    arguments = list(inspect.signature(generate).parameters)[1:-1]
    for name in changes:
        if name not in (*names, *NOT_OFFERED, *IDLE_IN_FILES):
            near = difflib.get_close_matches(name, [*names, *arguments], n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else "it is neither an argument nor an option of GenerationConfig"
            )
            raise ConfigError(f"generate() takes no {name!r}: {hint}")
    if given is None:
        return defaults.replace(**changes)
    if not isinstance(given, GenerationConfig):
        raise ConfigError(f"generation_config is a {type(given).__name__}: give a gpt2model.GenerationConfig")
    filling = {name: getattr(defaults, name) for name in names if getattr(given, name) is None}
    return given.replace(**filling).replace(**changes)


def _positions_held(cache: Cache | None, settings: GenerationConfig) -> int:
    """The positions that past_key_values holds."""
    if cache is None:
        return 0
    if not isinstance(cache, Cache):
        raise InputError(f"past_key_values is a {type(cache).__name__}: give a DynamicCache or a StaticCache")
    if not settings.use_cache or settings.cache_implementation is not None:
        option = "cache_implementation" if settings.use_cache else "use_cache"
        raise InputError(f"past_key_values with {option}={getattr(settings, option)!r}: leave one of them out")
    return cache.get_seq_length()


def _feed(
    model: GPT2LMHeadModel | GPT2DoubleHeadsModel,
    prompt: Prompt,
    inputs: Inputs,
    given: Cache | None,
    settings: GenerationConfig,
) -> Feed:
    """What reads the prompts: each of them once, where its rows can be made from one in the cache."""
    copies = max(settings.num_beams, settings.num_return_sequences)
    if given is not None:
        return Feed(model, inputs.repeated(copies), given, settings, copies=1)
    if not settings.use_cache:
        return Feed(model, inputs, None, settings, copies=copies)
    if settings.cache_implementation != "static":
        return Feed(model, inputs, DynamicCache(), settings, copies=copies)
    positions = int(prompt.max_lengths.max()) - 1
    cache = StaticCache(model.config, len(prompt) * copies, positions, model.dtype, model.device)
    return Feed(model, inputs.repeated(copies), cache, settings, copies=1)


def _stop_strings(settings: GenerationConfig, tokenizer: GPT2Tokenizer | None) -> StopStrings | None:
    if settings.stop_strings is None:
        return None
    if tokenizer is None:
        raise InputError("stop_strings are looked for in text: give generate() the tokenizer")
    return StopStrings(token_bytes(tokenizer, skip_special_tokens=False), settings.stop_strings)


def _draws(prompt: Prompt, settings: GenerationConfig, seed: int) -> Draws | None:
    """Random numbers for what is drawn at a step: a token for each sample, or in a search one set of candidates."""
    if not settings.do_sample:
        return None
    samples = settings.num_return_sequences if settings.num_beams == 1 else 1
    return Draws(seed, len(prompt), samples, prompt.ids.device)


def _fill(settings: GenerationConfig) -> int:
    """What stands behind a row's end."""
    if settings.pad_token_id is not None:
        return settings.pad_token_id
    return NO_TOKEN if settings.eos_token_id is None else settings.eos_token_id[0]
