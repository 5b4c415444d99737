"""GPT2Model and GPT2LMHeadModel compute what transformers' compute, and refuse what cannot be meant."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Model
from gpt2model.errors import ConfigError, InputError
from gpt2model.layers import ACTIVATIONS

from .oracle import SIZES, assert_close, ours, padded, random_ids, theirs

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer": {"n_layer": 1},
    "one head": {"n_head": 1},
    "narrow inner layer": {"n_inner": 24},
    "scaled by inverse layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "upcast": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "wide epsilon": {"layer_norm_epsilon": 0.1},
}
LENGTHS = [9, 4, 1]


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_hidden_states_attentions_and_logits_equal_transformers(
    options: dict[str, Any], attn_implementation: str, side: str
) -> None:
    model = ours(attn_implementation=attn_implementation, **options)
    ids = random_ids(3, 9)
    mask = None if side == "none" else padded(LENGTHS, 9, side)
    real = torch.ones(3, 9) if mask is None else mask
    asked = {"attention_mask": mask, "output_hidden_states": True}
    fused = model(ids, **asked)
    weighed = model(ids, **asked, output_attentions=True)
    expected = theirs(model)(ids, **asked, output_attentions=True)
    for actual in (fused, weighed):
        assert_close(actual.logits, expected.logits, real)
        assert len(actual.hidden_states) == len(expected.hidden_states)
        for state, expected_state in zip(actual.hidden_states, expected.hidden_states, strict=True):
            assert_close(state, expected_state, real)
    assert fused.attentions is None
    for weights, expected_weights in zip(weighed.attentions, expected.attentions, strict=True):
        assert_close(weights.transpose(1, 2), expected_weights.transpose(1, 2), real)


@pytest.mark.parametrize("name", ["GPT2Model", "GPT2LMHeadModel"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("crossed", [True, False])
def test_state_dict_has_the_names_and_shapes_of_transformers(name: str, tied: bool, crossed: bool) -> None:
    model = ours(name, tie_word_embeddings=tied, add_cross_attention=crossed)
    oracle = theirs(model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in oracle.state_dict().items()}
    assert list(shapes) == list(oracle.state_dict())
    model.load_state_dict(oracle.state_dict())


def test_trained_checkpoint_equals_transformers_and_continues_as_recorded(mgm_folder: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(mgm_folder)
    oracle = transformers.GPT2LMHeadModel.from_pretrained(mgm_folder, attn_implementation="eager").eval()
    ids = torch.randint(4, model.config.vocab_size, (3, 60), generator=torch.Generator().manual_seed(0))
    mask = padded([60, 31, 2], 60, "left")
    actual, expected = model(ids, attention_mask=mask), oracle(ids, attention_mask=mask)
    assert_close(actual.logits, expected.logits, mask)
    continued = torch.tensor([[2]])
    for _ in range(11):
        continued = torch.cat((continued, model(continued).logits[:, -1:].argmax(-1)), dim=1)
    assert continued[0].tolist() == [2, 964, 6350, 320, 3317, 7829, 239, 3514, 8688, 4401, 4227, 6228]


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("encoder_lengths", [None, [5, 5, 5], [5, 3, 1]])
def test_cross_attention_equals_transformers(attn_implementation: str, encoder_lengths: list[int] | None) -> None:
    model = ours(attn_implementation=attn_implementation, add_cross_attention=True)
    ids, states = random_ids(3, 9), torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    mask = padded(LENGTHS, 9, "left")
    encoder_mask = None if encoder_lengths is None else padded(encoder_lengths, 5, "right")
    given = {"attention_mask": mask, "encoder_hidden_states": states, "encoder_attention_mask": encoder_mask}
    expected = theirs(model)(ids, **given, output_attentions=True)
    assert_close(model(ids, **given).logits, expected.logits, mask)
    weighed = model(ids, **given, output_attentions=True)
    assert len(weighed.cross_attentions) == model.config.n_layer
    for weights, expected_weights in zip(weighed.cross_attentions, expected.cross_attentions, strict=True):
        assert_close(weights.transpose(1, 2), expected_weights.transpose(1, 2), mask)


def test_model_with_cross_attention_runs_without_an_encoder_as_transformers_does() -> None:
    model = ours(add_cross_attention=True)
    assert_close(model(random_ids(2, 6)).logits, theirs(model)(random_ids(2, 6)).logits)


def test_embeddings_in_place_of_ids_give_the_same() -> None:
    model = ours()
    ids = random_ids(2, 7)
    embeds = model.get_input_embeddings()(ids)
    assert_close(model(inputs_embeds=embeds).logits, model(ids).logits, tolerance=1e-6)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}])
@pytest.mark.parametrize(
    "position_ids", [[[0, 1, 2, 3, 4, 5]], [[4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5]], [[0, 1, 2, 0, 1, 9]], [[3] * 6]]
)
def test_position_and_token_type_ids_equal_transformers(options: dict[str, Any], position_ids: list[list[int]]) -> None:
    model = ours()
    ids = random_ids(2, 6)
    given = {"position_ids": torch.tensor(position_ids), "token_type_ids": random_ids(2, 6, seed=1), **options}
    assert_close(model(ids, **given).logits, theirs(model)(ids, **given).logits)


def test_restarting_positions_keep_sequences_apart_without_a_cache() -> None:
    model = ours()
    first, second = random_ids(1, 4), random_ids(1, 3, seed=1)
    together = model(
        torch.cat((first, second), dim=1), position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2]]), use_cache=False
    )
    assert_close(together.logits[:, 4:], model(second).logits)


def test_leading_dimensions_are_kept_as_in_transformers() -> None:
    model = ours()
    ids, types = random_ids(2, 3, 5), random_ids(2, 3, 5, seed=1)
    mask = padded([5, 4, 3, 2, 1, 5], 5, "right").view(2, 3, 5)
    given = {"attention_mask": mask, "token_type_ids": types, "output_hidden_states": True}
    actual, expected = model(ids, **given), theirs(model)(ids, **given)
    assert_close(actual.logits, expected.logits, mask)
    assert [state.shape for state in actual.hidden_states] == [state.shape for state in expected.hidden_states]


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_ready_made_mask_is_used_as_it_is(attn_implementation: str, kind: torch.dtype) -> None:
    model = ours(attn_implementation=attn_implementation)
    ids = random_ids(2, 6)
    seen = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    seen |= torch.eye(6, dtype=torch.bool)
    added = torch.zeros(2, 1, 6, 6).masked_fill(~seen, torch.finfo(torch.float32).min)
    actual = model(ids, attention_mask=seen if kind == torch.bool else added)
    assert_close(actual.logits, theirs(model)(ids, attention_mask=added).logits)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_transformers(name: str) -> None:
    model = ours("GPT2Model", n_layer=1, activation_function=name)
    actual, expected = model(random_ids(2, 5)), theirs(model)(random_ids(2, 5))
    assert_close(actual.last_hidden_state, expected.last_hidden_state)


def test_unknown_activation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'gelu_neu' is unknown; nearest is 'gelu_new'"):
        ours(activation_function="gelu_neu")


@pytest.mark.parametrize("name", ["GPT2Model", "GPT2LMHeadModel"])
@pytest.mark.parametrize(
    "asked",
    [{}, {"use_cache": False}, {"output_attentions": True}, {"output_hidden_states": True, "use_cache": False}],
)
def test_outputs_read_like_transformers_tuples(name: str, asked: dict[str, bool]) -> None:
    model = ours(name)
    record = model(random_ids(1, 4), **asked)
    expected = theirs(model)(random_ids(1, 4), **asked, return_dict=False)
    as_tuple = model(random_ids(1, 4), **asked, return_dict=False)
    assert [type(item).__name__ for item in as_tuple] == [type(item).__name__ for item in expected]
    assert_close(record[0], expected[0])
    assert len(record[:2]) == min(2, len(expected))
    with pytest.raises(IndexError):
        record[len(expected)]


def test_outputs_are_read_by_name_and_cannot_be_changed() -> None:
    record = ours()(random_ids(1, 4))
    assert record["logits"] is record.logits
    for name in ("loss", "nonsense"):
        with pytest.raises(KeyError, match=name):
            record[name]
    with pytest.raises(AttributeError):
        record.logits = None


def test_config_decides_what_the_call_leaves_open() -> None:
    record = ours(use_cache=False, output_attentions=True, output_hidden_states=True)(random_ids(1, 4))
    assert record.past_key_values is None
    assert len(record.attentions) == 3
    assert len(record.hidden_states) == 4
    assert isinstance(ours(return_dict=False)(random_ids(1, 4)), tuple)


IDS = random_ids(2, 5)
EMBEDS = torch.zeros(2, 5, 32)
STATES = torch.zeros(2, 3, 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": EMBEDS}, "either input_ids or inputs_embeds"),
        ({"input_ids": random_ids(1, 41)}, r"41 positions, n_positions is 40"),
        ({"input_ids": IDS + 97}, r"input_ids hold \d+, vocab_size is 97"),
        ({"input_ids": IDS - 98}, r"input_ids hold -\d+, vocab_size is 97"),
        ({"input_ids": IDS.float()}, r"input_ids are torch.float32"),
        ({"input_ids": IDS[0]}, r"input_ids of shape \(5,\)"),
        ({"input_ids": IDS[:, :0]}, r"input_ids of shape \(2, 0\)"),
        ({"inputs_embeds": EMBEDS[..., :31]}, r"inputs_embeds of shape \(2, 5, 31\): \[batch, length, 32\]"),
        ({"input_ids": IDS, "token_type_ids": IDS + 97}, "token_type_ids hold"),
        ({"input_ids": IDS, "position_ids": torch.full((1, 5), 40)}, "position_ids hold 40, n_positions is 40"),
        ({"input_ids": IDS, "position_ids": torch.zeros(1, 4, dtype=torch.long)}, "position_ids of shape"),
        (
            {"input_ids": IDS, "position_ids": torch.zeros(3, 5, dtype=torch.long)},
            r"\(3, 5\): the input has 2 rows",
        ),
        ({"input_ids": IDS, "token_type_ids": IDS[:, 1:]}, r"token_type_ids of shape \(2, 4\): the input has 2 rows"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, r"attention_mask of shape \(2, 4\): 2 rows of 5"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 4)}, r"does not fit \[2, heads, 5, 5\]"),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 5).long()}, "4-D attention_mask is boolean or"),
        ({"input_ids": IDS, "encoder_hidden_states": STATES}, "add_cross_attention=True"),
        ({"input_ids": IDS, "encoder_attention_mask": torch.ones(2, 3)}, "without encoder_hidden_states"),
        ({"input_ids": IDS, "past_key_values": ((EMBEDS, EMBEDS),)}, "past_key_values is a tuple"),
    ],
)
def test_contradicting_inputs_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ours()(**given)


def test_encoder_states_of_another_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"encoder_hidden_states of shape \(1, 3, 32\): \[2, length, 32\]"):
        ours(add_cross_attention=True)(IDS, encoder_hidden_states=STATES[:1])


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="cache_position"):
        ours()(IDS, cache_position=torch.arange(5))


def test_unknown_attention_implementation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'flash': choose one of eager, sdpa"):
        ours(attn_implementation="flash")


def test_the_callers_tensors_and_config_are_not_written_to() -> None:
    config = GPT2Config(**SIZES)
    model = GPT2LMHeadModel(config)
    given = {"attention_mask": padded([5, 2], 5, "left"), "labels": IDS.clone(), "token_type_ids": IDS.clone()}
    before = {name: value.clone() for name, value in given.items()}
    model(IDS, **given)
    model.resize_token_embeddings(100)
    assert all(torch.equal(given[name], before[name]) for name in given)
    assert config == GPT2Config(**SIZES)


def test_constructor_draws_gpt2s_scheme() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=64, n_layer=8, n_head=4, initializer_range=0.1))
    assert model.training
    narrow = 0.1 / math.sqrt(16)
    for name, weight in model.state_dict().items():
        if name.endswith("bias"):
            assert not weight.any()
        elif "ln_" in name:
            assert bool((weight == 1).all())
        else:
            assert float(weight.std()) == pytest.approx(narrow if "c_proj" in name else 0.1, rel=0.05)


def test_construction_follows_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(GPT2LMHeadModel(GPT2Config(**SIZES, tie_word_embeddings=False)).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("option", ["attn_pdrop", "resid_pdrop", "embd_pdrop"])
def test_each_dropout_acts_in_training_only(option: str, attn_implementation: str) -> None:
    none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = ours(attn_implementation=attn_implementation, **{**none, option: 0.5})
    still = model(IDS).logits
    assert torch.equal(still, model(IDS).logits)
    model.train()
    assert not torch.equal(still, model(IDS).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [90, 120])
def test_resized_vocabulary_keeps_old_rows_and_the_head_follows(size: int, tied: bool) -> None:
    model = ours(tie_word_embeddings=tied)
    before = model(random_ids(1, 6) % 90).logits
    embedding = model.resize_token_embeddings(size)
    assert embedding is model.get_input_embeddings()
    assert embedding.weight.shape == (size, 32)
    assert model.config.vocab_size == model.transformer.config.vocab_size == size
    assert (model.lm_head.weight is embedding.weight) == tied
    after = model(random_ids(1, 6) % 90).logits
    assert after.shape[-1] == size
    assert_close(after[..., :90], before[..., :90], tolerance=1e-6)
    if size > 97:
        assert 0.01 < float(embedding.weight[97:].detach().std()) < 0.03


def test_resized_vocabulary_is_rounded_up_to_the_multiple() -> None:
    assert ours("GPT2Model").resize_token_embeddings(98, pad_to_multiple_of=8).weight.shape == (104, 32)


@pytest.mark.parametrize("multiple", [0, -4, 1.3])
def test_vocabulary_is_not_rounded_up_to_what_is_no_multiple(multiple: Any) -> None:
    with pytest.raises(InputError, match=f"pad_to_multiple_of={multiple}: give a whole number"):
        ours().resize_token_embeddings(98, pad_to_multiple_of=multiple)


def test_vocabulary_cannot_be_resized_to_nothing() -> None:
    with pytest.raises(InputError, match="at least one entry"):
        ours().resize_token_embeddings(0)


def test_replaced_embedding_takes_the_tied_head_along() -> None:
    model = ours()
    embedding = torch.nn.Embedding(97, 32)
    model.set_input_embeddings(embedding)
    assert model.lm_head.weight is embedding.weight
    assert isinstance(model.base_model, GPT2Model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("upcast", [True, False])
def test_half_precision_stays_near_float32(
    dtype: torch.dtype, tolerance: float, attn_implementation: str, upcast: bool
) -> None:
    model = ours(attn_implementation=attn_implementation, reorder_and_upcast_attn=upcast)
    mask = padded(LENGTHS, 9, "left")
    expected = model(random_ids(3, 9), attention_mask=mask).logits
    actual = model.to(dtype)(random_ids(3, 9), attention_mask=mask)
    assert model.dtype == actual.logits.dtype == dtype
    assert_close(actual.logits.float(), expected, mask, tolerance)


def test_outputs_iterate_over_values_unlike_in_transformers() -> None:
    model, ids = ours(), random_ids(1, 4)
    assert list(theirs(model)(ids)) == ["logits", "past_key_values"]
    assert [type(item).__name__ for item in model(ids)] == ["Tensor", "DynamicCache"]
    assert len(model(ids)) == 2


def test_new_rows_of_the_vocabulary_are_drawn_around_zero_unlike_in_transformers() -> None:
    model = ours()
    with torch.no_grad():
        model.transformer.wte.weight.add_(5.0)
    oracle = theirs(model)
    size = 2 * SIZES["vocab_size"]
    model.resize_token_embeddings(size)
    oracle.resize_token_embeddings(size)
    new, drawn = (each.transformer.wte.weight[SIZES["vocab_size"] :].detach() for each in (model, oracle))
    assert abs(float(new.mean())) < 0.1
    assert float(drawn.mean()) > 4
