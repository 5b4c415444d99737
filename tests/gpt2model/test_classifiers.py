"""The heads that label sequences, tokens and answers compute what transformers' compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from gpt2model import DynamicCache, GPT2Config, GPT2ForSequenceClassification, pack
from gpt2model.errors import InputError, WeightsMismatch

from .oracle import (
    PAD,
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
from .test_model import LENGTHS, OPTIONS

SEQUENCE, TOKEN, ANSWER = "GPT2ForSequenceClassification", "GPT2ForTokenClassification", "GPT2ForQuestionAnswering"
LABELS: dict[str, dict[str, Tensor]] = {
    SEQUENCE: {"labels": torch.tensor([2, 0, 1])},
    TOKEN: {"labels": torch.arange(27).view(3, 9) % 3},
    ANSWER: {"start_positions": torch.tensor([0, 3, 8]), "end_positions": torch.tensor([[4], [8], [8]])},
}
IDS = padded_ids([9, 9, 9], 9, "none")[0]
every_head = pytest.mark.parametrize("name", LABELS)


def classifier(name: str, **options: Any) -> Any:
    return ours(name, **{"num_labels": 3, "pad_token_id": PAD, **options})


def logits_of(output: Any, name: str) -> Tensor:
    """Logits [B, K] of a sequence, or [B, L, K] of its tokens."""
    logits: Tensor = torch.stack((output.start_logits, output.end_logits), -1) if name == ANSWER else output.logits
    return logits


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_head
def test_logits_hidden_states_and_attentions_equal_transformers(
    name: str, options: dict[str, Any], attn_implementation: str, side: str
) -> None:
    model = classifier(name, attn_implementation=attn_implementation, **options)
    ids, mask = padded_ids(LENGTHS, 9, side)
    asked = {"attention_mask": mask, "output_hidden_states": True}
    fused = model(ids, **asked)
    weighed = model(ids, **asked, output_attentions=True)
    expected = theirs(model)(ids, **asked, output_attentions=True)
    for actual in (fused, weighed):
        where = None if name == SEQUENCE else mask
        assert_close(logits_of(actual, name), logits_of(expected, name), where)
    assert_states_agree(weighed, expected, mask)


# Not with padding on the left of an answer: it takes part in the softmax over positions, and what its rows hold differs
# between transformers' own backends.
@pytest.mark.parametrize(
    ("name", "side"),
    [(name, side) for name in LABELS for side in ("none", "left", "right") if (name, side) != (ANSWER, "left")],
)
def test_losses_and_their_gradients_equal_transformers(name: str, side: str) -> None:
    model = classifier(name)
    oracle = theirs(model)
    ids, mask = padded_ids(LENGTHS, 9, side)
    labels = LABELS[name]
    if name == TOKEN:
        labels = {"labels": labels["labels"].where(mask.bool(), -100)}
    actual = model(ids, attention_mask=mask, **labels)
    expected = oracle(ids, attention_mask=mask, **labels)
    assert_close(actual.loss, expected.loss)
    actual.loss.backward()
    expected.loss.backward()
    assert_gradients_agree(model, oracle)


@every_head
def test_position_ids_token_types_and_embeddings_equal_transformers(name: str) -> None:
    model = classifier(name)
    oracle = theirs(model)
    given = {"position_ids": random_ids(3, 9, seed=1) % 40, "token_type_ids": random_ids(3, 9, seed=2)}
    expected = logits_of(oracle(IDS, **given), name)
    assert_close(logits_of(model(IDS, **given), name), expected)
    assert_close(logits_of(model(inputs_embeds=model.get_input_embeddings()(IDS), **given), name), expected)


@every_head
def test_steps_with_a_cache_equal_transformers(name: str) -> None:
    model = classifier(name)
    oracle = theirs(model)
    ids, mask = padded_ids([9, 7, 6], 9, "left")
    cache, oracle_cache = DynamicCache(), transformers.DynamicCache()
    for start, end in ((0, 5), (5, 6), (6, 9)):
        given = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "use_cache": True}
        actual = model(**given, past_key_values=cache)
        expected = oracle(**given, past_key_values=oracle_cache)
        where = None if name == SEQUENCE else mask[:, start:end]
        assert_close(logits_of(actual, name), logits_of(expected, name), where)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("asked", [{}, {"use_cache": False}, {"output_attentions": True, "output_hidden_states": True}])
@every_head
def test_outputs_read_like_transformers(name: str, asked: dict[str, bool], labelled: bool) -> None:
    model = classifier(name)
    assert_reads_alike(model, theirs(model), {"input_ids": IDS, **asked, **(LABELS[name] if labelled else {})})
    assert isinstance(classifier(name, return_dict=False)(IDS), tuple)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_head
def test_losses_have_the_dtype_of_transformers_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model = classifier(name).to(dtype)
    oracle = theirs(model).to(dtype)
    actual, expected = model(IDS, **LABELS[name]), oracle(IDS, **LABELS[name])
    assert actual.loss.dtype == expected.loss.dtype
    assert logits_of(actual, name).dtype == logits_of(expected, name).dtype == dtype
    assert_close(actual.loss.float(), expected.loss.float(), tolerance=5e-2)


@every_head
def test_state_dict_has_the_names_and_shapes_of_transformers(name: str) -> None:
    model = classifier(name)
    assert_same_weights_named(model, theirs(model))


@every_head
def test_checkpoints_go_both_ways(name: str, tmp_path: Path) -> None:
    assert_checkpoints_go_both_ways(classifier(name), tmp_path, lambda model: logits_of(model(IDS), name))


@every_head
def test_a_checkpoint_without_the_head_is_refused(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    ours().save_pretrained(tmp_path)
    head = next(key for key in model.state_dict() if not key.startswith("transformer."))
    with pytest.raises(WeightsMismatch, match=head):
        type(model).from_pretrained(tmp_path)


@every_head
def test_unknown_arguments_are_refused(name: str) -> None:
    model = classifier(name)
    theirs(model)(IDS, nonsense=1)
    with pytest.raises(TypeError, match="nonsense"):
        model(IDS, nonsense=1)


@pytest.mark.parametrize("by_onednn", [True, False], ids=["oneDNN", "torch.mm"])
@every_head
def test_packed_logits_equal_those_alone(name: str, by_onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2model.onednn._is_better", lambda: by_onednn)
    model = classifier(name).train()
    sequences = [random_ids(length, seed=length) for length in (9, 40, 9, 1, 33)]
    packed = model.forward_packed(pack(sequences))
    assert not packed.requires_grad
    model.eval()
    alone = [logits_of(model(ids[None]), name)[0] for ids in sequences]
    assert_close(packed, torch.stack(alone) if name == SEQUENCE else torch.cat(alone))


def test_an_empty_sequence_of_a_pack_cannot_be_classified() -> None:
    with pytest.raises(InputError, match="sequence 1 of the pack is empty"):
        classifier(SEQUENCE).forward_packed(pack([[1, 2], []]))
    assert classifier(SEQUENCE).forward_packed(pack([])).shape == (0, 3)


PROBLEMS: list[tuple[int, str | None, Tensor]] = [
    (3, None, torch.tensor([2, 0, 1])),
    (3, None, torch.tensor([[2], [-100], [1]])),
    (3, "single_label_classification", torch.tensor([2, 0, 1])),
    (3, None, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.5, 0.0]])),
    (3, "multi_label_classification", torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])),
    (1, "multi_label_classification", torch.tensor([[1.0], [0.0], [1.0]])),
    (3, "regression", torch.tensor([[1.5, -2.0, 0.0], [3.0, 0.1, 0.0], [1.0, 1.0, 7.0]])),
    (1, "regression", torch.tensor([[1.5], [-2.0], [0.25]])),
    (1, None, torch.tensor([1.5, -2.0, 0.25])),
]


@pytest.mark.parametrize(("num_labels", "problem_type", "labels"), PROBLEMS)
def test_every_kind_of_problem_has_the_loss_of_transformers(
    num_labels: int, problem_type: str | None, labels: Tensor
) -> None:
    model = classifier(SEQUENCE, num_labels=num_labels, problem_type=problem_type)
    oracle = theirs(model)
    actual, expected = model(IDS, labels=labels), oracle(IDS, labels=labels)
    assert_close(actual.loss, expected.loss)
    actual.loss.backward()
    expected.loss.backward()
    assert_gradients_agree(model, oracle)


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels"),
    [
        (3, "multi_label_classification", torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]])),
        (3, None, torch.tensor([2, 0, 1], dtype=torch.int32)),
    ],
    ids=["integers for a multi-label model", "32-bit class ids"],
)
def test_label_types_that_transformers_fails_on_are_understood(
    num_labels: int, problem_type: str | None, labels: Tensor
) -> None:
    model = classifier(SEQUENCE, num_labels=num_labels, problem_type=problem_type)
    with pytest.raises(RuntimeError):
        theirs(model)(IDS, labels=labels)
    usual = labels.float() if problem_type else labels.long()
    assert_close(model(IDS, labels=labels).loss, theirs(model)(IDS, labels=usual).loss)


def test_the_config_is_not_written_to_as_transformers_does() -> None:
    model = classifier(SEQUENCE)
    oracle, config = theirs(model), model.config
    oracle(IDS, labels=torch.rand(3, 3))
    model(IDS, labels=torch.rand(3, 3))
    assert oracle.config.problem_type == "multi_label_classification"
    assert model.config is config
    assert config.problem_type is None
    model(IDS, labels=torch.tensor([0, 1, 2]))


def test_text_that_ends_in_the_pad_token_keeps_its_answer_in_a_batch_unlike_in_transformers() -> None:
    model = classifier(SEQUENCE, pad_token_id=0)
    oracle = theirs(model)
    texts = [[5, 6, 7, 0], [5, 6, 7, 8, 9, 0]]
    batch = torch.tensor([[*texts[0], 0, 0], texts[1]])
    mask = padded([4, 6], 6, "right")
    alone = torch.cat([model(torch.tensor([text])).logits for text in texts])
    assert_close(model(batch, attention_mask=mask).logits, alone)
    # transformers reads both before their end of text, and so without one at all.
    without_end = torch.cat([model(torch.tensor([text[:-1]])).logits for text in texts])
    assert_close(oracle(batch, attention_mask=mask).logits, without_end)
    assert not torch.allclose(alone, without_end, rtol=1e-2)


def test_padding_without_a_mask_is_text_unlike_in_transformers() -> None:
    model = classifier(SEQUENCE)
    ids, mask = padded_ids(LENGTHS, 9, "right")
    by_mask = model(ids, attention_mask=mask).logits
    assert_close(theirs(model)(ids).logits, by_mask)
    by_last_place = model(ids).logits
    assert_close(by_last_place[0], by_mask[0])
    assert not torch.allclose(by_last_place[1:], by_mask[1:], rtol=1e-2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_needs_no_pad_token_unlike_in_transformers(side: str) -> None:
    model = classifier(SEQUENCE, pad_token_id=None)
    ids, mask = padded_ids(LENGTHS, 9, side)
    with pytest.raises(ValueError, match="no padding token"):
        theirs(model)(ids, attention_mask=mask)
    actual = model(ids, attention_mask=mask).logits
    assert_close(actual, theirs(classifier(SEQUENCE))(ids, attention_mask=mask).logits)
    one = IDS[:1]
    assert_close(model(one).logits, theirs(model)(one).logits)


def test_a_padding_mask_counts_in_every_shape_and_with_embeddings_unlike_in_transformers() -> None:
    model = classifier(SEQUENCE)
    ids, mask = padded_ids(LENGTHS, 9, "right")
    expected = model(ids, attention_mask=mask).logits
    for same in (mask[:, None], mask.bool(), mask.float()):
        assert_close(model(ids, attention_mask=same).logits, expected)
    given = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": mask}
    assert_close(model(**given).logits, expected)
    assert not torch.allclose(theirs(model)(**given).logits[1:], expected[1:], rtol=1e-2)


def test_a_ready_made_mask_leaves_the_last_position() -> None:
    model = classifier(SEQUENCE)
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)
    assert_close(model(IDS, attention_mask=causal).logits, model(IDS).logits)


def test_what_padding_holds_and_how_much_there_is_does_not_matter() -> None:
    model = classifier(SEQUENCE)
    ids, mask = padded_ids(LENGTHS, 9, "right")
    expected = torch.cat([model(row[:length][None]).logits for row, length in zip(ids, LENGTHS, strict=True)])
    for filling in (PAD, 5):
        assert_close(model(ids.where(mask.bool(), filling), attention_mask=mask).logits, expected)


@pytest.mark.parametrize(
    ("options", "probability"),
    [
        ({"classifier_dropout": 0.3, "hidden_dropout": 0.4}, 0.3),
        ({"classifier_dropout": 0.0, "hidden_dropout": 0.4}, 0.0),
        ({"hidden_dropout": 0.4}, 0.4),
        ({"hidden_dropout": 0.0}, 0.0),
        ({}, 0.1),
    ],
)
def test_dropout_of_token_classification_follows_the_names_of_transformers(
    options: dict[str, float], probability: float
) -> None:
    model = classifier(TOKEN, **options)
    assert model.dropout.p == theirs(model).dropout.p == probability
    model.transformer.eval()
    model.dropout.train()
    assert torch.equal(model(IDS).logits, model(IDS).logits) == (probability == 0)


def test_tokens_of_inputs_with_leading_dimensions_are_labelled_as_in_transformers() -> None:
    model = classifier(TOKEN)
    ids, labels = random_ids(2, 3, 5), random_ids(2, 3, 5, seed=1) % 3
    actual, expected = model(ids, labels=labels), theirs(model)(ids, labels=labels)
    assert_close(actual.logits, expected.logits)
    assert_close(actual.loss, expected.loss)


@pytest.mark.parametrize("columns", [(), (1,)])
@pytest.mark.parametrize(
    ("start", "end"),
    [([0, 4, 8], [1, 8, 8]), ([9, 4, 50], [2, 9, 3]), ([-1, 4, -50], [-100, 3, 3]), ([0, 99, 1], [0, 0, 99])],
    ids=["inside", "behind the end", "before the beginning", "one of two"],
)
def test_answers_outside_the_input_are_clamped_and_left_out_as_in_transformers(
    start: list[int], end: list[int], columns: tuple[int, ...]
) -> None:
    model = classifier(ANSWER)
    given = {
        "start_positions": torch.tensor(start).view(3, *columns),
        "end_positions": torch.tensor(end).view(3, *columns),
    }
    assert_close(model(IDS, **given).loss, theirs(model)(IDS, **given).loss)


def test_a_question_with_one_of_two_positions_has_no_loss() -> None:
    model = classifier(ANSWER)
    for given in ({"start_positions": torch.tensor([1, 2, 3])}, {"end_positions": torch.tensor([1, 2, 3])}):
        assert model(IDS, **given).loss is None
        assert theirs(model)(IDS, **given).loss is None


@pytest.mark.parametrize(
    ("name", "options", "given", "message"),
    [
        (SEQUENCE, {}, {"labels": torch.tensor([0, 3, 1])}, "labels hold 3, num_labels is 3"),
        (SEQUENCE, {}, {"labels": torch.tensor([0, -1, 1])}, "labels hold -1, num_labels is 3"),
        (SEQUENCE, {}, {"labels": torch.tensor([0, 1])}, r"labels of shape \(2,\): logits of shape \(3, 3\)"),
        (SEQUENCE, {}, {"labels": torch.rand(3)}, r"\(3,\): multi_label_classification compares .* \(3, 3\)"),
        (SEQUENCE, {"num_labels": 1}, {"labels": torch.rand(2)}, r"labels of shape \(2,\): regression compares"),
        (SEQUENCE, {"problem_type": "regression"}, {"labels": torch.rand(3)}, r"labels of shape \(3,\): regression"),
        (
            SEQUENCE,
            {"problem_type": "single_label_classification"},
            {"labels": torch.tensor([0.0, 1.7, 1.0])},
            "labels are torch.float32",
        ),
        (SEQUENCE, {}, {"input_ids": random_ids(2, 3, 5)}, r"an input of shape \(2, 3, 5\): rows of positions"),
        (TOKEN, {}, {"labels": torch.full((3, 9), 3)}, "labels hold 3, num_labels is 3"),
        (TOKEN, {}, {"labels": torch.zeros(3, 8).long()}, r"labels of shape \(3, 8\): logits of shape \(3, 9, 3\)"),
        (TOKEN, {}, {"labels": torch.zeros(3, 9)}, "labels are torch.float32"),
        (
            ANSWER,
            {},
            {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([1, 2, 3])},
            r"start_positions of shape \(2,\): logits of shape \(3, 9\) need one for each row",
        ),
        (
            ANSWER,
            {},
            {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.rand(3)},
            "end_positions are torch.float32",
        ),
    ],
)
def test_labels_and_inputs_that_do_not_fit_are_refused_by_name(
    name: str, options: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    model, given = classifier(name, **options), {"input_ids": IDS, **given}
    with pytest.raises(UNTYPED):
        theirs(model)(**given)
    with pytest.raises(InputError, match=message):
        model(**given)


def test_fresh_heads_are_drawn_in_the_scheme_of_gpt2() -> None:
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(**{**SIZES, "n_embd": 512}, num_labels=50, initializer_range=0.03))
    assert 0.028 < float(model.score.weight.detach().std()) < 0.032
    assert model.score.bias is None
