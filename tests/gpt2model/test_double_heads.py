"""The language-model head beside the multiple-choice head computes what transformers' does."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from gpt2model import DynamicCache, GPT2Config, GPT2DoubleHeadsModel, pack
from gpt2model.errors import ConfigError, InputError
from gpt2model.layers import ACTIVATIONS

from .oracle import (
    SIZES,
    UNTYPED,
    assert_checkpoints_go_both_ways,
    assert_close,
    assert_gradients_agree,
    assert_reads_alike,
    assert_same_weights_named,
    assert_states_agree,
    ours,
    padded,
    padded_ids,
    random_ids,
    theirs,
)
from .test_model import OPTIONS

NAME = "GPT2DoubleHeadsModel"
# Two rows of three choices, of nine positions at most.
LENGTHS = [9, 4, 1, 7, 9, 2]
IDS = random_ids(2, 3, 9)
PLACES = torch.tensor([[8, 3, 0], [6, 8, 1]])
LM_LABELS = IDS.where(padded(LENGTHS, 9, "right").view(2, 3, 9).bool(), -100)
LABELS = {"labels": LM_LABELS, "mc_labels": torch.tensor([2, 0])}
SUMMARIES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no projection": {"summary_use_proj": False},
    "projection to the width": {"summary_proj_to_labels": False},
    "tanh": {"summary_activation": "tanh"},
    "relu of the width": {"summary_activation": "relu", "summary_proj_to_labels": False},
    "no dropout": {"summary_first_dropout": 0.0},
}


def choices(side: str) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [2, 3, 9] each."""
    ids, mask = padded_ids(LENGTHS, 9, side)
    return ids.view(2, 3, 9), mask.view(2, 3, 9)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_both_logits_hidden_states_and_attentions_equal_transformers(
    options: dict[str, Any], attn_implementation: str, side: str
) -> None:
    model = ours(NAME, attn_implementation=attn_implementation, **options)
    ids, mask = choices(side)
    places = PLACES if side == "right" else None
    asked = {"attention_mask": mask, "mc_token_ids": places, "output_hidden_states": True}
    fused = model(ids, **asked)
    weighed = model(ids, **asked, output_attentions=True)
    expected = theirs(model)(ids, **asked, output_attentions=True)
    for actual in (fused, weighed):
        assert_close(actual.logits, expected.logits, mask)
        assert_close(actual.mc_logits, expected.mc_logits)
    assert_states_agree(weighed, expected, mask)


@pytest.mark.parametrize("places", [PLACES, PLACES.int(), None], ids=["given", "given in 32 bits", "the last"])
@pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES)
def test_every_summary_of_choices_equals_transformers(summary: dict[str, Any], places: Tensor | None) -> None:
    model = ours(NAME, **summary)
    expected = theirs(model)(IDS, mc_token_ids=None if places is None else places.long())
    assert_close(model(IDS, mc_token_ids=places).mc_logits, expected.mc_logits)


@pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES)
@pytest.mark.parametrize("summary_type", ["cls_index", "last", "first", "mean"])
def test_every_summary_of_plain_rows_equals_transformers(summary_type: str, summary: dict[str, Any]) -> None:
    model = ours(NAME, summary_type=summary_type, **summary)
    ids, places = random_ids(3, 9), torch.tensor([8, 0, 5])
    actual = model(ids, mc_token_ids=places)
    assert_close(actual.mc_logits, theirs(model)(ids, mc_token_ids=places).mc_logits)


