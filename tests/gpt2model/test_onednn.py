"""Products by oneDNN are the same numbers, whatever processor this is, and a prepacked model is the same model."""

import copy
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2model import GPT2LMHeadModel, onednn, pack, token_logprobs
from gpt2model.errors import InputError
from gpt2model.generation import Engine, GenerationConfig, Request
from gpt2model.layers import Conv1D

from .oracle import assert_close, ours, random_ids

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
SEQUENCES = [random_ids(length, seed=length) for length in (40, 17, 17, 3, 1)]


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch.mm"])
def by_onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(onednn, "_is_better", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def prepacked(monkeypatch: pytest.MonkeyPatch) -> GPT2LMHeadModel:
    """A model whose weights lie in oneDNN's layout, on any processor."""
    monkeypatch.setattr(onednn, "_is_better", lambda: True)
    model: GPT2LMHeadModel = ours().prepack(head=True)
    assert convs(model)
    assert not any(module.weight.numel() for module in convs(model))
    return model


def convs(model: torch.nn.Module) -> list[Conv1D]:
    return [module for module in model.modules() if isinstance(module, Conv1D)]


def assert_same_weights(one: Any, other: Any) -> None:
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.parametrize("prepack", [False, True], ids=["as it lies", "prepacked"])
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_packed_states_equal_those_of_the_padded_forward(by_onednn: bool, activation: str, prepack: bool) -> None:
    model = ours("GPT2Model", activation_function=activation)
    alone = torch.cat([model(ids[None]).last_hidden_state[0] for ids in SEQUENCES])
    if prepack:
        model.prepack()
        assert all((module._prepacked is not None) == by_onednn for module in convs(model))
    assert_close(model.forward_packed(pack(SEQUENCES)), alone)
    assert model.forward_packed(pack([])).shape == (0, model.config.n_embd)


@pytest.mark.parametrize("prepack", [False, True], ids=["as it lies", "prepacked"])
def test_log_probabilities_equal_the_softmax_of_the_logits(by_onednn: bool, prepack: bool) -> None:
    model = ours()
    targets = torch.cat([torch.cat([ids[1:], ids[:1]]) for ids in SEQUENCES])
    logits = torch.cat([model(ids[None]).logits[0] for ids in SEQUENCES])
    expected = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
    logprobs, _ = token_logprobs(model.prepack(head=True) if prepack else model, pack(SEQUENCES), targets)
    assert_close(logprobs, expected)


@torch.no_grad()
def test_a_prepacked_model_computes_the_padded_forward_too(prepacked: GPT2LMHeadModel) -> None:
    for ids in SEQUENCES:
        assert_close(prepacked(ids[None]).logits, ours()(ids[None]).logits)
    none = torch.empty(0, 5, dtype=torch.int64)
    assert prepacked(none).logits.shape == ours()(none).logits.shape


def continued(model: GPT2LMHeadModel) -> dict[int, list[int]]:
    engine = Engine(model, GenerationConfig(eos_token_id=None), slots=3, cache_tokens=1000)
    requests = [Request(ids.numpy(), 12, ticket=place) for place, ids in enumerate(SEQUENCES)]
    return {answer.request.ticket: answer.token_ids.tolist() for answer in engine.run(requests)}


def test_a_prepacked_model_continues_as_it_did(prepacked: GPT2LMHeadModel) -> None:
    assert prepacked.lm_head.operand.layout != torch.strided
    assert continued(prepacked) == continued(ours())


@torch.no_grad()
def test_a_prepacked_head_is_not_used_once_its_weight_has_changed(prepacked: GPT2LMHeadModel) -> None:
    plain = ours()
    for model in (prepacked, plain):
        model.get_input_embeddings().weight.mul_(-0.5)
    assert prepacked.lm_head.operand is prepacked.lm_head.weight
    assert continued(prepacked) == continued(plain)
    assert prepacked.prepack(head=True).lm_head.operand.layout != torch.strided
    assert continued(prepacked) == continued(plain)


@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "embeddings frozen"])
def test_gradients_pass_through_a_prepacked_model(prepacked: GPT2LMHeadModel, frozen: bool) -> None:
    found = []
    for model in (prepacked, ours()):
        for embedding in (model.transformer.wte, model.transformer.wpe):
            embedding.requires_grad_(not frozen)
        model(SEQUENCES[0][None]).logits.logsumexp(-1).sum().backward()
        found.append({name: each.grad for name, each in model.named_parameters() if "weight" not in name})
    assert found[0]
    for name, gradient in found[0].items():
        assert gradient is not None
        assert_close(gradient, found[1][name])


