"""A checkpoint is loaded as the class it was saved from."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from gpt2model import AutoGPT2, GPT2Config, GPT2LMHeadModel
from gpt2model.auto import ARCHITECTURES
from gpt2model.errors import ConfigError, WeightsMismatch

from .oracle import SIZES, assert_close, ours, random_ids, theirs

IDS = random_ids(1, 6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_class_comes_back_from_what_it_saved(name: str, tmp_path: Path) -> None:
    model = ours(name)
    model.save_pretrained(tmp_path)
    loaded = AutoGPT2.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_close(loaded(IDS)[0], model(IDS)[0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_class_of_transformers_comes_as_its_namesake(name: str, tmp_path: Path) -> None:
    oracle = theirs(ours(name))
    oracle.save_pretrained(tmp_path)
    loaded = AutoGPT2.from_pretrained(tmp_path)
    assert type(loaded).__name__ == type(oracle).__name__ == name
    assert_close(loaded(IDS)[0], oracle(IDS)[0])


def test_there_is_a_class_for_every_model_of_transformers() -> None:
    module = transformers.models.gpt2.modeling_gpt2
    assert set(ARCHITECTURES) == set(module.__all__) - {"GPT2PreTrainedModel"}


def test_options_are_passed_on(tmp_path: Path) -> None:
    ours().save_pretrained(tmp_path)
    loaded = AutoGPT2.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="dtyp"):
        AutoGPT2.from_pretrained(tmp_path, dtyp=torch.bfloat16)


def test_a_config_that_is_given_decides_the_class(tmp_path: Path) -> None:
    ours().save_pretrained(tmp_path)
    config = GPT2Config(**SIZES, architectures=["GPT2Model"])
    assert type(AutoGPT2.from_pretrained(tmp_path, config=config)).__name__ == "GPT2Model"
    headless = GPT2Config(**SIZES, architectures=["GPT2ForTokenClassification"])
    with pytest.raises(WeightsMismatch, match=r"classifier\.weight"):
        AutoGPT2.from_pretrained(tmp_path, config=headless)


def test_the_first_known_architecture_counts() -> None:
    config = GPT2Config(**SIZES, architectures=["GPT2Custom", "GPT2LMHeadModel", "GPT2Model"])
    assert AutoGPT2.class_of(config) is GPT2LMHeadModel


@pytest.mark.parametrize(
    ("architectures", "said"),
    [(None, "names none"), ([], "names none"), (["BertModel", "TFGPT2Model"], "names BertModel, TFGPT2Model")],
)
def test_a_config_without_a_known_architecture_is_refused(
    architectures: list[str] | None, said: str, tmp_path: Path
) -> None:
    ours().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": architectures}))
    with pytest.raises(ConfigError, match=f"{said}: load the checkpoint by the class .* GPT2Model, GPT2LMHeadModel"):
        AutoGPT2.from_pretrained(tmp_path)
