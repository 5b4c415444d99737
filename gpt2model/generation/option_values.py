"""The values that GenerationConfig's options may have, how a file's values become them, and what is not offered."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gpt2model.config_values import freeze
from gpt2model.errors import ConfigError

# transformers' options that do not exist here, each with the values, beside null, that ask for nothing.
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "assistant_early_exit": (),
        "assistant_ensemble_weight": (),
        "constraints": (),
        "continuous_batching_config": (),
        "decoder_start_token_id": (),
        "diversity_penalty": (0,),
        "dola_layers": (),
        "force_words_ids": (),
        "guidance_scale": (1,),
        "is_assistant": (False,),
        "low_memory": (False,),
        "num_beam_groups": (1,),
        "penalty_alpha": (0,),
        "prefill_chunk_size": (),
        "prompt_lookup_num_tokens": (),
        "speculation_type": (),
        "token_healing": (False,),
        "use_mtp": (False,),
        "watermarking_config": (),
    }
)
# What tunes one of those, or a cache or compiler that is not here: a file may hold any value, which is kept.
IDLE_IN_FILES = (
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "cache_config",
    "compile_config",
    "disable_compile",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "target_lookbehind",
)
_FINITE = math.nextafter(math.inf, 0.0)
# Arguments of generate() that are no options.
_ARGUMENTS = ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer")


def without_neutral(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options but those not offered, which must have a value that asks for nothing; raises ConfigError if not."""
    for name, value in options.items():
        if name in _ARGUMENTS and value is not None:
            raise ConfigError(f"{name} is an argument of generate(), not an option of GenerationConfig")
        if name in IDLE_IN_FILES and value is not None:
            raise ConfigError(f"{name}={value!r}: this option of transformers is not offered here; leave it out")
        if name in NOT_OFFERED and value is not None and value not in NOT_OFFERED[name]:
            idle = " or ".join(["null", *map(repr, NOT_OFFERED[name])])
            raise ConfigError(
                f"{name}={value!r}: this option of transformers is not offered here; leave it out, or at {idle}"
            )
    dropped = {*NOT_OFFERED, *IDLE_IN_FILES, *_ARGUMENTS}
    return {name: value for name, value in options.items() if name not in dropped}


def frozen(name: str, value: Any) -> Any:
    """An option's value with tuples for lists; one id where several may be is a tuple of one, and so is one string."""
    if name in ("eos_token_id", "forced_eos_token_id") and _is_int(value):
        return (value,)
    if name == "stop_strings" and isinstance(value, str):
        return (value,)
    if name == "sequence_bias" and isinstance(value, Mapping):
        return tuple((_sequence(key), bias) for key, bias in value.items())
    return freeze(value, name)


def _sequence(key: Any) -> tuple[Any, ...]:
    """The ids that are a key of `sequence_bias`; in JSON they are a tuple's text, "(5, 6)"."""
    if isinstance(key, str) and key.startswith("(") and key.endswith(")"):
        parts = [part.strip() for part in key[1:-1].split(",") if part.strip()]
        if all(part.isascii() and part.isdecimal() for part in parts):
            return tuple(map(int, parts))
    if isinstance(key, tuple):
        return key
    raise ConfigError(f"sequence_bias has the key {key!r}; its keys are tuples of token ids")


def _is_int(value: Any, least: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_FINITE <= value <= _FINITE


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return _is_int(value, least=1)


def _is_natural(value: Any) -> bool:
    return _is_int(value, least=0)


def _is_ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_natural, value))


def _is_some_ids(value: Any) -> bool:
    return _is_ids(value) and value != ()


def _is_bias(value: Any) -> bool:
    """A pair of ids and a number, which may be -inf: never that sequence."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and _is_some_ids(value[0])
        and (_is_number(value[1]) or value[1] == -math.inf)
    )


def _several(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and value != () and all(map(holds, value))


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


# What each option must be: the names, the condition, and its words.
RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("max_length", "max_new_tokens"), _or_null(_is_count), "a positive integer, or null"),
    (("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _is_natural, "an integer from 0"),
    (("min_new_tokens",), _or_null(_is_natural), "an integer from 0, or null"),
    (("num_beams", "num_return_sequences"), _is_count, "a positive integer"),
    (("early_stopping",), lambda value: isinstance(value, bool) or value == "never", "true, false or 'never'"),
    (("max_time",), _or_null(_is_positive), "a positive number of seconds, or null"),
    (
        ("stop_strings",),
        _or_null(lambda value: isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)),
        "a string or a list of strings, none of them empty, or null",
    ),
    (
        (
            "do_sample",
            "use_cache",
            "renormalize_logits",
            "remove_invalid_values",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "output_logits",
            "return_dict_in_generate",
        ),
        lambda value: isinstance(value, bool),
        "true or false",
    ),
    (
        ("cache_implementation",),
        lambda value: value in (None, "dynamic", "static"),
        "'dynamic', 'static' or null; other caches are not offered",
    ),
    (("temperature",), _is_positive, "a positive number; for the likeliest token at each step set do_sample=False"),
    (("top_k",), _is_natural, "an integer from 0, which keeps every token"),
    (
        ("top_p", "typical_p"),
        lambda value: _is_positive(value) and value <= 1,
        "a number in (0, 1], where 1 keeps every token",
    ),
    (("min_p",), _or_null(lambda value: _is_number(value) and 0 <= value <= 1), "a number in [0, 1], or null"),
    (("top_h",), _or_null(lambda value: _is_positive(value) and value <= 1), "a number in (0, 1], or null"),
    (
        ("epsilon_cutoff", "eta_cutoff"),
        lambda value: _is_number(value) and 0 <= value < 1,
        "a number in [0, 1), where 0 keeps every token",
    ),
    (("repetition_penalty", "encoder_repetition_penalty"), _is_positive, "a positive number; 1 changes nothing"),
    (("length_penalty",), _is_number, "a finite number"),
    (("bad_words_ids",), _or_null(_several(_is_some_ids)), "a list of lists of token ids, none of them empty, or null"),
    (
        ("sequence_bias",),
        _or_null(_several(_is_bias)),
        "a mapping of tuples of token ids, or a list of [ids, bias], to numbers, none of them empty, or null",
    ),
    (
        ("exponential_decay_length_penalty",),
        _or_null(lambda value: _is_pair(value) and _is_natural(value[0]) and _is_positive(value[1])),
        "a pair of an integer from 0 (the start) and a positive number (the factor), or null",
    ),
    (("suppress_tokens", "begin_suppress_tokens"), _or_null(_is_ids), "a list of token ids, or null"),
    (("bos_token_id", "pad_token_id", "forced_bos_token_id"), _or_null(_is_natural), "a token id, or null"),
    (("eos_token_id", "forced_eos_token_id"), _or_null(_is_some_ids), "a token id, a list of them, or null"),
)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2
