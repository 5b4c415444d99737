"""GenerationConfig against transformers' own, through JSON both ways, and its refusals."""

import copy
import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gpt2model import hub
from gpt2model.config import GPT2Config
from gpt2model.errors import CheckpointError, ConfigError
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.option_values import IDLE_IN_FILES, NOT_OFFERED

# Each option away from its default, a few at a time.
VARIATIONS: list[dict[str, Any]] = [
    {},
    {"max_length": 30, "min_length": 3, "early_stopping": "never", "num_beams": 3},
    {"max_new_tokens": 5, "min_new_tokens": 2, "max_time": 0.5, "early_stopping": True, "num_beams": 2},
    {"do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 0.5, "min_p": 0.1, "top_h": 0.5, "typical_p": 0.5},
    {"do_sample": True, "epsilon_cutoff": 0.1, "eta_cutoff": 0.2, "num_return_sequences": 3},
    {"repetition_penalty": 1.5, "encoder_repetition_penalty": 0.5, "length_penalty": -1.5, "num_beams": 2},
    {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[1], [2, 3]]},
    {"renormalize_logits": True, "remove_invalid_values": True, "forced_bos_token_id": 3},
    {"forced_eos_token_id": 4, "eos_token_id": 7, "bos_token_id": 0, "pad_token_id": 0},
    {"forced_eos_token_id": [4, 5], "eos_token_id": [7, 8]},
    {"exponential_decay_length_penalty": (3, 1.5), "suppress_tokens": [1, 2], "begin_suppress_tokens": []},
    {"sequence_bias": [[[1], 2.0], [[3, 4], -2.5]], "use_cache": False, "cache_implementation": "static"},
    {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True},
    {"return_dict_in_generate": True, "stop_strings": ["a\n", "é"]},
    {"stop_strings": "one"},
]


