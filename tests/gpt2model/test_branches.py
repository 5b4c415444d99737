"""A branch of a pack gets what its trunk and it get alone, and each layer's states can be had."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2model import continuation_logprobs, onednn, pack, pack_branches, token_logprobs
from gpt2model.errors import InputError
from gpt2model.packing import Packed

from .oracle import assert_close, ours, random_ids

either_kernel = pytest.mark.parametrize("by_onednn", [True, False], ids=["oneDNN", "torch.mm"])
# Trunks and branches whose longest way is as long as the model's 40 positions at most.
trees = st.lists(
    st.integers(1, 40).flatmap(
        lambda trunk: st.tuples(st.just(trunk), st.lists(st.integers(0, 40 - trunk), max_size=4))
    ),
    min_size=1,
    max_size=4,
)
Tree = list[tuple[int, list[int]]]


def grown(tree: Tree, seed: int = 0) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Random ids of every trunk, and of the branches of each."""
    trunks = [random_ids(trunk, seed=seed + place) for place, (trunk, _) in enumerate(tree)]
    branches = [
        [random_ids(length, seed=seed + 10 * place + number + 100) for number, length in enumerate(own)]
        for place, (_, own) in enumerate(tree)
    ]
    return trunks, branches


def cut(states: Tensor, packed: Packed) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The states of each trunk, and of its branches."""
    assert packed.branches is not None
    for whole, trunk, own in zip(states.split(packed.lengths), packed.trunks, packed.branches, strict=True):
        first, *rest = whole.split([trunk, *own])
        yield first, rest


@pytest.fixture
def branching() -> Packed:
    return pack_branches([[1, 2, 3], [4]], [[[5, 6], [7]], [[8]]])


def test_branches_lie_behind_their_trunk_and_count_on_from_it(branching: Packed) -> None:
    assert branching.input_ids.tolist() == [1, 2, 3, 5, 6, 7, 4, 8]
    assert branching.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert branching.cu_seqlens.tolist() == [0, 6, 8]
    assert branching.branches == ((2, 1), (1,))
    assert branching.trunks == (3, 1)
    assert branching.depths == (5, 2)
    assert branching.input_ids.dtype == branching.position_ids.dtype == torch.int64


def test_ends_and_means_are_those_of_the_way_through_the_trunk(branching: Packed) -> None:
    firsts, lasts = branching.ends()
    assert firsts.tolist() == [0, 0, 6]
    assert lasts.tolist() == [4, 5, 7]
    hidden = torch.arange(8.0)[:, None]
    assert branching.means(hidden)[:, 0].tolist() == [10 / 5, (0 + 1 + 2 + 5) / 4, 13 / 2]


def test_a_pack_without_branches_has_an_end_and_a_mean_for_each_sequence() -> None:
    packed = pack([[1, 2, 3], [4]])
    assert packed.trunks == packed.depths == (3, 1)
    assert [places.tolist() for places in packed.ends()] == [[0, 3], [2, 3]]
    assert packed.means(torch.arange(4.0)[:, None])[:, 0].tolist() == [1.0, 3.0]


def test_means_in_half_precision_are_summed_in_float32() -> None:
    packed = pack([[1] * 4000])
    means = packed.means(torch.full((4000, 2), 100.0, dtype=torch.float16))
    assert means.dtype == torch.float16
    assert means.tolist() == [[100.0, 100.0]]


def test_a_pack_on_another_device_keeps_its_branches(branching: Packed) -> None:
    moved = branching.to("meta")
    assert moved.input_ids.is_meta
    assert (moved.branches, moved.lengths) == (branching.branches, branching.lengths)


@either_kernel
@given(tree=trees, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_every_branch_gets_what_it_gets_behind_its_trunk_alone(by_onednn: bool, tree: Tree, seed: int) -> None:
    model = ours("GPT2Model", n_layer=2)
    trunks, branches = grown(tree, seed)
    packed = pack_branches(trunks, branches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "_is_better", lambda: by_onednn)
        states = model.forward_packed(packed)
    for trunk, own, (trunk_states, own_states) in zip(trunks, branches, cut(states, packed), strict=True):
        assert_close(trunk_states, model(trunk[None]).last_hidden_state[0])
        for branch, branch_states in zip(own, own_states, strict=True):
            alone = model(torch.cat((trunk, branch))[None]).last_hidden_state[0]
            if len(branch):
                assert_close(branch_states, alone[len(trunk) :])


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}, torch.float32),
        ({"scale_attn_weights": False, "activation_function": "relu"}, torch.float32),
        ({"attn_implementation": "eager"}, torch.float32),
        ({}, torch.bfloat16),
    ],
)
def test_branches_equal_those_alone_with_every_option(options: dict[str, object], dtype: torch.dtype) -> None:
    # Trunks and branches longer than one block of queries.
    model = ours("GPT2Model", n_positions=200, **options).to(dtype)
    trunks, branches = grown([(100, [70, 3]), (5, [150])])
    packed = pack_branches(trunks, branches)
    for trunk, own, (_, states) in zip(trunks, branches, cut(model.forward_packed(packed), packed), strict=True):
        for branch, branch_states in zip(own, states, strict=True):
            alone = model(torch.cat((trunk, branch))[None]).last_hidden_state[0, len(trunk) :]
            assert branch_states.dtype == dtype
            assert_close(branch_states.float(), alone.float(), tolerance=1e-4 if dtype == torch.float32 else 5e-2)


@either_kernel
@pytest.mark.parametrize("summary_type", ["cls_index", "last", "first", "mean"])
def test_choices_as_branches_score_as_they_do_in_full(
    summary_type: str, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "_is_better", lambda: by_onednn)
    model = ours("GPT2DoubleHeadsModel", summary_type=summary_type, summary_activation="tanh")
    trunks, branches = grown([(6, [3, 3, 3]), (4, [5, 5, 5])])
    in_full = torch.stack(
        [torch.stack([torch.cat((trunk, each)) for each in own]) for trunk, own in zip(trunks, branches, strict=True)]
    )
    assert_close(model.choice_logits(pack_branches(trunks, branches)), model(in_full).mc_logits.flatten())


@pytest.mark.parametrize("layer", [*range(-4, 4)])
def test_states_of_a_layer_are_the_hidden_states_of_that_number(layer: int) -> None:
    model = ours("GPT2Model")
    sequences = [random_ids(length, seed=length) for length in (9, 40, 3)]
    packed = model.forward_packed(pack(sequences), layer=layer)
    alone = [model(ids[None], output_hidden_states=True).hidden_states[layer][0] for ids in sequences]
    assert_close(packed, torch.cat(alone))


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_there_is_not_is_refused(layer: int) -> None:
    with pytest.raises(InputError, match=f"layer={layer}: the model has hidden states -4 to 3"):
        ours("GPT2Model").forward_packed(pack([[1]]), layer=layer)


@pytest.mark.parametrize("by_onednn", [False, True])
@pytest.mark.parametrize("layer", [-1, 0, 2, 3])
@pytest.mark.parametrize("places", [[], [7], [3, 0, 13], [1, 1, 5, 5], list(range(14)), [2] * 20])
def test_of_some_places_alone_states_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, places: list[int], layer: int, by_onednn: bool
) -> None:
    monkeypatch.setattr("gpt2model.onednn._is_better", lambda: by_onednn)
    model = ours("GPT2Model")
    packed = pack_branches([random_ids(5), random_ids(3, seed=1)], [[random_ids(2), random_ids(3)], [random_ids(1)]])
    whole = model.forward_packed(packed, layer=layer)
    only = torch.tensor(places, dtype=torch.int64)
    assert len(whole) == 14
    found = model.forward_packed(packed, layer=layer, only=only)
    assert found.shape == (len(places), 32)
    assert torch.allclose(found, whole[only], rtol=1e-4, atol=1e-4)


def test_the_last_block_is_spared_what_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = ours("GPT2Model", n_layer=2), []
    for block in model.h:
        monkeypatch.setattr(block.mlp, "act", lambda x: rows.append(len(x)) or torch.relu(x))
    model.forward_packed(pack([random_ids(9), random_ids(4)]), only=torch.tensor([8, 12]))
    assert rows == [13, 2]


def test_blocks_beyond_the_layer_are_not_computed() -> None:
    model = ours("GPT2Model")
    model.h[2] = torch.nn.Identity()  # has no packed pass
    assert model.forward_packed(pack([[1, 2]]), layer=2).shape == (2, 32)


def test_only_the_longest_way_is_limited() -> None:
    model = ours("GPT2Model")
    fits = pack_branches([random_ids(3), random_ids(30)], [[random_ids(1)], [random_ids(10)] * 3])
    assert fits.max_seqlen == 60
    assert model.forward_packed(fits).shape == (64, 32)
    too_long = pack_branches([random_ids(3), random_ids(30)], [[random_ids(1)], [random_ids(10), random_ids(11)]])
    with pytest.raises(InputError, match="sequence 1 of the pack has 41 tokens, n_positions is 40"):
        model.forward_packed(too_long)


def test_a_sequence_may_have_no_branches_and_a_branch_no_tokens() -> None:
    model = ours("GPT2Model")
    packed = pack_branches([[1, 2], [3, 4, 5]], [[], [[]]])
    assert_close(model.forward_packed(packed), model.forward_packed(pack([[1, 2], [3, 4, 5]])))
    assert pack_branches([[1, 2]], [[]]).ends()[0].tolist() == []
    assert pack_branches([], []).means(torch.empty(0, 32)).shape == (0, 32)
    for read in (packed.ends, lambda: packed.means(torch.zeros(5, 1))):
        with pytest.raises(InputError, match="sequence 1 of the pack has an empty branch"):
            read()


def test_an_empty_trunk_is_refused() -> None:
    with pytest.raises(InputError, match="trunk 1 is empty: its branches have nothing to follow"):
        pack_branches([[1], []], [[], [[2]]])


@pytest.mark.parametrize("wrong", [[1.5], [[1, 2]], ["a"]])
def test_a_branch_that_is_no_row_of_integers_is_refused(wrong: list[object]) -> None:
    with pytest.raises(InputError, match="sequence 1 is"):
        pack_branches([[1], [2]], [[], [wrong]])  # type: ignore[list-item]


def alone(model: object, prompt: Tensor, continuation: Tensor) -> Tensor:
    """Log-probabilities of one continuation by token_logprobs on the prompt and it."""
    whole = torch.cat((prompt, continuation))
    targets = torch.cat((whole[1:], torch.tensor([-100])))
    targets[: len(prompt) - 1] = -100
    scored, _ = token_logprobs(model, pack([whole]), targets)  # type: ignore[arg-type]
    return scored[len(prompt) - 1 : len(whole) - 1]


@either_kernel
@given(tree=trees, seed=st.integers(0, 99), chunk=st.integers(1, 50))
@settings(max_examples=25, deadline=None)
def test_continuations_have_the_log_probabilities_they_have_alone(
    by_onednn: bool, tree: Tree, seed: int, chunk: int
) -> None:
    model = ours("GPT2LMHeadModel", n_layer=2)
    prompts, continuations = grown(tree, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "_is_better", lambda: by_onednn)
        scored = continuation_logprobs(model, prompts, continuations, chunk=chunk)
    for prompt, own, found in zip(prompts, continuations, scored, strict=True):
        for continuation, logprobs in zip(own, found, strict=True):
            assert logprobs.dtype == torch.float32
            assert len(logprobs) == len(continuation)
            if len(continuation):
                assert_close(logprobs, alone(model, prompt, continuation))


def test_the_last_token_of_a_continuation_takes_no_position() -> None:
    model = ours()
    prompt = random_ids(30)
    (found,) = continuation_logprobs(model, [prompt], [[random_ids(11), random_ids(1)]])
    assert [len(each) for each in found] == [11, 1]
    with pytest.raises(InputError, match="sequence 0 of the pack has 41 tokens"):
        continuation_logprobs(model, [prompt], [[random_ids(12)]])


def test_continuations_may_be_lists_arrays_or_tensors() -> None:
    model = ours("GPT2DoubleHeadsModel")
    kinds = ([5, 6], np.array([5, 6], dtype=np.int32), torch.tensor([5, 6]))
    ((first, *others),) = continuation_logprobs(model, [[1, 2]], [kinds])
    for other in others:
        assert_close(other, first)
    assert continuation_logprobs(model, [[1]], [[[]]])[0][0].shape == (0,)
    assert continuation_logprobs(model, [], []) == []


@pytest.mark.parametrize(
    ("prompt", "continuation", "message"),
    [
        ([], [1], "trunk 0 is empty"),
        ([1], [2, 97], "targets hold 97, vocab_size is 97"),
        ([1], [97, 2], "hold 97, vocab_size is 97"),
        ([97], [2], "input_ids hold 97, vocab_size is 97"),
        ([1], [1.5, 2.5], "sequence 0 is float64"),
        ([1], [1.5], "sequence 0 is float64"),
    ],
)
def test_prompts_and_continuations_that_are_no_ids_are_refused(
    prompt: list[int], continuation: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        continuation_logprobs(ours(), [prompt], [[continuation]])
