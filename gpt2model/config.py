"""GPT2Config: what a GPT-2 is built from, read from and written to Hugging Face's config.json."""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch

from gpt2model import hub
from gpt2model.config_values import RULES, as_dtype, complete_labels, defaults_of, freeze, read_options, thaw
from gpt2model.errors import ConfigError

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"

# Other names of the same option. `n_ctx` and `torch_dtype` are what files of transformers 2 to 4 say.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "n_ctx": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "torch_dtype": "dtype",
    }
)
_LABEL_OPTIONS = ("num_labels", "id2label", "label2id")


@dataclass(frozen=True, kw_only=True, init=False)
class GPT2Config:
    """Every option of a GPT-2, immutable, with the names and defaults of transformers' GPT2Config (5.x).

    The constructor takes options by keyword, under their name or an alias (``hidden_size``, ``n_ctx``,
    ``max_position_embeddings``, ``num_attention_heads``, ``num_hidden_layers``, ``torch_dtype``); aliases are readable
    too. The labels of a classifier are given by any of ``num_labels``, ``id2label`` and ``label2id``; the others
    follow.

    Lists become tuples and mappings read-only ones. ``extra`` holds what a config.json said beyond these options; it is
    written back at the top level of the file.

    Raises ConfigError for an unknown option, an impossible value, or options that contradict each other.
    """

    model_type: ClassVar[str] = "gpt2"

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    summary_type: str = "cls_index"
    summary_use_proj: bool = True
    summary_activation: str | None = None
    summary_proj_to_labels: bool = True
    summary_first_dropout: float = 0.1
    summary_last_dropout: float = 0.0
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    is_decoder: bool = False
    is_encoder_decoder: bool = False
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: int = 0

    use_cache: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True

    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256
    pad_token_id: int | None = None

    id2label: Mapping[int, str] = field(default_factory=dict)
    label2id: Mapping[str, int] = field(default_factory=dict)
    problem_type: str | None = None
    classifier_dropout: float | None = None
    hidden_dropout: float | None = None

    architectures: tuple[str, ...] | None = None
    dtype: torch.dtype | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __init__(self, **options: Any) -> None:
        given = _canonical(options)
        _refuse_unknown(given, known={*_FIELD_DEFAULTS, "num_labels"})
        values = {**{name: default() for name, default in _FIELD_DEFAULTS.items()}, **_without_null_switches(given)}
        values["id2label"], values["label2id"] = complete_labels(*(given.get(name) for name in _LABEL_OPTIONS))
        for name in _FIELD_DEFAULTS:
            object.__setattr__(self, name, freeze(values[name], name))
        _validate(self)

    @property
    def num_labels(self) -> int:
        """Number of labels of a classifier."""
        return len(self.id2label)

    @property
    def hidden_size(self) -> int:
        """Alias of ``n_embd``."""
        return self.n_embd

    @property
    def max_position_embeddings(self) -> int:
        """Alias of ``n_positions``."""
        return self.n_positions

    @property
    def n_ctx(self) -> int:
        """Alias of ``n_positions``."""
        return self.n_positions

    @property
    def num_attention_heads(self) -> int:
        """Alias of ``n_head``."""
        return self.n_head

    @property
    def num_hidden_layers(self) -> int:
        """Alias of ``n_layer``."""
        return self.n_layer

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """Alias of ``dtype``."""
        return self.dtype

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed; a change of one label option lets the other label options follow."""
        changes = _canonical(changes)
        current = {name: getattr(self, name) for name in _FIELD_DEFAULTS}
        if not changes.keys().isdisjoint(_LABEL_OPTIONS):
            current = {name: value for name, value in current.items() if name not in _LABEL_OPTIONS}
        return type(self)(**{**current, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Options as config.json holds them; keys that are no option of ours go to ``extra``.

        Raises ConfigError where the mapping describes another architecture (``model_type``) or impossible values.
        """
        model_type = values.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ConfigError(
                f"the config is of a {model_type!r} model (model_type); only {cls.model_type!r} can be loaded here"
            )
        # transformers ignores `n_ctx` of old files, which nearly always repeats n_positions: kept, not obeyed.
        readable = {*_FIELD_DEFAULTS, *ALIASES, "num_labels"} - {"extra", "n_ctx"}
        extra = {name: value for name, value in values.items() if name not in readable and name != "model_type"}
        return cls(**{name: values[name] for name in values if name in readable}, extra=extra)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read one config.json; every ConfigError names the file."""
        return read_options(path, cls.from_dict)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        endpoint: str | None = None,
        **changes: Any,
    ) -> Self:
        """Read the config.json of a folder or of a Hub repository, then apply ``changes``.

        Raises CheckpointError where there is no such folder or repository, ConfigError for what its config.json says.
        """
        snapshot = hub.resolve(
            path_or_id,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            patterns=(CONFIG_NAME,),
            endpoint=endpoint,
        )
        config = cls.from_json_file(snapshot.folder / CONFIG_NAME)
        return config.replace(**changes) if changes else config

    def to_dict(self) -> dict[str, Any]:
        """A new, mutable mapping under transformers' key names, with ``model_type`` and everything in ``extra``."""
        own = {name: thaw(getattr(self, name)) for name in _FIELD_DEFAULTS if name != "extra"}
        return {**thaw(self.extra), **own, "model_type": self.model_type}

    def to_json_string(self) -> str:
        """The content of config.json: sorted keys, two spaces, a newline at the end."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``folder/config.json``, making the folder where there is none."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG_NAME).write_text(self.to_json_string(), encoding="utf-8")

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], Self], tuple[dict[str, Any]]]:
        # Read-only mappings cannot be pickled or deep-copied.
        return type(self).from_dict, (self.to_dict(),)


_FIELD_DEFAULTS = defaults_of(GPT2Config)


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under their own names; an alias and its option may both be given when they agree."""
    named: dict[str, Any] = {}
    for name, value in options.items():
        own = ALIASES.get(name, name)
        value = as_dtype(value) if own == "dtype" and value is not None else value
        if own in named and named[own] != value:
            first = next(other for other in options if ALIASES.get(other, other) == own)
            raise ConfigError(f"{first}={named[own]!r} and {name}={value!r} are the same option: give one value")
        named[own] = value
    return named