def as_json(config: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return parsed


def resolved(theirs: transformers.GenerationConfig) -> dict[str, Any]:
    """Their options that are ours too, with the defaults that generate() puts in place of None."""
    held = json.loads(theirs.to_json_string(use_diff=False))
    defaults = transformers.GenerationConfig._get_default_generation_params()
    # What generate() takes for 20 new tokens where it was not set.
    del defaults["max_length"]
    ours = as_json(GenerationConfig())
    return {
        name: next((value for value in (held[name], defaults.get(name)) if value is not None), ours[name])
        for name in ours
    }


def without_extra(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in as_json(config).items() if name not in config.extra}


def listed(values: dict[str, Any]) -> dict[str, Any]:
    """The same options with one stop string as a list of one, which ours always is."""
    stop = values["stop_strings"]
    return {**values, "stop_strings": [stop] if isinstance(stop, str) else stop}


def test_every_option_of_transformers_is_here_with_its_default_or_known_as_not_offered() -> None:
    theirs = transformers.GenerationConfig()
    assert resolved(theirs) == as_json(GenerationConfig())
    metadata = {"transformers_version", "_from_model_config"}
    assert vars(theirs).keys() == {*as_json(GenerationConfig()), *NOT_OFFERED, *IDLE_IN_FILES, *metadata}


@pytest.mark.parametrize("options", VARIATIONS, ids=lambda options: "-".join(options) or "defaults")
def test_config_means_the_same_in_transformers_and_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = GenerationConfig(**options), transformers.GenerationConfig(**options)
    assert {name: getattr(ours, name) for name in options} != {
        name: getattr(GenerationConfig(), name) for name in options
    } or not options
    ours.save_pretrained(tmp_path / "ours")
    theirs._original_object_hash = None
    (tmp_path / "theirs").mkdir()
    # Their save_pretrained refuses what their generate() takes, such as outputs without return_dict_in_generate.
    theirs.to_json_file(tmp_path / "theirs" / "generation_config.json")

    assert GenerationConfig.from_pretrained(tmp_path / "ours") == ours
    assert resolved(transformers.GenerationConfig.from_pretrained(tmp_path / "ours")) == listed(resolved(theirs))
    read_by_us = GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert without_extra(read_by_us) == as_json(ours)
    assert read_by_us.extra == {"transformers_version": transformers.__version__}


def test_biases_that_transformers_wrote_as_a_mapping_are_read(tmp_path: Path) -> None:
    biases = {(1,): 2.0, (3, 4): -2.5}
    transformers.GenerationConfig(sequence_bias=biases).save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert read.sequence_bias == GenerationConfig(sequence_bias=biases).sequence_bias == tuple(biases.items())


def test_only_what_differs_from_the_defaults_is_written() -> None:
    config = GenerationConfig(top_k=7, eos_token_id=[5], extra={"transformers_version": "4"})
    assert json.loads(config.to_json_string()) == {"top_k": 7, "eos_token_id": 5, "transformers_version": "4"}


def test_null_is_the_default_in_a_file_and_in_the_constructor() -> None:
    nothing = dict.fromkeys(as_json(GenerationConfig()))
    assert GenerationConfig.from_dict(nothing) == GenerationConfig(**nothing) == GenerationConfig()


def test_lists_are_frozen_and_one_id_or_string_is_a_tuple_of_one() -> None:
    config = GenerationConfig(
        eos_token_id=5, forced_eos_token_id=[6, 7], stop_strings="a", bad_words_ids=[[1]], suppress_tokens=[2, 3]
    )
    assert (config.eos_token_id, config.forced_eos_token_id, config.stop_strings) == ((5,), (6, 7), ("a",))
    assert (config.bad_words_ids, config.suppress_tokens) == (((1,),), (2, 3))
    assert hash(config) == hash(config.replace(top_k=50))


def test_what_is_not_offered_is_taken_where_it_asks_for_nothing() -> None:
    neutral = {name: values[0] if values else None for name, values in NOT_OFFERED.items()}
    assert GenerationConfig(**neutral) == GenerationConfig.from_dict(neutral) == GenerationConfig()


@pytest.mark.parametrize("name", [*NOT_OFFERED, *IDLE_IN_FILES])
def test_what_is_not_offered_is_refused_where_it_asks_for_something(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}=2\.5: .* not offered"):
        GenerationConfig(**{name: 2.5})
    with pytest.raises(ConfigError, match=rf"{name}=2\.5: .* not offered"):
        GenerationConfig().replace(**{name: 2.5})


@pytest.mark.parametrize("name", IDLE_IN_FILES)
def test_a_file_may_tune_what_is_not_offered_and_it_is_kept(name: str) -> None:
    config = GenerationConfig.from_dict({name: 7, "top_k": 3})
    assert (config.extra, config.top_k) == ({name: 7}, 3)
    assert json.loads(config.to_json_string()) == {name: 7, "top_k": 3}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1).map(lambda name: f"their_{name}"), json_values, max_size=4))
def test_unknown_keys_survive_a_round_trip(unknown: dict[str, Any]) -> None:
    config = GenerationConfig.from_dict({"top_k": 3, "extra": [1], **unknown})
    again = GenerationConfig.from_dict(json.loads(config.to_json_string()))
    assert again == config
    assert {name: again.to_dict()[name] for name in unknown} == unknown


@given(st.sampled_from(sorted(as_json(GenerationConfig()))), json_values)
def test_any_value_in_a_file_is_taken_and_comes_back_or_is_refused_by_name(name: str, value: Any) -> None:
    said = refusal({name: value})
    if said is None:
        config = GenerationConfig.from_dict({name: value})
        assert GenerationConfig.from_dict(json.loads(config.to_json_string())) == config
    else:
        assert name in said


def refusal(options: dict[str, Any]) -> str | None:
    try:
        GenerationConfig.from_dict(options)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copy_is_equal(copied: Any) -> None:
    config = GenerationConfig(eos_token_id=[1, 2], sequence_bias={(1, 2): -math.inf}, extra={"a": {"b": [1]}})
    assert copied(config) == config
    assert hash(copied(config)) == hash(config)


def test_nothing_in_a_config_can_be_changed() -> None:
    words = [[1, 2]]
    config = GenerationConfig(bad_words_ids=words, extra={"a": [1]})
    words[0].append(3)
    config.to_dict()["bad_words_ids"].append([9])
    assert config.bad_words_ids == ((1, 2),)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.top_k = 3  # type: ignore[misc]  # the assignment is what is tested
    with pytest.raises(TypeError):
        config.extra["a"] = 1  # type: ignore[index]  # likewise


