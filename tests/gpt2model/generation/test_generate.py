"""generate against transformers: greedy search, arguments, options, lengths, ends, records; and what it refuses."""

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given as hypothetically
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import gpt2model
from gpt2model import DynamicCache, GenerationConfig, GPT2LMHeadModel, GPT2Tokenizer, StaticCache
from gpt2model.errors import ConfigError, InputError
from gpt2model.generation import generate as module
from gpt2model.generation.generate import settings_of
from tests.gpt2model.generation.alike import (
    LENGTHS,
    PLACES,
    RECORD,
    assert_all_close,
    frequent,
    generated_alike,
    models,
    prompts,
)
from tests.gpt2model.oracle import PAD, SIZES, assert_close, padded_ids, random_ids

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "samples" / "gpt2-tiny"
CACHES: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}, {"use_cache": False}]


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2DoubleHeadsModel"])
def test_greedy_search_is_transformers(name: str, side: str, cache: dict[str, Any]) -> None:
    model, oracle = models(name)
    given = prompts(side)
    record = generated_alike(model, oracle, given, max_new_tokens=12, eos_token_id=frequent(model, given, 2), **cache)
    assert (record.past_key_values is None) == ("use_cache" in cache)
    assert PAD in record.sequences[:, PLACES:]


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 6},
        {"min_length": 12},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"sequence_bias": [[[3], 5.0], [[8, 9], -4.0]]},
        {"bad_words_ids": [[3], [8, 9]]},
        {"suppress_tokens": [1, 2, 3, 5]},
        {"begin_suppress_tokens": [8, 9, 10]},
        {"forced_eos_token_id": [5, 6]},
        {"forced_bos_token_id": 7},
        {"exponential_decay_length_penalty": (3, 1.3)},
        {"remove_invalid_values": True},
        {"renormalize_logits": True},
        {"max_length": 9},
        {"max_new_tokens": 1},
        {"max_new_tokens": 3, "max_length": 30},
        {"max_new_tokens": None, "max_length": 12, "min_new_tokens": 4, "min_length": 11},
        {"eos_token_id": None},
        {"pad_token_id": None},
        {"pad_token_id": 0},
        {"temperature": 0.3, "top_k": 2, "top_p": 0.1},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_k": 1, "temperature": 0.7, "top_p": 0.9, "renormalize_logits": True},
        {"do_sample": True, "top_p": 1e-6},
        {"do_sample": True, "min_p": 1.0},
        {"do_sample": True, "top_k": 5, "top_h": 1e-6},
        {"do_sample": True, "top_k": 0, "temperature": 1e-4},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["none", "left"])
def test_greedy_search_and_certain_draws_follow_every_option(side: str, options: dict[str, Any]) -> None:
    model, oracle = models()
    given = prompts(side, seed=1)
    common = {"max_new_tokens": 9, "eos_token_id": frequent(model, given, 2)}
    if "max_length" in options:
        del common["max_new_tokens"]
    generated_alike(model, oracle, given, **{**common, **options})


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("options", [{"encoder_repetition_penalty": 1.5}, {"encoder_no_repeat_ngram_size": 2}], ids=str)
def test_what_is_about_the_prompt_follows_transformers(options: dict[str, Any], beams: int) -> None:
    model, oracle = models()
    generated_alike(model, oracle, prompts("none", seed=2), max_new_tokens=8, num_beams=beams, **options)


