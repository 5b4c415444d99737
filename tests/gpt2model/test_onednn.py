"""Products by oneDNN are the same numbers, whatever processor this is."""

import pytest
import torch

from gpt2model import GPT2LMHeadModel, onednn, pack, token_logprobs
from gpt2model.layers import Conv1D

from .oracle import assert_close, ours, random_ids

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
SEQUENCES = [random_ids(length, seed=length) for length in (40, 17, 17, 3, 1)]


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch.mm"])
def by_onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(onednn, "_is_better", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_packed_states_equal_those_of_the_padded_forward(by_onednn: bool, activation: str) -> None:
    model = ours("GPT2Model", activation_function=activation)
    packed = model.forward_packed(pack(SEQUENCES))
    alone = torch.cat([model(ids[None]).last_hidden_state[0] for ids in SEQUENCES])
    assert_close(packed, alone)


def test_log_probabilities_equal_the_softmax_of_the_logits(by_onednn: bool) -> None:
    model = ours()
    targets = torch.cat([torch.cat([ids[1:], ids[:1]]) for ids in SEQUENCES])
    logprobs, _ = token_logprobs(model, pack(SEQUENCES), targets)
    logits = torch.cat([model(ids[None]).logits[0] for ids in SEQUENCES])
    assert_close(logprobs, logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0])


def test_a_loaded_model_keeps_its_weights_in_the_order_that_reads_fastest(by_onednn: bool, tmp_path: object) -> None:
    model = ours()
    model.save_pretrained(tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(str(tmp_path))
    loaded.save_pretrained(f"{tmp_path}/again")
    again = GPT2LMHeadModel.from_pretrained(f"{tmp_path}/again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    convs = [module for module in loaded.modules() if isinstance(module, Conv1D)]
    assert all(module.weight.T.is_contiguous() == by_onednn for module in convs)
