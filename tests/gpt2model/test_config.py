"""GPT2Config against transformers' own, through JSON both ways, and its refusals."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from gpt2model.config import ALIASES, GPT2Config
from gpt2model.errors import CheckpointError, ConfigError

# The config.json of OpenAI's first release, as the Hub has it.
OLD_GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}

# Each option away from its default, one set at a time.
VARIATIONS: list[dict[str, Any]] = [
    {},
    {"vocab_size": 99, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 100},
    {"hidden_size": 48, "max_position_embeddings": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    {"activation_function": "relu", "resid_pdrop": 0.0, "embd_pdrop": 0, "attn_pdrop": 1.0},
    {"layer_norm_epsilon": 1e-12, "initializer_range": 0.5, "chunk_size_feed_forward": 2},
    {"summary_type": "mean", "summary_use_proj": False, "summary_activation": "tanh", "summary_first_dropout": 0.0},
    {"summary_proj_to_labels": False, "problem_type": "regression", "num_labels": 1},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    {"add_cross_attention": True, "tie_word_embeddings": False, "use_cache": False, "return_dict": False},
    {"output_hidden_states": True, "output_attentions": True, "is_encoder_decoder": True},
    {"bos_token_id": None, "eos_token_id": [3, 4], "pad_token_id": -1},
    {"num_labels": 5, "problem_type": "multi_label_classification"},
    {"id2label": {0: "down", 1: "flat", 2: "up"}, "label2id": {"down": 0, "flat": 1, "up": 2}},
    {"dtype": "float16", "architectures": ["GPT2Model"]},
    {"torch_dtype": "bfloat16"},
]


def as_json(config: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return parsed


def oracle_as_json(config: transformers.GPT2Config) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return parsed


def test_every_option_of_transformers_is_here_with_its_default() -> None:
    theirs = oracle_as_json(transformers.GPT2Config())
    del theirs["transformers_version"], theirs["_name_or_path"]
    ours = as_json(GPT2Config())
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("options", VARIATIONS, ids=lambda options: "-".join(options) or "defaults")
def test_config_means_the_same_in_transformers_and_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = GPT2Config(**options), transformers.GPT2Config(**options)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert GPT2Config.from_pretrained(tmp_path / "ours") == ours

    read_by_them = oracle_as_json(transformers.GPT2Config.from_pretrained(tmp_path / "ours"))
    wanted = oracle_as_json(theirs)
    assert {name: read_by_them[name] for name in wanted} == wanted

    read_by_us = as_json(GPT2Config.from_pretrained(tmp_path / "theirs"))
    assert {**read_by_us, "transformers_version": None} == {**as_json(ours), "transformers_version": None}


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_taken_and_readable(alias: str) -> None:
    value = torch.float64 if alias == "torch_dtype" else 24
    config = GPT2Config(**{"n_embd": 24, "n_head": 24, alias: value})
    assert getattr(config, alias) == getattr(config, ALIASES[alias]) == value


def test_an_old_file_of_gpt2_loads_and_keeps_what_it_said_beside_the_options() -> None:
    config = GPT2Config.from_dict(OLD_GPT2)
    assert (config.n_ctx, config.architectures) == (1024, ("GPT2LMHeadModel",))
    assert config.extra["task_specific_params"]["text-generation"]["max_length"] == 50
    written = json.loads(config.to_json_string())
    assert {name: written[name] for name in OLD_GPT2} == OLD_GPT2


def test_a_file_that_says_torch_dtype_and_null_switches_loads() -> None:
    config = GPT2Config.from_dict({"torch_dtype": "float16", "output_attentions": None, "return_dict": None})
    assert (config.dtype, config.output_attentions, config.return_dict) == (torch.float16, False, True)
    assert json.loads(config.to_json_string())["dtype"] == "float16"


def test_the_real_trained_checkpoint_s_config_loads(mgm_folder: Path) -> None:
    config = GPT2Config.from_pretrained(mgm_folder)
    assert (config.n_layer, config.n_embd, config.vocab_size, config.dtype) == (8, 256, 9669, torch.float32)
    assert config.extra == {"transformers_version": "4.33.3"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1).map(lambda name: f"their_{name}"), json_values, max_size=4))
def test_unknown_keys_survive_a_round_trip(unknown: dict[str, Any]) -> None:
    config = GPT2Config.from_dict({"n_layer": 3, **unknown})
    again = GPT2Config.from_dict(json.loads(config.to_json_string()))
    assert again == config
    assert {name: again.to_dict()[name] for name in unknown} == unknown


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copy_is_equal(copied: Any) -> None:
    config = GPT2Config(num_labels=3, eos_token_id=[1, 2], dtype="float16", extra={"a": {"b": [1]}})
    assert copied(config) == config


def test_nothing_in_a_config_can_be_changed() -> None:
    given_extra = {"a": {"b": [1]}}
    config = GPT2Config(extra=given_extra)
    given_extra["a"]["b"].append(2)
    assert config.extra["a"]["b"] == (1,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 3  # type: ignore[misc]  # the assignment is what is tested
    for mapping in (config.extra, config.extra["a"], config.id2label, config.label2id):
        with pytest.raises(TypeError):
            mapping["new"] = 1
    config.to_dict()["id2label"][7] = "new"
    assert config == GPT2Config(extra={"a": {"b": [1]}})


def test_replace_makes_a_changed_copy() -> None:
    config = GPT2Config(n_layer=3, extra={"kept": 1})
    changed = config.replace(hidden_size=24, pad_token_id=0)
    assert (changed.n_embd, changed.n_layer, changed.pad_token_id) == (24, 3, 0)
    assert (config.n_embd, changed.extra) == (768, {"kept": 1})
    assert changed != config


@pytest.mark.parametrize(
    ("options", "id2label", "label2id"),
    [
        ({}, {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}),
        ({"num_labels": 1}, {0: "LABEL_0"}, {"LABEL_0": 0}),
        ({"id2label": {"1": "b", "0": "a"}}, {0: "a", 1: "b"}, {"a": 0, "b": 1}),
        ({"label2id": {"b": 1, "a": "0"}}, {0: "a", 1: "b"}, {"a": 0, "b": 1}),
        ({"id2label": {0: "O", 1: "O"}, "label2id": {"O": 0}}, {0: "O", 1: "O"}, {"O": 0}),
        ({"num_labels": 2, "id2label": None, "label2id": None}, {0: "LABEL_0", 1: "LABEL_1"}, None),
    ],
)
def test_labels_follow_from_what_is_given(options: Any, id2label: Any, label2id: Any) -> None:
    config = GPT2Config(**options)
    assert (config.id2label, config.num_labels) == (id2label, len(id2label))
    assert label2id is None or config.label2id == label2id


def test_replacing_one_label_option_lets_the_others_follow() -> None:
    config = GPT2Config(id2label={0: "a", 1: "b"}).replace(num_labels=3)
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert config.replace(id2label={0: "only"}).label2id == {"only": 0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_emb": 3}, ["'n_emb'", "'n_embd'"]),
        ({"hiden_size": 3}, ["'hiden_size'", "'hidden_size'"]),
        ({"qqqq": 3}, ["'qqqq'", "extra="]),
        ({"hidden_size": 24, "n_embd": 36}, ["hidden_size=24", "n_embd=36", "one value"]),
        ({"n_embd": 770}, ["n_embd=770", "n_head=12", "multiple"]),
        ({"n_layer": 0}, ["n_layer=0", "positive"]),
        ({"n_head": True}, ["n_head=True", "positive integer"]),
        ({"vocab_size": "12"}, ["vocab_size='12'", "positive integer"]),
        ({"n_inner": -1}, ["n_inner=-1", "null"]),
        ({"resid_pdrop": 1.2}, ["resid_pdrop=1.2", "[0, 1]"]),
        ({"classifier_dropout": "x"}, ["classifier_dropout='x'", "[0, 1]"]),
        ({"layer_norm_epsilon": float("nan")}, ["layer_norm_epsilon=nan", "finite"]),
        ({"summary_type": "cls"}, ["summary_type='cls'", "cls_index"]),
        ({"problem_type": "binary"}, ["problem_type='binary'", "regression"]),
        ({"problem_type": "single_label_classification", "num_labels": 1}, ["num_labels of 2", "regression"]),
        ({"use_cache": "yes"}, ["use_cache='yes'", "true or false"]),
        ({"eos_token_id": []}, ["eos_token_id=[]", "token id"]),
        ({"bos_token_id": 1.5}, ["bos_token_id=1.5", "token id"]),
        ({"dtype": "float17"}, ["dtype='float17'", "float32"]),
        ({"dtype": torch.int8}, ["torch.int8", "float32"]),
        ({"architectures": [3]}, ["architectures=[3]", "class names"]),
        ({"num_labels": 0}, ["num_labels=0", "positive"]),
        ({"num_labels": 3, "id2label": {0: "a"}}, ["num_labels=3", "['a']", "drop one"]),
        ({"id2label": {1: "a", 2: "b"}}, ["0 to 1", "[1, 2]"]),
        ({"id2label": {"x": "a"}}, ["id2label", "'x'", "integers"]),
        ({"id2label": ["a"]}, ["id2label=['a']", "map"]),
        ({"label2id": 3}, ["label2id=3", "map"]),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, ["'a' is 1", "1 is 'b'"]),
        ({"extra": 3}, ["extra=3", "mapping"]),
        ({"extra": {"n_layer": 3}}, ["n_layer", "as an option"]),
        ({"extra": {"a": [range(3)]}}, ["extra.a[0]", "range", "config.json"]),
    ],
    ids=str,
)
def test_an_impossible_option_is_refused_with_value_and_remedy(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        GPT2Config(**options)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not JSON"]),
        (b'{"n_layer": 3', ["not JSON", "whole"]),
        (b"[1]", ["object", "list"]),
        (b"\xff\xfe", ["UTF-8"]),
        (b'{"model_type": "llama"}', ["'llama'", "'gpt2'"]),
        (b'{"n_layer": "three"}', ["n_layer='three'"]),
    ],
)
def test_a_bad_file_is_refused_by_name(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        GPT2Config.from_pretrained(tmp_path)
    assert [word for word in [str(path), *words] if word not in str(raised.value)] == []


def test_a_folder_without_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json.*No such file"):
        GPT2Config.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        GPT2Config.from_pretrained(tmp_path / "nothing")


def test_from_pretrained_applies_changes(tmp_path: Path) -> None:
    GPT2Config(n_layer=3).save_pretrained(tmp_path)
    assert GPT2Config.from_pretrained(tmp_path, num_labels=4) == GPT2Config(n_layer=3, num_labels=4)
    with pytest.raises(ConfigError, match=r"'n_layers'.*'n_layer'"):
        GPT2Config.from_pretrained(tmp_path, n_layers=4)


def test_a_width_that_heads_cannot_share_is_refused_at_once() -> None:
    narrow = transformers.GPT2Config(n_embd=37, n_head=12)
    with pytest.raises(ValueError, match="divisible"):
        transformers.GPT2Model(narrow)
    with pytest.raises(ConfigError, match="n_embd=37 must be a multiple of n_head=12"):
        GPT2Config(n_embd=37, n_head=12)


def test_numbers_of_labels_may_be_text() -> None:
    given: dict[str, Any] = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": "0", "yes": "1"}}
    assert transformers.GPT2Config(**given).label2id == {"no": "0", "yes": "1"}
    assert GPT2Config(**given).label2id == {"no": 0, "yes": 1}