@pytest.mark.parametrize("summary_type", ["last", "first", "mean"])
def test_summaries_of_choices_are_taken_over_positions_unlike_in_transformers(summary_type: str) -> None:
    model = ours(NAME, summary_type=summary_type)
    oracle = theirs(model)
    actual = model(IDS).mc_logits
    rows = oracle(IDS.flatten(0, 1)).mc_logits.view(2, 3)
    assert_close(actual, rows)
    # transformers takes one choice, or the mean of the choices, at every position.
    assert oracle(IDS).mc_logits.shape == (2, 9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_the_summary_equals_transformers(name: str) -> None:
    model = ours(NAME, n_layer=1, summary_activation=name)
    assert_close(model(IDS).mc_logits, theirs(model)(IDS).mc_logits)


@pytest.mark.parametrize(
    ("summary", "error"),
    [({"summary_type": "attn"}, NotImplementedError), ({"summary_activation": "tahn"}, KeyError)],
    ids=["attn", "unknown activation"],
)
def test_summaries_that_there_are_not_are_config_errors(summary: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        transformers.GPT2DoubleHeadsModel(transformers.GPT2Config(**SIZES, **summary))
    with pytest.raises(ConfigError, match=next(iter(summary.values()))):
        ours(NAME, **summary)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("asked", [["labels"], ["mc_labels"], ["labels", "mc_labels"]])
def test_losses_and_their_gradients_equal_transformers(asked: list[str], tied: bool) -> None:
    model = ours(NAME, tie_word_embeddings=tied)
    oracle = theirs(model)
    ids, mask = choices("right")
    given = {"attention_mask": mask, "mc_token_ids": PLACES, **{name: LABELS[name] for name in asked}}
    actual, expected = model(ids, **given), oracle(ids, **given)
    for name, loss in (("labels", "loss"), ("mc_labels", "mc_loss")):
        assert (getattr(actual, loss) is not None) == (name in asked)
        if name in asked:
            assert_close(getattr(actual, loss), getattr(expected, loss))
    for output in (actual, expected):
        sum(loss for loss in (output.loss, output.mc_loss) if loss is not None).backward()
    assert_gradients_agree(model, oracle)


@pytest.mark.parametrize("mc_labels", [[-100, 1], [[2], [0]]], ids=["one ignored", "a column"])
def test_choice_labels_are_understood_as_in_transformers(mc_labels: list[Any]) -> None:
    model = ours(NAME)
    given = {"mc_labels": torch.tensor(mc_labels)}
    assert_close(model(IDS, **given).mc_loss, theirs(model)(IDS, **given).mc_loss)


def test_plain_rows_are_the_choices_of_one_question_as_in_transformers() -> None:
    model = ours(NAME)
    given = {"labels": IDS[0], "mc_labels": torch.tensor([1])}
    actual, expected = model(IDS[0], **given), theirs(model)(IDS[0], **given)
    assert actual.mc_logits.shape == (3,)
    assert_close(actual.mc_logits, expected.mc_logits)
    assert_close(actual.loss, expected.loss)
    assert_close(actual.mc_loss, expected.mc_loss)


def test_position_ids_token_types_and_embeddings_equal_transformers() -> None:
    model = ours(NAME)
    ids, mask = choices("right")
    types = random_ids(2, 3, 9, seed=1)
    positions = torch.arange(9).flip(0).expand(6, 9)
    given = {"attention_mask": mask, "token_type_ids": types, "position_ids": positions, "mc_token_ids": PLACES}
    expected = theirs(model)(ids, **given)
    for actual in (model(ids, **given), model(inputs_embeds=model.get_input_embeddings()(ids), **given)):
        assert_close(actual.logits, expected.logits, mask)
        assert_close(actual.mc_logits, expected.mc_logits)


def test_position_ids_may_have_the_shape_of_the_choices_unlike_in_transformers() -> None:
    model = ours(NAME)
    positions = torch.arange(9).flip(0).expand(2, 3, 9)
    with pytest.raises(RuntimeError):
        theirs(model)(IDS, position_ids=positions)
    expected = theirs(model)(IDS, position_ids=positions.flatten(0, 1))
    assert_close(model(IDS, position_ids=positions).mc_logits, expected.mc_logits)


def test_steps_with_a_cache_equal_transformers() -> None:
    model = ours(NAME)
    oracle = theirs(model)
    ids, mask = choices("left")
    cache, oracle_cache = DynamicCache(), transformers.DynamicCache()
    for start, end in ((0, 5), (5, 6), (6, 9)):
        given = {"input_ids": ids[..., start:end], "attention_mask": mask[..., :end], "use_cache": True}
        actual = model(**given, past_key_values=cache)
        expected = oracle(**given, past_key_values=oracle_cache)
        assert_close(actual.logits, expected.logits, mask[..., start:end])
    assert_close(actual.mc_logits, expected.mc_logits)


def test_cross_attention_equals_transformers() -> None:
    model = ours(NAME, add_cross_attention=True)
    states = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    given = {"encoder_hidden_states": states, "encoder_attention_mask": padded([5, 3, 1], 5, "right")}
    actual, expected = model(IDS[0], **given), theirs(model)(IDS[0], **given)
    assert_close(actual.logits, expected.logits)
    assert_close(actual.mc_logits, expected.mc_logits)


@pytest.mark.parametrize("labels", [[], ["labels"], ["mc_labels"], ["labels", "mc_labels"]])
@pytest.mark.parametrize("asked", [{}, {"use_cache": False}, {"output_attentions": True, "output_hidden_states": True}])
def test_outputs_read_like_transformers(asked: dict[str, bool], labels: list[str]) -> None:
    model = ours(NAME)
    assert_reads_alike(model, theirs(model), {"input_ids": IDS, **asked, **{name: LABELS[name] for name in labels}})
    assert isinstance(ours(NAME, return_dict=False)(IDS), tuple)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_in_half_precision_unlike_in_transformers(dtype: torch.dtype) -> None:
    model = ours(NAME).to(dtype)
    actual, expected = model(IDS, **LABELS), theirs(model).to(dtype)(IDS, **LABELS)
    assert actual.logits.dtype == actual.mc_logits.dtype == expected.logits.dtype == dtype
    for name in ("loss", "mc_loss"):
        assert getattr(actual, name).dtype == torch.float32
        assert getattr(expected, name).dtype == dtype
        assert_close(getattr(actual, name), getattr(expected, name).float(), tolerance=5e-2)


@pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES)
@pytest.mark.parametrize("tied", [True, False])
def test_state_dict_has_the_names_and_shapes_of_transformers(tied: bool, summary: dict[str, Any]) -> None:
    model = ours(NAME, tie_word_embeddings=tied, **summary)
    assert_same_weights_named(model, theirs(model))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("summary", [{}, {"summary_use_proj": False}, {"summary_type": "mean"}])
def test_checkpoints_go_both_ways(summary: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    model = ours(NAME, tie_word_embeddings=tied, **summary)
    rows = IDS[0]
    assert_checkpoints_go_both_ways(model, tmp_path / "choices", lambda each: each(rows).mc_logits)
    assert_checkpoints_go_both_ways(model, tmp_path / "tokens", lambda each: each(rows).logits)


def test_the_config_has_one_label_and_the_callers_keeps_its_own_unlike_in_transformers() -> None:
    config = GPT2Config(**SIZES, num_labels=3)
    model = GPT2DoubleHeadsModel(config)
    assert model.config.num_labels == model.transformer.config.num_labels == 1
    assert config.num_labels == 3
    written_to = transformers.GPT2Config(**SIZES, num_labels=3)
    transformers.GPT2DoubleHeadsModel(written_to)
    assert written_to.num_labels == 1


@pytest.mark.parametrize("option", ["summary_first_dropout", "summary_last_dropout"])
def test_each_dropout_of_the_summary_acts_in_training_only(option: str) -> None:
    none = {"summary_first_dropout": 0.0, "summary_last_dropout": 0.0}
    model = ours(NAME, **{**none, option: 0.5}, summary_use_proj=False)
    still = model(IDS).mc_logits
    assert torch.equal(model(IDS).mc_logits, still)
    model.multiple_choice_head.train()
    assert not torch.equal(model(IDS).mc_logits, still)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="mc_token_id"):
        ours(NAME)(IDS, mc_token_id=PLACES)


@pytest.mark.parametrize("by_onednn", [True, False], ids=["oneDNN", "torch.mm"])
@pytest.mark.parametrize("summary_type", ["cls_index", "last", "first", "mean"])
def test_packed_choices_equal_those_alone(summary_type: str, by_onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2model.onednn._is_better", lambda: by_onednn)
    model = ours(NAME, summary_type=summary_type)
    sequences = [random_ids(length, seed=length) for length in (9, 40, 9, 1)]
    packed = model.choice_logits(pack(sequences))
    assert not packed.requires_grad
    assert_close(packed, torch.cat([model(ids[None]).mc_logits for ids in sequences]))


def test_nothing_is_chosen_from_an_empty_sequence() -> None:
    with pytest.raises(InputError, match="sequence 0 of the pack is empty"):
        ours(NAME).choice_logits(pack([[], [1]]))
    assert ours(NAME).choice_logits(pack([])).shape == (0,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mc_token_ids": PLACES + 1}, "mc_token_ids hold 9, the input's length is 9"),
        ({"mc_token_ids": PLACES - 1}, "mc_token_ids hold -1, the input's length is 9"),
        ({"mc_token_ids": PLACES[0]}, r"mc_token_ids of shape \(3,\): one position for each of \(2, 3\)"),
        ({"mc_token_ids": PLACES.float()}, "mc_token_ids are torch.float32"),
        ({"mc_labels": torch.tensor([0, 3])}, "mc_labels hold 3, choices is 3"),
        ({"mc_labels": torch.tensor([0, -1])}, "mc_labels hold -1, choices is 3"),
        ({"mc_labels": torch.tensor([0])}, r"mc_labels of shape \(1,\): logits of shape \(2, 3\) need one for each"),
        ({"mc_labels": torch.rand(2)}, "mc_labels are torch.float32"),
        ({"labels": IDS + 97}, r"labels hold \d+, vocab_size is 97"),
        ({"labels": IDS[..., 1:]}, r"labels of shape \(2, 3, 8\): logits are kept for \(2, 3, 9\)"),
    ],
)
def test_places_and_labels_that_do_not_fit_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    model = ours(NAME)
    with pytest.raises(UNTYPED):
        theirs(model)(IDS, **given)
    with pytest.raises(InputError, match=message):
        model(IDS, **given)
