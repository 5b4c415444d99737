"""The values that GPT2Config's options may have, and how JSON's values become them."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from gpt2model.errors import ConfigError

OptionsT = TypeVar("OptionsT")

SUMMARY_TYPES = ("last", "first", "mean", "cls_index", "attn")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def defaults_of(options: type[Any]) -> Mapping[str, Callable[[], Any]]:
    """What makes the default of each field of a dataclass."""
    return MappingProxyType({each.name: _default_of(each) for each in fields(options)})


def _default_of(option: Any) -> Callable[[], Any]:
    if option.default_factory is not MISSING:
        return option.default_factory  # type: ignore[no-any-return]  # dataclasses types it as Any
    return lambda: option.default


def complete_labels(num_labels: Any, id2label: Any, label2id: Any) -> tuple[dict[int, str], dict[str, int]]:
    """Both label mappings from whichever of the three were given; two labels where none was.

    Names may be shared by several ids; every entry of ``label2id`` must lead to an id that has that name.
    """
    if num_labels is not None and not _is_int(num_labels, least=1):
        raise ConfigError(f"num_labels={num_labels!r} must be a positive integer")
    ids = _int_keys(id2label)
    given = None if label2id is None else {label: index for index, label in _int_values(label2id)}
    if ids is None:
        ids = {index: label for label, index in given.items()} if given else _numbered(num_labels or 2)
    if sorted(ids) != list(range(len(ids))):
        raise ConfigError(f"id2label must number its labels 0 to {len(ids) - 1}; its ids are {sorted(ids)}")
    if num_labels is not None and num_labels != len(ids):
        raise ConfigError(f"num_labels={num_labels} contradicts the {len(ids)} labels {list(ids.values())}: drop one")
    names = {label: index for index, label in ids.items()} if given is None else given
    for label, index in names.items():
        if ids.get(index) != label:
            raise ConfigError(f"label2id says {label!r} is {index}, id2label says {index} is {ids.get(index)!r}")
    return {index: ids[index] for index in sorted(ids)}, names


def _numbered(count: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(count)}


def _int_keys(id2label: Any) -> dict[int, str] | None:
    """``id2label`` with integer ids: JSON has text for keys. An empty one counts as none."""
    if id2label is None:
        return None
    if not isinstance(id2label, Mapping) or not all(isinstance(label, str) for label in id2label.values()):
        raise ConfigError(f"id2label={id2label!r} must map ids to label names")
    return {_as_id(key, "id2label"): label for key, label in id2label.items()} or None


def _int_values(label2id: Any) -> list[tuple[int, str]]:
    if not isinstance(label2id, Mapping) or not all(isinstance(label, str) for label in label2id):
        raise ConfigError(f"label2id={label2id!r} must map label names to ids")
    return [(_as_id(value, "label2id"), label) for label, value in label2id.items()]


def _as_id(value: Any, name: str) -> int:
    if _is_int(value, least=0):
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    raise ConfigError(f"{name} holds the id {value!r}; ids are integers from 0")


def as_dtype(value: Any) -> torch.dtype:
    """A floating-point dtype from its name ("float16", "torch.float16") or itself; raises ConfigError for others."""
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(
            f"dtype={value!r} is no floating-point dtype of torch; say 'float32', 'float16' or 'bfloat16'"
        )
    return dtype


def freeze(value: Any, place: str) -> Any:
    """JSON data with read-only mappings and tuples for lists; torch dtypes pass."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item, f"{place}.{key}") for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(item, f"{place}[{index}]") for index, item in enumerate(value))
    if value is None or isinstance(value, (str, int, float, bool, torch.dtype)):
        return value
    raise ConfigError(f"{place} is a {type(value).__name__}, which config.json cannot hold")


def thaw(value: Any) -> Any:
    """The reverse of `freeze`, with dtypes by name."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [thaw(item) for item in value]
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _is_int(value: Any, *, least: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_token_ids(value: Any) -> bool:
    return value is None or _is_int(value) or (isinstance(value, tuple) and value != () and all(map(_is_int, value)))


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and all(isinstance(name, str) for name in value))


def _is_probability(value: Any) -> bool:
    return _is_number(value, 0.0, 1.0)


_FINITE = math.nextafter(math.inf, 0.0)
# What each option must be: the names, the condition, and its words.
RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
        lambda value: _is_int(value, least=1),
        "a positive integer",
    ),
    (
        ("n_inner",),
        lambda value: value is None or _is_int(value, least=1),
        "a positive integer, or null for 4 * n_embd",
    ),
    (("chunk_size_feed_forward",), lambda value: _is_int(value, least=0), "an integer from 0, which is no chunks"),
    (
        ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout", "summary_last_dropout"),
        _is_probability,
        "a probability in [0, 1]",
    ),
    (
        ("classifier_dropout", "hidden_dropout"),
        lambda value: value is None or _is_probability(value),
        "a probability in [0, 1], or null",
    ),
    (
        ("layer_norm_epsilon", "initializer_range"),
        lambda value: _is_number(value, 0.0, _FINITE),
        "a finite number from 0",
    ),
    (
        (
            "summary_use_proj",
            "summary_proj_to_labels",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
            "add_cross_attention",
            "is_decoder",
            "is_encoder_decoder",
            "tie_word_embeddings",
            "use_cache",
            "output_hidden_states",
            "output_attentions",
            "return_dict",
        ),
        lambda value: isinstance(value, bool),
        "true or false",
    ),
    (("activation_function",), lambda value: isinstance(value, str), "the name of an activation"),
    (("summary_type",), lambda value: value in SUMMARY_TYPES, f"one of {', '.join(SUMMARY_TYPES)}"),
    (("summary_activation",), lambda value: value is None or isinstance(value, str), "text or null"),
    (
        ("problem_type",),
        lambda value: value is None or value in PROBLEM_TYPES,
        f"one of {', '.join(PROBLEM_TYPES)}, or null",
    ),
    (("bos_token_id", "pad_token_id"), lambda value: value is None or _is_int(value), "a token id or null"),
    (("eos_token_id",), _is_token_ids, "a token id, a list of them, or null"),
    (("architectures",), _is_names, "a list of class names, or null"),
)


def read_options(path: str | os.PathLike[str], parse: Callable[[dict[str, Any]], OptionsT]) -> OptionsT:
    """What `parse` makes of the JSON object in a file; every ConfigError names the file."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ConfigError(f"a JSON object was expected, not {type(values).__name__}")
        return parse(values)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: is not JSON ({error}); is the file whole?") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