@settings(max_examples=40, deadline=None, derandomize=True)
@hypothetically(data=st.data())
def test_any_batch_and_options_go_as_in_transformers(data: st.DataObject) -> None:
    model, oracle = models(seed=data.draw(st.integers(0, 3)))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    ids, mask = padded_ids(lengths, max(lengths), "left", seed=data.draw(st.integers(0, 99)))
    given = {"input_ids": ids, "attention_mask": mask}
    options: dict[str, Any] = {
        "max_new_tokens": data.draw(st.integers(1, 9)),
        "eos_token_id": frequent(model, given, data.draw(st.integers(1, 4))),
        "num_beams": data.draw(st.integers(1, 4)),
    }
    if options["num_beams"] > 1:
        options["length_penalty"] = data.draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
        options["early_stopping"] = data.draw(st.sampled_from([False, True, "never"]))
        options["num_return_sequences"] = data.draw(st.integers(1, options["num_beams"]))
    extra: dict[str, Any] = {
        "repetition_penalty": 1.5,
        "min_new_tokens": 1,
        "bad_words_ids": [[1], [2, 3]],
        "sequence_bias": [[[4], 3.0], [[5, 6], 2.0]],
        "exponential_decay_length_penalty": (2, 1.2),
        "renormalize_logits": True,
        "cache_implementation": "static",
    }
    chosen = data.draw(st.sets(st.sampled_from(sorted(extra))))
    generated_alike(model, oracle, given, **options, **{name: extra[name] for name in chosen})