def test_replace_makes_a_changed_copy_and_none_takes_an_option_out() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.5, eos_token_id=3, max_length=9, extra={"kept": 1})
    changed = config.replace(temperature=None, top_k=None, eos_token_id=None, max_length=None, top_p=0.5)
    assert changed == GenerationConfig(do_sample=True, top_k=0, top_p=0.5, extra={"kept": 1})
    assert (config.temperature, config.top_k, config.eos_token_id) == (0.5, 50, (3,))


def test_the_model_s_config_gives_what_it_gives_transformers() -> None:
    options: dict[str, Any] = {
        "bos_token_id": 3,
        "eos_token_id": [4, 5],
        "pad_token_id": 6,
        "use_cache": False,
        "output_hidden_states": True,
    }
    theirs = transformers.GenerationConfig.from_model_config(transformers.GPT2Config(**options))
    ours = GenerationConfig.from_model_config(GPT2Config(**options))
    assert as_json(ours) == resolved(theirs)
    assert (ours.eos_token_id, ours.return_dict_in_generate) == ((4, 5), True)


def test_options_that_an_old_config_json_held_are_taken_and_negative_ids_are_none() -> None:
    held = {"do_sample": True, "top_k": 5, "max_length": 50, "num_beam_groups": 1, "task_specific_params": {"a": 1}}
    config = GenerationConfig.from_model_config(
        GPT2Config.from_dict({**held, "pad_token_id": -1, "eos_token_id": [-1, 4], "bos_token_id": -1})
    )
    assert config == GenerationConfig(do_sample=True, top_k=5, max_length=50, eos_token_id=4)


def test_a_checkpoint_without_the_file_gives_what_its_config_says(tmp_path: Path) -> None:
    GPT2Config(eos_token_id=7, bos_token_id=8).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(eos_token_id=7, bos_token_id=8)
    GenerationConfig(top_k=3).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == GenerationConfig(top_k=3)
    assert GenerationConfig.from_pretrained(tmp_path, top_p=0.5) == GenerationConfig(top_k=3, top_p=0.5)


