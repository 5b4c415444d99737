"""Token log-probabilities in chunks are those of the whole log-softmax."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2model import scoring
from gpt2model.errors import InputError
from gpt2model.packing import Packed, pack
from gpt2model.scoring import token_logprobs

from .oracle import assert_close, ours, random_ids

VOCAB = 1500  # several blocks of the vocabulary, the last one short


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_CPU_BLOCK", 1)


def sample(lengths: list[int], seed: int = 0) -> Packed:
    return pack([random_ids(length, seed=seed + place) for place, length in enumerate(lengths)])


def reference(model: Any, packed: Packed, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.lm_head(model.transformer.forward_packed(packed)).detach().double()
    given_targets = targets.clamp(min=0)[:, None]
    logprobs = logits.log_softmax(-1).gather(1, given_targets)[:, 0]
    return logprobs.masked_fill(targets == -100, 0.0), (logits.argmax(-1) == targets)


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    chunk=st.integers(1, 30),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_scores_equal_the_whole_log_softmax(lengths: list[int], chunk: int, ignored: float, seed: int) -> None:
    model = ours(vocab_size=VOCAB, n_layer=1)
    packed = sample(lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    total = len(packed.input_ids)
    best = model.lm_head(model.transformer.forward_packed(packed)).argmax(-1)
    targets = torch.where(torch.rand(total, generator=generator) < 0.5, best, random_ids(total, seed=seed))
    targets[torch.rand(total, generator=generator) < ignored] = -100
    logprobs, greedy = token_logprobs(model, packed, targets, greedy=True, chunk=chunk)
    expected, expected_greedy = reference(model, packed, targets)
    assert logprobs.dtype == torch.float32
    assert greedy is not None
    assert torch.equal(greedy, expected_greedy)
    if total:
        assert float((logprobs - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_greedy_is_computed_on_request_only() -> None:
    packed = sample([4])
    assert token_logprobs(ours(), packed, packed.input_ids)[1] is None


@pytest.mark.parametrize("greatest", [[3, 7], [0, 255], [300, 301, 1400], [VOCAB - 1], [255, 256]])
def test_lowest_id_wins_among_equal_logits(greatest: list[int]) -> None:
    model = ours(vocab_size=VOCAB, n_layer=1, tie_word_embeddings=False)
    with torch.no_grad():
        # Every state is the first unit vector, so that the logits are exactly the head's first column.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()[0] = 1.0
        model.lm_head.weight[:, 0] = torch.arange(VOCAB) % 3
        model.lm_head.weight[greatest, 0] = 5.0
    targets = torch.tensor([*greatest, 2])
    _, greedy = token_logprobs(model, sample([len(targets)]), targets, greedy=True)
    assert greedy is not None
    assert greedy.tolist() == [True] + [False] * len(greatest)


@pytest.mark.parametrize("scale", [1e-3, 300.0])
def test_flat_and_steep_distributions_stay_exact(scale: float) -> None:
    model = ours(vocab_size=VOCAB, n_layer=1, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    packed = sample([9, 5])
    targets = random_ids(14, seed=5)
    assert_close(token_logprobs(model, packed, targets)[0], reference(model, packed, targets)[0].float())


def test_a_logit_far_above_all_of_the_first_block_is_summed_exactly() -> None:
    model = ours(vocab_size=VOCAB, n_positions=32)
    with torch.no_grad():
        hidden = model.transformer.forward_packed(sample([6]))
        weight = model.lm_head.weight
        weight[VOCAB - 1] = hidden[2] * 300 / hidden[2].square().sum()
        weight[VOCAB - 2] = -weight[VOCAB - 1]
    packed = sample([6])
    for target in (VOCAB - 1, VOCAB - 2, 3):
        targets = torch.full((6,), target)
        logprobs, _ = token_logprobs(model, packed, targets)
        assert_close(logprobs.double(), reference(model, packed, targets)[0])


def test_half_precision_sums_in_float32() -> None:
    model = ours(vocab_size=VOCAB).to(torch.bfloat16)
    packed = sample([9, 5])
    targets = random_ids(14, seed=5)
    logprobs, greedy = token_logprobs(model, packed, targets, greedy=True)
    expected, expected_greedy = reference(model, packed, targets)
    assert logprobs.dtype == torch.float32
    assert_close(logprobs, expected.float(), tolerance=1e-3)
    assert greedy is not None
    assert torch.equal(greedy, expected_greedy)


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that one operation's result had memory for."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.shape[:1] != (VOCAB,):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_logits_of_all_positions_are_never_held() -> None:
    model = ours(vocab_size=VOCAB, n_layer=1)
    packed = sample([30] * 40)
    with LargestTensor() as largest:
        token_logprobs(model, packed, packed.input_ids, greedy=True, chunk=300)
    assert 300 * 256 <= largest.numbers < 1200 * VOCAB / 4


def test_positions_without_target_cost_nothing_in_the_head() -> None:
    model = ours(vocab_size=VOCAB, n_layer=1)
    model.lm_head = None  # nothing may ask for it
    packed = sample([4, 3])
    logprobs, greedy = token_logprobs(model, packed, torch.full((7,), -100), greedy=True)
    assert logprobs.tolist() == [0.0] * 7
    assert greedy is not None
    assert not greedy.any()


def test_result_carries_no_graph() -> None:
    packed = sample([4])
    assert not token_logprobs(ours(), packed, packed.input_ids)[0].requires_grad


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"targets of shape \(3,\): the pack has 4 positions"),
        (torch.full((4,), 97), "targets hold 97, vocab_size is 97"),
        (torch.full((4,), -1), "targets hold -1, vocab_size is 97"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_logprobs(ours(), sample([4]), targets)
