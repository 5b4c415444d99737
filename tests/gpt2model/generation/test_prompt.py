"""What prompts become: places, positions, lengths; and what no prompt can be."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2model.config import GPT2Config
from gpt2model.errors import InputError
from gpt2model.generation.config import GenerationConfig
from gpt2model.generation.context import NO_TOKEN
from gpt2model.generation.prompt import Inputs, Prompt, prompt_of
from tests.gpt2model.oracle import PAD, SIZES, padded_ids, random_ids

CONFIG = GPT2Config(**SIZES)
LIMIT = SIZES["n_positions"]


def read(
    input_ids: Tensor | None = None, *, past: int = 0, options: dict[str, Any] | None = None, **tensors: Tensor | None
) -> tuple[Prompt, Inputs]:
    settings = GenerationConfig(**{"max_new_tokens": 5, **(options or {})})
    return prompt_of(input_ids, tensors, past=past, options=settings, config=CONFIG, device=torch.device("cpu"))


def test_padding_is_no_token_and_takes_no_position() -> None:
    ids, mask = padded_ids([4, 2], 4, "left")
    prompt, inputs = read(ids, attention_mask=mask)
    assert prompt.ids[1].tolist() == [NO_TOKEN, NO_TOKEN, *ids[1, 2:].tolist()]
    assert torch.equal(prompt.input_ids, ids)
    assert inputs.positions is not None
    assert inputs.positions.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert inputs.depths.tolist() == [4, 2]
    assert prompt.max_lengths.tolist() == [9, 9]


@pytest.mark.parametrize("mask", [None, torch.ones(2, 4), torch.full((2, 4), True)])
def test_nothing_is_said_of_padding_where_there_is_none(mask: Tensor | None) -> None:
    prompt, inputs = read(random_ids(2, 4), attention_mask=mask)
    assert inputs.seen is None
    assert inputs.positions is None
    assert torch.equal(prompt.ids, prompt.input_ids)


def test_a_row_may_become_as_long_as_the_context_and_its_own_padding_let_it() -> None:
    ids, mask = padded_ids([LIMIT, 30, 1], LIMIT, "left")
    prompt, _ = read(ids, attention_mask=mask, options={"max_new_tokens": 12})
    assert prompt.max_lengths.tolist() == [LIMIT + 1, LIMIT + 11, LIMIT + 12]


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"max_new_tokens": 3}, 7),
        ({"max_new_tokens": None}, 24),
        ({"max_new_tokens": None, "max_length": 6}, 6),
        ({"max_new_tokens": 3, "max_length": 4}, 7),
        ({"max_new_tokens": 1000}, LIMIT + 1),
    ],
)
def test_lengths_are_counted_with_the_prompt(options: dict[str, Any], length: int) -> None:
    assert read(random_ids(1, 4), options=options)[0].max_lengths.tolist() == [length]


def test_embeddings_alone_have_places_but_no_ids() -> None:
    prompt, inputs = read(inputs_embeds=torch.randn(2, 3, SIZES["n_embd"]))
    assert prompt.input_ids.shape == (2, 0)
    assert prompt.ids.tolist() == [[NO_TOKEN] * 3] * 2
    assert prompt.max_lengths.tolist() == [8, 8]
    assert inputs.new.shape == (2, 3, SIZES["n_embd"])


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_cache_holds_is_not_read_again(alone: bool) -> None:
    ids, mask = padded_ids([7, 5], 7, "left")
    prompt, inputs = read(ids[:, 4:] if alone else ids, past=4, attention_mask=mask, token_type_ids=ids.clamp(max=5))
    assert torch.equal(inputs.new, ids[:, 4:])
    assert inputs.positions is not None
    assert inputs.positions.tolist() == [[4, 5, 6], [2, 3, 4]]
    assert inputs.depths.tolist() == [7, 5]
    assert inputs.token_types is not None
    assert torch.equal(inputs.token_types, ids[:, 4:].clamp(max=5))
    assert prompt.max_lengths.tolist() == ([8, 8] if alone else [12, 12])


def test_pad_tokens_are_padding_unless_a_mask_or_the_eos_token_says_otherwise() -> None:
    ids, mask = padded_ids([4, 2], 4, "left")
    for tensors, options, padded in (
        ({}, {"pad_token_id": PAD}, True),
        ({}, {"pad_token_id": PAD, "eos_token_id": [0, PAD]}, False),
        ({}, {}, False),
        ({"attention_mask": mask}, {}, True),
        ({"attention_mask": torch.ones_like(ids)}, {"pad_token_id": PAD}, False),
    ):
        _, inputs = read(ids, options=options, **tensors)
        assert (inputs.seen is not None) == padded
        assert inputs.seen is None or torch.equal(inputs.seen, mask.bool())


def test_rows_are_repeated_one_after_the_other() -> None:
    ids, mask = padded_ids([4, 2], 4, "left")
    prompt, inputs = read(ids, attention_mask=mask)
    assert torch.equal(prompt.repeated(2).ids, prompt.ids[[0, 0, 1, 1]])
    assert inputs.positions is not None
    assert torch.equal(inputs.repeated(2).positions, inputs.positions[[0, 0, 1, 1]])
    assert inputs.repeated(2).token_types is None
    assert prompt.repeated(1) is prompt


def test_contexts_count_all_places() -> None:
    ids, mask = padded_ids([3, 2], 3, "left")
    prompt, _ = read(ids, attention_mask=mask)
    context = prompt.context(torch.tensor([[8, 9], [6, 7]]))
    assert context.ids.tolist() == [[*ids[0].tolist(), 8, 9], [NO_TOKEN, *ids[1, 1:].tolist(), 6, 7]]
    assert (context.lengths.tolist(), context.prompt_lengths.tolist()) == ([5, 5], [3, 3])
    assert prompt.sequences(torch.tensor([[8], [6]])).tolist() == [[*ids[0].tolist(), 8], [*ids[1].tolist(), 6]]


@pytest.mark.parametrize(
    ("tensors", "options", "words"),
    [
        ({}, {}, ["no input", "bos_token_id"]),
        ({"input_ids": torch.ones(3, dtype=torch.int64)}, {}, ["input_ids of shape (3,)", "[rows, length]"]),
        ({"input_ids": torch.ones(2, 0, dtype=torch.int64)}, {}, ["(2, 0)", "bos_token_id"]),
        ({"input_ids": torch.ones(0, 2, dtype=torch.int64)}, {}, ["(0, 2)", "at least one row"]),
        ({"input_ids": {"input_ids": 3}}, {}, ["input_ids is a dict", "**"]),
        ({"input_ids": torch.ones(2, 3)}, {}, ["torch.float32", "torch.int64"]),
        ({"input_ids": torch.full((2, 3), 97)}, {}, ["97", "0 to 96"]),
        ({"inputs_embeds": torch.ones(2, 3)}, {}, ["inputs_embeds of shape (2, 3)", "[rows, length, 32]"]),
        ({"inputs_embeds": torch.ones(2, 3, 31)}, {}, ["(2, 3, 31)"]),
        (
            {"input_ids": random_ids(2, 4), "inputs_embeds": torch.ones(2, 3, 32)},
            {},
            ["input_ids of shape (2, 4)", "inputs_embeds of shape (2, 3, 32)"],
        ),
        ({"input_ids": random_ids(2, 4), "attention_mask": torch.ones(2, 5)}, {}, ["attention_mask of shape (2, 5)"]),
        ({"input_ids": random_ids(2, 4), "attention_mask": torch.ones(3, 4)}, {}, ["(3, 4)", "2 rows"]),
        ({"input_ids": random_ids(2, 4), "attention_mask": torch.ones(2, 1, 4, 4)}, {}, ["(2, 1, 4, 4)"]),
        ({"input_ids": random_ids(2, 4), "position_ids": torch.ones(2, 3)}, {}, ["position_ids of shape (2, 3)", "4"]),
        ({"input_ids": random_ids(2, 4), "token_type_ids": torch.ones(3, 4)}, {}, ["token_type_ids of shape (3, 4)"]),
        (
            {"input_ids": random_ids(2, 4), "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]])},
            {},
            ["row 1", "right", "attention_mask ends in 0", "padding_side='left'"],
        ),
        (
            {"input_ids": torch.tensor([[1, 2], [3, PAD]])},
            {"pad_token_id": PAD},
            ["row 1", "right", f"pad_token_id={PAD}"],
        ),
        ({"input_ids": random_ids(2, 41)}, {}, ["row 0", "41 tokens", "n_positions is 40", "last 40"]),
        ({"inputs_embeds": torch.ones(1, 41, 32)}, {}, ["41 tokens", "n_positions is 40"]),
        ({"input_ids": random_ids(1, 4)}, {"max_new_tokens": None, "max_length": 4}, ["max_length=4", "4 places"]),
        ({"input_ids": random_ids(1, 4), "past": 4}, {}, ["past_key_values holds 4", "prompts have 4"]),
        (
            {"input_ids": random_ids(1, 4), "past": 2, "attention_mask": torch.ones(1, 5)},
            {},
            ["attention_mask of shape (1, 5)", "6"],
        ),
    ],
    ids=lambda value: "",
)
def test_what_is_no_prompt_is_refused(tensors: dict[str, Any], options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        read(**tensors, options=options)
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_long_row_is_measured_without_its_padding() -> None:
    ids, mask = padded_ids([LIMIT, LIMIT - 3], LIMIT + 5, "left")
    assert read(ids, attention_mask=mask)[1].depths.tolist() == [LIMIT, LIMIT - 3]
    ids, mask = padded_ids([3, LIMIT + 1], LIMIT + 5, "left")
    with pytest.raises(InputError, match=f"row 1 has a prompt of {LIMIT + 1} tokens"):
        read(ids, attention_mask=mask)