def test_where_to_look_is_handed_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GenerationConfig(top_k=3).save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def resolve(name: str, **options: Any) -> hub.Snapshot:
        asked.update(options, name=name)
        return hub.Snapshot(tmp_path, "abc")

    monkeypatch.setattr(hub, "resolve", resolve)
    where: dict[str, Any] = {
        "revision": "main",
        "cache_dir": "there",
        "local_files_only": True,
        "token": "t",
        "endpoint": "http://127.0.0.1",
    }
    assert GenerationConfig.from_pretrained("some/gpt2", **where) == GenerationConfig(top_k=3)
    assert asked == {"name": "some/gpt2", "patterns": ("generation_config.json", "config.json"), **where}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 3}, ["'temprature'", "'temperature'"]),
        ({"qqqq": 3}, ["'qqqq'", "extra="]),
        ({"logits_processor": [1]}, ["logits_processor", "argument of generate()"]),
        ({"max_length": 0}, ["max_length=0", "positive integer"]),
        ({"max_new_tokens": True}, ["max_new_tokens=True", "positive integer"]),
        ({"min_length": -1}, ["min_length=-1", "from 0"]),
        ({"min_new_tokens": 1.5}, ["min_new_tokens=1.5", "from 0"]),
        ({"early_stopping": "always"}, ["early_stopping='always'", "'never'"]),
        ({"early_stopping": 1}, ["early_stopping=1", "true, false"]),
        ({"max_time": 0}, ["max_time=0", "seconds"]),
        ({"stop_strings": ["a", ""]}, ["stop_strings=['a', '']", "none of them empty"]),
        ({"stop_strings": 3}, ["stop_strings=3", "string"]),
        ({"do_sample": "yes"}, ["do_sample='yes'", "true or false"]),
        ({"num_beams": 0}, ["num_beams=0", "positive"]),
        ({"cache_implementation": "quantized"}, ["'quantized'", "'dynamic', 'static'"]),
        ({"temperature": 0.0}, ["temperature=0.0", "do_sample=False"]),
        ({"temperature": -1}, ["temperature=-1", "positive"]),
        ({"temperature": math.nan}, ["temperature=nan", "positive"]),
        ({"top_k": -1}, ["top_k=-1", "from 0"]),
        ({"top_p": 0.0}, ["top_p=0.0", "(0, 1]"]),
        ({"top_p": 1.5}, ["top_p=1.5", "(0, 1]"]),
        ({"min_p": -0.1}, ["min_p=-0.1", "[0, 1]"]),
        ({"top_h": 0}, ["top_h=0", "(0, 1]"]),
        ({"typical_p": 2}, ["typical_p=2", "(0, 1]"]),
        ({"epsilon_cutoff": 1.0}, ["epsilon_cutoff=1.0", "[0, 1)"]),
        ({"eta_cutoff": -1}, ["eta_cutoff=-1", "[0, 1)"]),
        ({"repetition_penalty": 0}, ["repetition_penalty=0", "positive"]),
        ({"length_penalty": math.inf}, ["length_penalty=inf", "finite"]),
        ({"bad_words_ids": []}, ["bad_words_ids=[]", "none of them empty"]),
        ({"bad_words_ids": [[]]}, ["bad_words_ids=[[]]", "none of them empty"]),
        ({"bad_words_ids": [1]}, ["bad_words_ids=[1]", "list of lists"]),
        ({"sequence_bias": {}}, ["sequence_bias=[]", "mapping"]),
        ({"sequence_bias": {"1": 2.0}}, ["sequence_bias", "'1'", "tuples"]),
        ({"sequence_bias": {(1, -2): 2.0}}, ["sequence_bias", "-2", "token ids"]),
        ({"sequence_bias": [[[1], math.inf]]}, ["sequence_bias", "inf", "numbers"]),
        ({"exponential_decay_length_penalty": [3]}, ["exponential_decay_length_penalty=[3]", "pair"]),
        ({"suppress_tokens": 3}, ["suppress_tokens=3", "list of token ids"]),
        ({"bos_token_id": [1]}, ["bos_token_id=[1]", "token id"]),
        ({"eos_token_id": []}, ["eos_token_id=[]", "token id"]),
        ({"eos_token_id": -1}, ["eos_token_id=[-1]", "or null"]),
        ({"pad_token_id": 1.0}, ["pad_token_id=1.0", "token id"]),
        ({"num_return_sequences": 2}, ["num_return_sequences=2", "do_sample=True", "num_beams"]),
        ({"num_return_sequences": 3, "num_beams": 2}, ["num_return_sequences=3", "num_beams=2"]),
        ({"num_return_sequences": 3, "num_beams": 2, "do_sample": True}, ["num_return_sequences=3", "num_beams=2"]),
        ({"forced_eos_token_id": [1, 2], "suppress_tokens": [1, 2, 3]}, ["forced_eos_token_id=[1, 2]", "suppress"]),
        ({"forced_bos_token_id": 0, "suppress_tokens": [0]}, ["forced_bos_token_id=0", "suppress_tokens"]),
        ({"guidance_scale": 1.5}, ["guidance_scale=1.5", "not offered", "null or 1"]),
        ({"extra": 3}, ["extra=3", "mapping"]),
        ({"extra": {"top_k": 3}}, ["top_k", "as an option"]),
        ({"extra": {"a": [range(3)]}}, ["extra.a[0]", "range"]),
    ],
    ids=str,
)
def test_an_impossible_option_is_refused_with_value_and_remedy(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        GenerationConfig(**options)
    assert [word for word in words if word not in str(raised.value)] == []


def test_an_integer_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"temperature=1000.* positive number"):
        GenerationConfig(temperature=10**400)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not JSON"]),
        (b'{"top_k": 3', ["not JSON", "whole"]),
        (b"[1]", ["object", "list"]),
        (b"\xff\xfe", ["UTF-8"]),
        (b'{"top_k": "three"}', ["top_k='three'"]),
        (b'{"num_beam_groups": 2}', ["num_beam_groups=2", "not offered"]),
        (b'{"watermarking_config": {"bias": 2}}', ["watermarking_config={'bias': 2}", "not offered"]),
    ],
)
def test_a_bad_file_is_refused_by_name(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        GenerationConfig.from_pretrained(tmp_path)
    assert [word for word in [str(path), *words] if word not in str(raised.value)] == []


def test_a_folder_without_any_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json.*No such file"):
        GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        GenerationConfig.from_pretrained(tmp_path / "nothing")
