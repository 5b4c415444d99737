"""A packed sequence gets what it gets alone, whatever lies beside it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2model.errors import InputError
from gpt2model.packing import pack

from .oracle import assert_close, ours, padded, random_ids

OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    {"scale_attn_weights": False, "n_inner": 24, "activation_function": "relu"},
    {"attn_implementation": "eager"},
]
# Longer than one block of queries, and not a multiple of it.
LONG = {"n_positions": 200}


def test_pack_lays_sequences_end_to_end() -> None:
    packed = pack([[5, 6, 7], np.array([8], dtype=np.int32), [], torch.tensor([9, 10])])
    assert packed.input_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert packed.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.cu_seqlens.tolist() == [0, 3, 4, 4, 6]
    assert packed.lengths == (3, 1, 0, 2)
    assert packed.max_seqlen == 3
    assert packed.input_ids.dtype == packed.position_ids.dtype == torch.int64
    assert packed.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_pack_of_nothing_gives_no_states(sequences: list[list[int]]) -> None:
    packed = pack(sequences)
    assert packed.cu_seqlens.tolist() == [0] * (len(sequences) + 1)
    assert ours("GPT2Model").forward_packed(packed).shape == (0, 32)


@pytest.mark.parametrize("wrong", [[1.5], [[1, 2]], ["a"]])
def test_what_is_no_row_of_integers_is_refused(wrong: list[Any]) -> None:
    with pytest.raises(InputError, match="sequence 1 is"):
        pack([[1, 2], wrong])


@given(lengths=st.lists(st.integers(0, 40) | st.sampled_from([3, 33]), min_size=1, max_size=9), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_every_sequence_of_a_pack_gets_what_it_gets_alone(lengths: list[int], seed: int) -> None:
    model = ours("GPT2Model", n_layer=2)
    sequences = [random_ids(length, seed=seed + place) for place, length in enumerate(lengths)]
    states = model.forward_packed(pack(sequences)).split(lengths)
    for sequence, packed_states in zip(sequences, states, strict=True):
        if len(sequence):
            assert_close(packed_states, model(sequence[None]).last_hidden_state[0])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_padded(options: dict[str, Any], dtype: torch.dtype) -> None:
    model = ours("GPT2Model", **LONG, **options).to(dtype)
    lengths = [150, 150, 64, 32, 31, 31, 5, 1]
    rows = random_ids(len(lengths), 150)
    mask = padded(lengths, 150, "right")
    alone = model(rows, attention_mask=mask).last_hidden_state[mask.bool()]
    packed = model.forward_packed(pack([row[:length] for row, length in zip(rows, lengths, strict=True)]))
    assert packed.dtype == dtype
    assert_close(packed.float(), alone.float(), tolerance=1e-4 if dtype == torch.float32 else 5e-2)


def test_order_in_the_pack_does_not_matter() -> None:
    model = ours("GPT2Model")
    sequences = [random_ids(length, seed=length) for length in (40, 3, 20, 3)]
    forth = model.forward_packed(pack(sequences)).split([40, 3, 20, 3])
    back = model.forward_packed(pack(sequences[::-1])).split([3, 20, 3, 40])
    for one, other in zip(forth, reversed(back), strict=True):
        assert_close(one, other)


def test_packed_pass_leaves_weights_and_input_alone_and_drops_nothing() -> None:
    model = ours("GPT2Model").train()
    packed = pack([random_ids(5), random_ids(5)])
    ids, weights = packed.input_ids.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    first, second = model.forward_packed(packed), model.forward_packed(packed)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(packed.input_ids, ids)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_projection_that_is_no_conv1d_is_called_as_it_is() -> None:
    model = ours("GPT2Model")
    packed = pack([random_ids(7)])
    expected = model.forward_packed(packed)
    for block in model.h:
        for part in (block.attn, block.mlp):
            for name, layer in list(part.named_children()):
                if name.startswith("c_"):
                    linear = torch.nn.Linear(*layer.weight.shape)
                    linear.weight, linear.bias = torch.nn.Parameter(layer.weight.T), layer.bias
                    setattr(part, name, linear)
    assert_close(model.forward_packed(packed), expected)


def test_sequence_that_is_too_long_is_named() -> None:
    with pytest.raises(InputError, match="sequence 1 of the pack has 41 tokens, n_positions is 40"):
        ours("GPT2Model").forward_packed(pack([[1], [1] * 41]))


def test_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="input_ids hold 97, vocab_size is 97"):
        ours("GPT2Model").forward_packed(pack([[1, 97]]))
