"""GenerationConfig: how text is continued, read from and written to Hugging Face's generation_config.json."""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from gpt2model import hub
from gpt2model.config import CONFIG_NAME, GENERATION_CONFIG_NAME, GPT2Config
from gpt2model.config_values import defaults_of, read_options, thaw
from gpt2model.errors import ConfigError
from gpt2model.generation.option_values import NOT_OFFERED, RULES, frozen, without_neutral

_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")


@dataclass(frozen=True, kw_only=True, slots=True, init=False)
class GenerationConfig:
    """Every option of generation, immutable, with the names and defaults of transformers' GenerationConfig (5.x).

    The constructor takes options by keyword, and None means the default. Lists become tuples; ``eos_token_id`` and
    ``forced_eos_token_id`` may be one id or several, ``stop_strings`` one string or several, and ``sequence_bias`` a
    mapping of tuples of ids to numbers or a list of pairs. Where neither ``max_length`` (the prompt included) nor
    ``max_new_tokens`` is given, 20 tokens are added; where both are, the latter counts. ``min_new_tokens`` overrules
    ``min_length`` likewise. For a decoder, the ``encoder_`` options are about the prompt.

    transformers' options that are not offered here are taken where their value asks for nothing. ``extra`` holds what
    a file said beyond the options; it is written back.

    Raises ConfigError for an unknown option, an impossible value, or options that contradict each other.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    early_stopping: bool | Literal["never"] = False
    max_time: float | None = None
    stop_strings: tuple[str, ...] | None = None

    do_sample: bool = False
    num_beams: int = 1
    use_cache: bool = True
    cache_implementation: Literal["dynamic", "static"] | None = None

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    renormalize_logits: bool = False
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] | None = None
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = None

    num_return_sequences: int = 1
    output_attentions: bool = False
    output_hidden_states: bool = False
    output_scores: bool = False
    output_logits: bool = False
    return_dict_in_generate: bool = False

    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] | None = None

    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __init__(self, **options: Any) -> None:
        given = without_neutral(options)
        _refuse_unknown(given)
        for name, default in _DEFAULTS.items():
            value = given.get(name)
            object.__setattr__(self, name, frozen(name, default() if value is None else value))
        _validate(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed, as the keywords of transformers' generate() change them.

        None takes an option out: it is what changes nothing, and for ``top_k`` that is 0 and not the default.
        """
        if "top_k" in changes and changes["top_k"] is None:
            changes["top_k"] = 0
        return type(self)(**{**{name: getattr(self, name) for name in _DEFAULTS}, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Options as generation_config.json holds them; keys that are no option of ours go to ``extra``.

        Raises ConfigError for impossible values, and for what is not offered here and asks for something.
        """
        extra = {name: value for name, value in values.items() if name not in _READ}
        return cls(**{name: values[name] for name in values if name in _READ}, extra=extra)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read one generation_config.json; every ConfigError names the file."""
        return read_options(path, cls.from_dict)

    @classmethod
    def from_model_config(cls, config: GPT2Config) -> Self:
        """What a model's config says of generation: the bos, eos and pad ids, and whatever old files held there.

        A negative id is none. Where the model's config asks for attentions or hidden states, so do records
        (``return_dict_in_generate``), as in transformers.
        """
        held = {name: value for name, value in config.to_dict().items() if name in _DEFAULTS and name != "extra"}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            held[name] = _natural(held[name])
        read = cls(**held)
        wants_record = any(getattr(read, name) for name in _OUTPUTS)
        return read.replace(return_dict_in_generate=True) if wants_record else read

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
        """Read the generation_config.json of a folder or of a Hub repository, then apply ``changes``.

        A checkpoint without that file is as good as any: what its config.json says is taken.

        Raises CheckpointError where there is no such folder or repository, ConfigError for what its files say.
        """
        snapshot = hub.resolve(
            path_or_id,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            patterns=(GENERATION_CONFIG_NAME, CONFIG_NAME),
            endpoint=endpoint,
        )
        path = snapshot.folder / GENERATION_CONFIG_NAME
        if path.exists():
            config = cls.from_json_file(path)
        else:
            config = cls.from_model_config(GPT2Config.from_json_file(snapshot.folder / CONFIG_NAME))
        return config.replace(**changes) if changes else config

    def to_dict(self) -> dict[str, Any]:
        """A new, mutable mapping of all options under transformers' names, with everything in ``extra``."""
        own = {name: thaw(getattr(self, name)) for name in _DEFAULTS if name != "extra"}
        for name in ("eos_token_id", "forced_eos_token_id"):
            if own[name] is not None and len(own[name]) == 1:
                own[name] = own[name][0]
        return {**thaw(self.extra), **own}

    def to_json_string(self) -> str:
        """The content of generation_config.json: what differs from the defaults, as transformers writes it."""
        said = {name: value for name, value in self.to_dict().items() if name in self.extra or value != _IN_FILES[name]}
        return json.dumps(said, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``folder/generation_config.json``, making the folder where there is none."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / GENERATION_CONFIG_NAME).write_text(self.to_json_string(), encoding="utf-8")

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], Self], tuple[dict[str, Any]]]:
        # Read-only mappings cannot be pickled or deep-copied.
        return type(self).from_dict, (self.to_dict(),)


_DEFAULTS = defaults_of(GenerationConfig)
# What a file says that is more than kept.
_READ = {*_DEFAULTS, *NOT_OFFERED} - {"extra"}
_IN_FILES: Mapping[str, Any] = MappingProxyType({name: default() for name, default in _DEFAULTS.items()})


def _natural(value: Any) -> Any:
    """An id or a list of ids without the negative ones, None where nothing is left."""
    if isinstance(value, list):
        return [one for one in value if one >= 0] or None
    return value if value is not None and value >= 0 else None


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _DEFAULTS:
            near = difflib.get_close_matches(name, sorted(_DEFAULTS), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "what is no option of generation belongs in extra={...}"
            raise ConfigError(f"GenerationConfig has no option {name!r}: {hint}")


def _validate(config: GenerationConfig) -> None:
    for names, holds, requirement in RULES:
        for name in names:
            value = getattr(config, name)
            if not holds(value):
                raise ConfigError(f"{name}={thaw(value)!r} must be {requirement}")
    _validate_returned(config)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        value = getattr(config, name)
        ids = {value} if isinstance(value, int) else set(value or ())
        if ids and ids.issubset(config.suppress_tokens or ()):
            raise ConfigError(
                f"{name}={thaw(value)!r} is also in suppress_tokens, which leaves no token: take it out of one of them"
            )
    if not isinstance(config.extra, Mapping):
        raise ConfigError(f"extra={config.extra!r} must be a mapping")
    owned = sorted(_READ.intersection(config.extra))
    if owned:
        raise ConfigError(f"extra holds {', '.join(owned)}: give it as an option of GenerationConfig instead")


def _validate_returned(config: GenerationConfig) -> None:
    several = config.num_return_sequences
    if several > 1 and config.num_beams == 1 and not config.do_sample:
        raise ConfigError(
            f"num_return_sequences={several} needs do_sample=True or num_beams: greedy search finds one continuation"
        )
    if config.num_beams > 1 and several > config.num_beams:
        raise ConfigError(
            f"num_return_sequences={several} must be at most num_beams={config.num_beams}, which is what a search holds"
        )
