"""The language-model head: loss, gradients and which logits are computed."""

import pytest
import torch
from torch import Tensor

from gpt2model.errors import InputError

from .oracle import assert_close, ours, padded, random_ids, theirs

IDS = random_ids(3, 8)


@pytest.mark.parametrize("ignored", [[], [0, 3], [7]])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_its_gradients_equal_transformers(ignored: list[int], tied: bool) -> None:
    model = ours(tie_word_embeddings=tied)
    oracle = theirs(model)
    labels = IDS.clone()
    labels[:, ignored] = -100
    mask = padded([8, 6, 3], 8, "right")
    actual = model(IDS, attention_mask=mask, labels=labels)
    expected = oracle(IDS, attention_mask=mask, labels=labels)
    assert_close(actual.loss, expected.loss)
    actual.loss.backward()
    expected.loss.backward()
    gradients = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[name].grad)


def test_loss_is_float32_in_half_precision() -> None:
    model = ours().to(torch.bfloat16)
    assert model(IDS, labels=IDS).loss.dtype == torch.float32


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels of shape \(3, 7\): logits are kept for \(3, 8\)"):
        ours()(IDS, labels=IDS[:, 1:])


@pytest.mark.parametrize(
    "kept",
    [
        0,
        1,
        3,
        50,
        torch.tensor([1, 4]),
        torch.tensor([[0, 7], [1, 1], [5, 2]]),
        torch.arange(24).view(3, 8) % 5 == 0,
    ],
    ids=["all", "last", "last three", "more than there are", "places", "places of each row", "boolean"],
)
def test_kept_logits_equal_transformers(kept: int | Tensor) -> None:
    model = ours()
    assert_close(model(IDS, logits_to_keep=kept).logits, theirs(model)(IDS, logits_to_keep=kept).logits)


def test_negative_number_of_logits_is_refused() -> None:
    with pytest.raises(InputError, match="logits_to_keep=-1"):
        ours()(IDS, logits_to_keep=-1)


def test_loss_of_kept_logits_takes_the_labels_of_the_kept_positions() -> None:
    model = ours()
    actual = model(IDS, labels=IDS[:, -4:], logits_to_keep=4)
    assert_close(actual.loss, theirs(model)(IDS, labels=IDS[:, -4:], logits_to_keep=4).loss)