def _refuse_unknown(options: Mapping[str, Any], known: set[str]) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, sorted({*known, *ALIASES}), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "what is none of GPT-2's options belongs in extra={...}"
            raise ConfigError(f"GPT2Config has no option {name!r}: {hint}")


def _without_null_switches(options: Mapping[str, Any]) -> dict[str, Any]:
    """Files of older versions write null for these switches where they mean the default."""
    nullable = ("output_hidden_states", "output_attentions", "return_dict")
    return {name: value for name, value in options.items() if not (name in nullable and value is None)}


def _validate(config: GPT2Config) -> None:
    for names, holds, requirement in RULES:
        for name in names:
            if not holds(getattr(config, name)):
                raise ConfigError(f"{name}={thaw(getattr(config, name))!r} must be {requirement}")
    if config.n_embd % config.n_head:
        raise ConfigError(
            f"n_embd={config.n_embd} must be a multiple of n_head={config.n_head}, so that the heads are equally wide"
        )
    if config.problem_type == "single_label_classification" and config.num_labels == 1:
        raise ConfigError(
            "problem_type='single_label_classification' needs num_labels of 2 or more; "
            "a single output is problem_type='regression'"
        )
    if not isinstance(config.extra, Mapping):
        raise ConfigError(f"extra={config.extra!r} must be a mapping")
    options = {*_FIELD_DEFAULTS, *ALIASES, "model_type", "num_labels"} - {"extra", "n_ctx"}
    owned = sorted(options.intersection(config.extra))
    if owned:
        raise ConfigError(f"extra holds {', '.join(owned)}: give it as an option of GPT2Config instead")