def test_autocast_takes_a_prepacked_model(prepacked: GPT2LMHeadModel) -> None:
    ids = SEQUENCES[0][None]
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert_close(prepacked(ids).logits.float(), ours()(ids).logits.float(), tolerance=2e-2)


def test_weights_are_loaded_into_a_prepacked_model(prepacked: GPT2LMHeadModel) -> None:
    other = ours()
    other.init_weights()
    prepacked.load_state_dict(other.state_dict())
    assert_same_weights(prepacked, other)
    assert continued(prepacked) == continued(other)


def test_an_optimizer_goes_on_with_the_weights_that_come_back(prepacked: GPT2LMHeadModel) -> None:
    before = list(ours().train().named_parameters())
    model = ours()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.prepack().train()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in before]
    model(SEQUENCES[0][None], labels=SEQUENCES[0][None]).loss.backward()
    optimizer.step()
    assert not any(
        torch.equal(each.weight, other.weight) for each, other in zip(convs(model), convs(ours()), strict=True)
    )


def test_a_model_of_inference_mode_is_prepacked_too(prepacked: GPT2LMHeadModel) -> None:
    with torch.inference_mode():
        model = ours()
    assert model.lm_head.weight.is_inference()
    assert continued(model.prepack(head=True)) == continued(prepacked)


def test_a_model_in_training_is_not_prepacked(prepacked: GPT2LMHeadModel) -> None:
    with pytest.raises(InputError, match="call eval"):
        prepacked.train().prepack()


def test_weights_can_be_drawn_anew(prepacked: GPT2LMHeadModel) -> None:
    prepacked.init_weights()
    assert all(module.weight.std() > 0 for module in convs(prepacked))


def test_a_prepacked_model_is_saved_as_the_model_that_it_was(prepacked: GPT2LMHeadModel, tmp_path: Path) -> None:
    prepacked.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert_same_weights(again, ours())
    again.prepack().save_pretrained(tmp_path / "again")
    assert_same_weights(GPT2LMHeadModel.from_pretrained(tmp_path / "again"), ours())


@pytest.mark.parametrize(
    "change",
    [lambda model: model.train(), lambda model: model.double().float(), copy.deepcopy],
    ids=["training", "another dtype", "a copy"],
)
def test_what_needs_the_weights_puts_them_back(prepacked: GPT2LMHeadModel, change: Any) -> None:
    changed = change(prepacked)
    assert changed.lm_head.operand is changed.lm_head.weight
    assert all(isinstance(module.weight, torch.nn.Parameter) for module in convs(changed))
    assert_same_weights(changed, ours())
    assert [name for name, _ in changed.named_parameters()] == [name for name, _ in ours().named_parameters()]


def test_a_prepacked_head_follows_the_embedding(prepacked: GPT2LMHeadModel) -> None:
    prepacked.resize_token_embeddings(50)
    assert prepacked.lm_head.operand is prepacked.get_input_embeddings().weight


def test_nothing_else_may_lie_where_the_weight_of_a_prepacked_head_lay(prepacked: GPT2LMHeadModel) -> None:
    memory = np.ones(prepacked.lm_head.weight.shape, np.float32)
    alive = weakref.ref(memory)
    prepacked.lm_head.weight = torch.nn.Parameter(torch.from_numpy(memory))
    prepacked.prepack(head=True).lm_head.weight = prepacked.get_input_embeddings().weight
    del memory
    assert alive() is not None
    assert prepacked.train().lm_head.operand is prepacked.lm_head.weight
    assert alive() is None