def test_states_and_attentions_of_every_step_are_in_the_record() -> None:
    model, oracle = models()
    for beams in (1, 3):
        given = prompts("left", seed=3)
        options = {"max_new_tokens": 5, "num_beams": beams, "eos_token_id": None}
        options |= {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
        record, expected = model.generate(**given, **options), oracle.generate(**given, **options)
        real = given["attention_mask"].repeat_interleave(beams, dim=0)
        assert len(record.hidden_states) == len(record.attentions) == 5
        for name in ("hidden_states", "attentions"):
            for step, layers in enumerate(getattr(record, name)):
                for mine, other in zip(layers, getattr(expected, name)[step], strict=True):
                    where = real if step == 0 else torch.ones(3 * beams, 1)
                    rows = (1, 2) if name == "attentions" else (1, 1)
                    assert_close(mine.transpose(*rows), other.transpose(*rows), where)


def test_a_record_holds_what_was_asked_for_alone_and_reads_like_a_tuple() -> None:
    model, oracle = models()
    given = prompts("left", seed=4)
    for options in ({}, {"output_scores": True}, {"output_logits": True}, {"num_beams": 2}, {"use_cache": False}):
        asked = {"return_dict_in_generate": True, "max_new_tokens": 3, **options}
        record, expected = model.generate(**given, **asked), oracle.generate(**given, **asked)
        assert [name for name in expected if expected[name] is not None] == [
            name for name in type(record).__dataclass_fields__ if getattr(record, name) is not None
        ]
        assert len(record) == len(expected.to_tuple())
        assert record[0] is record.sequences
    assert type(model.generate(**given, output_scores=True, max_new_tokens=2)) is Tensor


def test_the_record_is_of_the_right_kind() -> None:
    model, _ = models()
    for beams, name in ((1, "GenerateDecoderOnlyOutput"), (2, "GenerateBeamDecoderOnlyOutput")):
        record = model.generate(**prompts(), num_beams=beams, max_new_tokens=2, return_dict_in_generate=True)
        assert type(record).__name__ == name


@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("with_ids", [False, True])
def test_embeddings_are_continued_like_the_ids_they_are_of(with_ids: bool, beams: int, cache: dict[str, Any]) -> None:
    model, oracle = models()
    given = prompts("left", seed=5)
    embedded = {"inputs_embeds": model.get_input_embeddings()(given["input_ids"]).detach()}
    embedded["attention_mask"] = given["attention_mask"]
    if with_ids:
        embedded["input_ids"] = given["input_ids"]
    options = {"num_beams": beams, "max_new_tokens": 8, "eos_token_id": frequent(model, given)}
    record = model.generate(**embedded, **options, **cache)
    assert torch.equal(record, oracle.generate(**embedded, **options))
    whole = model.generate(**given, **options)
    assert torch.equal(record, whole if with_ids else whole[:, PLACES:])


@pytest.mark.parametrize("options", [{"max_length": 12}, {"min_length": 12}, {"min_new_tokens": 5}], ids=str)
def test_lengths_count_embeddings_as_transformers_does(options: dict[str, Any]) -> None:
    model, oracle = models()
    given = prompts("none", seed=6)
    ends = frequent(model, given)
    embeds = model.get_input_embeddings()(given["input_ids"]).detach()
    common = {} if "max_length" in options else {"max_new_tokens": 9}
    generated_alike(model, oracle, {"inputs_embeds": embeds}, **common, **options, eos_token_id=ends)


@pytest.mark.parametrize("beams", [1, 3])
def test_token_types_of_new_tokens_are_the_prompts_last(beams: int) -> None:
    model, oracle = models()
    given = {**prompts("left", seed=7), "token_type_ids": random_ids(3, PLACES, seed=8)}
    for cache in CACHES:
        generated_alike(model, oracle, given, num_beams=beams, max_new_tokens=6, **cache)


@pytest.mark.parametrize("beams", [1, 3])
def test_positions_may_be_given(beams: int) -> None:
    model, oracle = models()
    given = {**prompts("none", seed=8), "position_ids": torch.arange(5, 5 + PLACES).expand(3, -1)}
    record = generated_alike(model, oracle, given, num_beams=beams, max_new_tokens=6)
    again = model.generate(**{**given, "position_ids": given["position_ids"][:1]}, num_beams=beams, max_new_tokens=6)
    assert torch.equal(again, record.sequences)


@pytest.mark.parametrize("beams", [1, 3])
def test_an_encoders_states_are_attended_to(beams: int) -> None:
    model, oracle = models(add_cross_attention=True)
    states = torch.randn(3, 6, SIZES["n_embd"], generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    given = {**prompts("left", seed=9), "encoder_hidden_states": states, "encoder_attention_mask": mask}
    record = generated_alike(model, oracle, given, num_beams=beams, max_new_tokens=6)
    assert not torch.equal(
        record.sequences, model.generate(**prompts("left", seed=9), num_beams=beams, max_new_tokens=6)
    )
    alone = {name: given[name] for name in ("encoder_hidden_states", "encoder_attention_mask")}
    generated_alike(model, oracle, alone, num_beams=beams, max_new_tokens=6)


def test_without_any_input_one_row_begins_with_bos() -> None:
    model, oracle = models()
    generated_alike(model, oracle, {}, max_new_tokens=5)
    generated_alike(model, oracle, {}, max_new_tokens=5, bos_token_id=9, num_beams=2)
    with pytest.raises(InputError, match="no bos_token_id"):
        model.generate(bos_token_id=None)


def test_without_a_mask_pad_tokens_are_padding_unless_they_end_rows() -> None:
    model, oracle = models()
    ids = prompts("left", seed=10)["input_ids"]
    seen = generated_alike(model, oracle, {"input_ids": ids}, max_new_tokens=6)
    read = generated_alike(model, oracle, {"input_ids": ids}, max_new_tokens=6, eos_token_id=[3, PAD])
    assert not torch.equal(seen.sequences, read.sequences)


def test_32_bit_ids_are_as_good() -> None:
    model, _ = models()
    ids = random_ids(2, 5)
    assert torch.equal(model.generate(ids.int(), max_new_tokens=4), model.generate(ids, max_new_tokens=4))


def test_a_returned_cache_goes_on_where_it_ended() -> None:
    model, _ = models()
    given = prompts("left", seed=11)
    ends = {"eos_token_id": None}
    whole = model.generate(**given, max_new_tokens=9, **ends)
    for cache in CACHES[:2]:
        first = model.generate(**given, max_new_tokens=4, return_dict_in_generate=True, **ends)
        assert first.past_key_values.get_seq_length() == PLACES + 3
        mask = torch.cat([given["attention_mask"], torch.ones(3, 4, dtype=torch.int64)], dim=1)
        second = model.generate(
            first.sequences, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=5, **ends
        )
        assert torch.equal(second, whole), cache


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("alone", [False, True])
def test_a_given_cache_holds_the_beginning(alone: bool, beams: int) -> None:
    model, oracle = models()
    ids = random_ids(2, 9, seed=12)
    caches = DynamicCache(), StaticCache(model.config, 2 * beams, 30), transformers.DynamicCache()
    found = []
    for cache in caches:
        generator = oracle if cache is caches[2] else model
        beginning = ids[:, :6].repeat_interleave(beams, dim=0)
        with torch.no_grad():
            generator(beginning, past_key_values=cache, use_cache=True)
        options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 6, "eos_token_id": None}
        mask = torch.ones_like(ids)
        new = ids[:, 6:] if alone else ids
        found.append(generator.generate(new, attention_mask=mask, past_key_values=cache, **options))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_processors_and_criteria_are_taken(beams: int) -> None:
    model, oracle = models()
    given = prompts("none", seed=13)

    class Doubling(transformers.LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            last = input_ids[:, -1:]
            return scores.scatter(1, last, scores.gather(1, last) * 2)

    class AtThirds(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            assert len(scores) == input_ids.shape[1] - PLACES
            return input_ids[:, -1] % 3 == 0

    record = generated_alike(
        model,
        oracle,
        given,
        num_beams=beams,
        max_new_tokens=9,
        logits_processor=transformers.LogitsProcessorList([Doubling()]),
        stopping_criteria=transformers.StoppingCriteriaList([AtThirds()]),
    )
    assert PAD in record.sequences


def test_a_processor_that_writes_to_its_scores_leaves_the_logits_alone() -> None:
    model, _ = models()

    def flattening(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.mul_(0.5)

    plain = model.generate(**prompts(), max_new_tokens=4, **RECORD)
    record = model.generate(**prompts(), max_new_tokens=4, logits_processor=[flattening], **RECORD)
    assert_all_close(record.logits, plain.logits)
    assert_all_close(record.scores, tuple(each / 2 for each in plain.logits))


def test_a_criterion_may_answer_for_all_rows_and_gets_no_scores_that_nobody_keeps() -> None:
    model, _ = models()

    def full(input_ids: Tensor, scores: tuple[Tensor, ...] | None) -> bool:
        assert scores is None
        return input_ids.shape[1] >= PLACES + 3

    assert model.generate(**prompts(), stopping_criteria=[full], eos_token_id=None).shape == (3, PLACES + 3)


def test_rows_that_a_criterion_ended_are_filled_up_whatever_there_is_to_fill_with() -> None:
    model, _ = models()
    given = prompts("left", seed=14)

    def ended(input_ids: Tensor, scores: tuple[Tensor, ...] | None) -> Tensor:
        return torch.tensor([False, True, input_ids.shape[1] > PLACES + 1])

    for fill, ids in ((PAD, {"pad_token_id": PAD}), (3, {"eos_token_id": [3, 4]}), (-1, {"eos_token_id": None})):
        asked = {"pad_token_id": None, **ids, "max_new_tokens": 4, "min_new_tokens": 4}
        found = model.generate(**given, **asked, stopping_criteria=[ended])[:, PLACES:]
        assert (found[1:] == fill).tolist() == [[False, True, True, True], [False, False, True, True]]
        assert fill not in found[0]


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_end_rows_where_transformers_ends_them(beams: int) -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(TINY), GPT2Tokenizer.from_pretrained(TINY)
    oracle = transformers.GPT2LMHeadModel.from_pretrained(TINY, attn_implementation="eager")
    peer = transformers.GPT2Tokenizer.from_pretrained(TINY)
    ids = [tokenizer(text)["input_ids"][:3] for text in ("The town of", "I have never", "She said it")]
    given = {"input_ids": torch.tensor(ids)}
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 14, "eos_token_id": 2047}
    said = tokenizer.batch_decode(model.generate(**given, **options))
    border = len(tokenizer.decode(ids[0]))
    # A piece across tokens, a word beside a string that is nowhere, one that begins in the prompt, one that is in it.
    for row, strings in (
        (0, said[0][border + 8 : border + 12]),
        (1, [said[1].split()[5], "no such"]),
        (0, said[0][border - 2 : border + 2]),
        (None, tokenizer.decode(ids[0])),
    ):
        found = model.generate(**given, **options, stop_strings=strings, tokenizer=tokenizer)
        assert torch.equal(found, oracle.generate(**given, **options, stop_strings=strings, tokenizer=peer)), strings
        assert row is None or beams > 1 or 2047 in found[row]
    with pytest.raises(InputError, match="the tokenizer"):
        model.generate(**given, stop_strings="a")


@pytest.mark.parametrize("beams", [1, 2])
def test_max_time_ends_all_rows_after_the_step_in_which_it_passes(beams: int) -> None:
    model, oracle = models()
    given = prompts("left", seed=15)
    options: dict[str, Any] = {"num_beams": beams, "eos_token_id": None, "max_new_tokens": 30}
    found = model.generate(**given, **options, max_time=1e-9)
    assert found.shape == (3, PLACES + 1)
    assert torch.equal(found, oracle.generate(**given, **options, max_time=1e-9))
    assert model.generate(**given, **options, max_time=1e6).shape == (3, PLACES + 30)


class Listener:
    """A streamer that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []

    def put(self, value: Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append(["end"])


def test_a_streamer_hears_what_transformers_lets_it_hear() -> None:
    model, oracle = models()
    given = prompts("left", seed=16)
    mine, other = Listener(), Listener()
    options = {"max_new_tokens": 9, "eos_token_id": frequent(model, given, 2)}
    model.generate(**given, **options, streamer=mine)
    oracle.generate(**given, **options, streamer=other)
    assert mine.heard == other.heard
    with pytest.raises(InputError, match="num_beams=2 with a streamer"):
        model.generate(**given, num_beams=2, streamer=mine)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
def test_20_tokens_are_added_where_nothing_is_said() -> None:
    model, oracle = models()
    generated_alike(model, oracle, prompts("left", seed=17), eos_token_id=None)


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_a_sequence_ends_with_the_token_behind_the_last_position(cache: dict[str, Any]) -> None:
    model, oracle = models()
    limit = SIZES["n_positions"]
    for length in (limit, limit - 1, limit - 5):
        ids = padded_ids([length] * 2, length, "none", seed=length)[0]
        found = model.generate(ids, max_new_tokens=30, eos_token_id=None, **cache)
        assert found.shape == (2, limit + 1)
        assert torch.equal(found, oracle.generate(ids, max_new_tokens=limit + 1 - length, eos_token_id=None))
        assert torch.equal(found, model.generate(ids, max_length=500, eos_token_id=None, **cache))


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_padded_rows_end_at_the_edge_each_at_its_own_length(cache: dict[str, Any]) -> None:
    model, _ = models()
    limit = SIZES["n_positions"]
    ids, mask = padded_ids([limit, limit - 3, limit - 7], limit + 2, "left", seed=18)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=6, eos_token_id=None, **cache)
    assert found.shape == (3, limit + 2 + 6)
    for row, length in enumerate((limit, limit - 3, limit - 7)):
        alone = model.generate(ids[row : row + 1, limit + 2 - length :], max_new_tokens=6, eos_token_id=None)[0]
        assert found[row, limit + 2 - length :].tolist() == alone.tolist() + [PAD] * (length + 6 - len(alone))


def test_the_same_row_is_continued_alike_alone_and_in_a_batch() -> None:
    model, _ = models()
    given = prompts("left", seed=19)
    ends = frequent(model, given)
    batch = model.generate(**given, max_new_tokens=9, eos_token_id=ends)
    for row, length in enumerate(LENGTHS):
        alone = model.generate(
            given["input_ids"][row : row + 1, PLACES - length :], max_new_tokens=9, eos_token_id=ends
        )
        assert batch[row, PLACES - length :][: alone.shape[1]].tolist() == alone[0].tolist()


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_either_attention_gives_the_same(attn_implementation: str) -> None:
    model, oracle = models(attn_implementation=attn_implementation)
    generated_alike(model, oracle, prompts("left", seed=20), max_new_tokens=6)


def test_scores_are_float32_in_half_precision() -> None:
    model = GPT2LMHeadModel(models()[0].config).half().eval()
    record = model.generate(random_ids(2, 5), max_new_tokens=3, cache_implementation="static", **RECORD)
    assert {each.dtype for each in (*record.scores, *record.logits)} == {torch.float32}
    assert record.sequences.dtype == torch.int64


def test_a_real_trained_model_continues_as_in_transformers(mgm_folder: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(mgm_folder)
    oracle = transformers.GPT2LMHeadModel.from_pretrained(mgm_folder, attn_implementation="eager")
    assert model.generation_config.eos_token_id == (oracle.generation_config.eos_token_id,)
    ids = torch.tensor([[0, 0, 2, 964], [2, 6350, 320, 3317], [0, 2, 4401, 4227]])
    given = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    for options in (
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 4, "length_penalty": 0.0, "early_stopping": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ):
        # transformers takes the pad token 0 of a search for none, see test_beams.py.
        generated_alike(
            model, oracle, given, max_new_tokens=16, pad_token_id=3 if "num_beams" in options else 0, **options
        )


def test_the_call_goes_before_the_config_given_and_that_before_the_models() -> None:
    model = GPT2LMHeadModel(models()[0].config)
    defaults = GenerationConfig(max_new_tokens=3, eos_token_id=5, pad_token_id=6, temperature=0.5)
    model.generation_config = defaults
    given = GenerationConfig(max_new_tokens=4, pad_token_id=7)
    assert settings_of(defaults, None, {}) == defaults
    assert settings_of(defaults, None, {"pad_token_id": 8, "eos_token_id": None}).pad_token_id == 8
    merged = settings_of(defaults, given, {"min_new_tokens": 2})
    assert (merged.max_new_tokens, merged.pad_token_id, merged.eos_token_id) == (4, 7, (5,))
    assert (merged.min_new_tokens, merged.temperature) == (2, 1.0)
    ids = random_ids(1, 4)
    for call, length in (((), 3), ((given,), 4)):
        assert model.generate(ids, *call, eos_token_id=None).shape[1] == 4 + length
    assert model.generate(ids, given, max_new_tokens=1).shape[1] == 5
    assert (model.generation_config, given) == (defaults, GenerationConfig(max_new_tokens=4, pad_token_id=7))


def test_a_checkpoints_generation_config_decides_and_goes_both_ways(tmp_path: Path) -> None:
    model, oracle = models()
    model.save_pretrained(tmp_path / "ours")
    said = {
        "eos_token_id": [3, 4],
        "max_new_tokens": 6,
        "num_beams": 2,
        "pad_token_id": 1,
        "transformers_version": "4.33.3",
    }
    for folder, saving in (("ours", model), ("theirs", oracle)):
        saving.save_pretrained(tmp_path / folder)
        held = json.loads((tmp_path / folder / "generation_config.json").read_text())
        assert {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": PAD}.items() <= held.items()
        (tmp_path / folder / "generation_config.json").write_text(json.dumps(said))
        read = GPT2LMHeadModel.from_pretrained(tmp_path / folder)
        peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / folder)
        assert (read.generation_config.eos_token_id, read.generation_config.num_beams) == ((3, 4), 2)
        ids = random_ids(2, 5)
        assert torch.equal(read.generate(ids), peer.generate(ids))
    read.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == said
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "again").num_beams == 2


def test_models_without_a_language_head_generate_nothing(tmp_path: Path) -> None:
    models()[0].save_pretrained(tmp_path)
    base = gpt2model.GPT2Model.from_pretrained(tmp_path)
    assert not hasattr(base, "generate")
    base.save_pretrained(tmp_path / "base")
    assert not (tmp_path / "base" / "generation_config.json").exists()


def test_nothing_of_the_callers_is_written_to() -> None:
    model, _ = models()
    given = {**prompts("left", seed=21), "token_type_ids": random_ids(3, PLACES), "position_ids": None}
    kept = {name: None if value is None else value.clone() for name, value in given.items()}
    config = model.generation_config
    for beams in (1, 2):
        for cache in CACHES:
            model.generate(**given, num_beams=beams, repetition_penalty=1.2, max_new_tokens=4, **cache)
    for name, value in kept.items():
        assert value is None or torch.equal(value, given[name])
    assert model.generation_config is config


@pytest.mark.parametrize("beams", [1, 2])
def test_a_model_in_training_stays_so_and_learns_from_what_it_said(beams: int) -> None:
    model = GPT2LMHeadModel(models()[0].config.replace(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 4}
    record = model.generate(random_ids(2, 5), **options, **RECORD)
    assert model.training
    # Autograd refuses to keep tensors that were made under inference_mode.
    loss = model(record.sequences, labels=record.sequences).loss
    (loss * record.scores[0].logsumexp(dim=-1).exp().mean()).backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())
    assert torch.equal(record.sequences, model.eval().generate(random_ids(2, 5), **options))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_token": 3}, ["max_new_token", "max_new_tokens"]),
        ({"inputs": 3}, ["inputs", "input_ids"]),
        ({"attention_masks": 3}, ["attention_masks", "attention_mask"]),
        ({"labels": 3}, ["labels"]),
        ({"num_beam_groups": 2}, ["num_beam_groups=2"]),
        ({"num_return_sequences": 2}, ["num_return_sequences=2", "do_sample"]),
        ({"generation_config": {"max_length": 3}}, ["generation_config", "dict"]),
    ],
    ids=str,
)
def test_an_impossible_option_is_refused_by_name(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        models()[0].generate(random_ids(1, 3), **arguments)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_ids": random_ids(2, 41)}, ["41 tokens", "n_positions is 40", "last 40"]),
        ({"input_ids": random_ids(2, 7), "max_length": 7}, ["max_length=7", "7 places", "max_new_tokens"]),
        ({"input_ids": random_ids(2, 7), "seed": 2**63}, [f"seed={2**63}"]),
        ({"input_ids": random_ids(2, 7), "past_key_values": ()}, ["past_key_values is a tuple", "DynamicCache"]),
        (
            {"input_ids": random_ids(2, 7), "past_key_values": DynamicCache(), "use_cache": False},
            ["past_key_values with use_cache=False"],
        ),
        (
            {"input_ids": random_ids(2, 7), "past_key_values": DynamicCache(), "cache_implementation": "static"},
            ["past_key_values with cache_implementation='static'"],
        ),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, dict) else "",
)
def test_an_impossible_argument_is_refused_by_name(arguments: dict[str, Any], words: list[str]) -> None:
    arguments = {"do_sample": "seed" in arguments, **arguments}
    with pytest.raises(InputError) as raised:
        models()[0].generate(**arguments)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_step_that_leaves_no_token_names_the_row(do_sample: bool) -> None:
    model, _ = models()

    def nothing(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill((input_ids[:, -1:] == input_ids[1, -1]) & (input_ids.shape[1] > PLACES), -torch.inf)

    with pytest.raises(InputError, match="no token can follow the 1 new ones of row"):
        model.generate(**prompts(), do_sample=do_sample, logits_processor=[nothing], eos_token_id=None)


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (example,) = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert doctest.DocTestRunner().run(example).failed == 0


def test_all_scores_of_a_padded_batch_are_those_of_its_rows_alone() -> None:
    model, _ = models()
    given = prompts("left", seed=22)
    batch = model.generate(**given, max_new_tokens=5, eos_token_id=None, **RECORD)
    for row, length in enumerate(LENGTHS):
        ids = given["input_ids"][row : row + 1, PLACES - length :]
        alone = model.generate(ids, max_new_tokens=5, eos_token_id=None, **RECORD)
        assert_all_close(tuple(each[row : row + 1] for each in batch.scores), alone.scores)


def test_impossible_options_in_the_file_cost_only_who_asks_for_them(tmp_path: Path) -> None:
    model, _ = models()
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.0}))
    loaded = type(model).from_pretrained(tmp_path)
    ids = prompts("none")["input_ids"]
    assert_close(loaded(ids).logits, model(ids).logits)
    with pytest.raises(ConfigError, match=r"generation_config\.json: temperature=0\.0"):
        loaded.generate(ids)
    loaded.generation_config = GenerationConfig(max_new_tokens=2)
    assert loaded.generate(ids).shape[1] == ids.shape[1] + 2
