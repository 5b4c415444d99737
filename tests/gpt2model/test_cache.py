"""With a cache, in whatever steps, a model computes what it computes at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpt2model import DynamicCache, StaticCache
from gpt2model.errors import InputError

from .oracle import assert_close, ours, padded, random_ids, theirs

IDS = random_ids(3, 12)
STATES = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))


def static(model: Any) -> StaticCache:
    return StaticCache(model.config, batch_size=3, max_length=12)


CACHES: dict[str, Callable[[Any], Any]] = {"dynamic": lambda model: DynamicCache(), "static": static}
every_cache = pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)


@every_cache
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("steps", [[12], [5, 7], [1] * 12, [6, 1, 1, 4]], ids=str)
@torch.inference_mode()
def test_steps_equal_one_call(
    make: Callable[[Any], Any], attn_implementation: str, side: str | None, steps: list[int]
) -> None:
    model = ours(attn_implementation=attn_implementation)
    mask = torch.ones(3, 12).long() if side is None else padded([12, 7, 2], 12, side)
    whole = theirs(model)(IDS, attention_mask=mask).logits
    cache, done = make(model), 0
    for step in steps:
        part = slice(done, done + step)
        done += step
        out = model(IDS[:, part], attention_mask=mask[:, :done], past_key_values=cache)
        assert out.past_key_values is cache
        assert cache.get_seq_length() == done
        if mask[:, part].any():
            assert_close(out.logits, whole[:, part], mask[:, part])


@torch.inference_mode()
def test_cached_step_equals_transformers_cached_step() -> None:
    model = ours()
    oracle = theirs(model)
    actual, expected = model(IDS[:, :8]), oracle(IDS[:, :8])
    for place in range(8, 12):
        token = IDS[:, place : place + 1]
        actual = model(token, past_key_values=actual.past_key_values)
        expected = oracle(token, past_key_values=expected.past_key_values)
        assert_close(actual.logits, expected.logits)


def test_cache_given_without_use_cache_is_used_and_not_returned() -> None:
    model = ours()
    cache = model(IDS[:, :4]).past_key_values
    out = model(IDS[:, 4:], past_key_values=cache, use_cache=False)
    assert out.past_key_values is None
    assert_close(out.logits, model(IDS).logits[:, 4:])


@every_cache
@torch.inference_mode()
def test_encoder_states_are_projected_once(make: Callable[[Any], Any]) -> None:
    model = ours(add_cross_attention=True)
    whole = model(IDS, encoder_hidden_states=STATES).logits
    cache = make(model)
    model(IDS[:, :6], encoder_hidden_states=STATES, past_key_values=cache)
    out = model(IDS[:, 6:], encoder_hidden_states=torch.full_like(STATES, torch.nan), past_key_values=cache)
    assert_close(out.logits, whole[:, 6:])


@every_cache
@torch.inference_mode()
def test_cropped_cache_goes_on_from_there(make: Callable[[Any], Any]) -> None:
    model = ours()
    cache = make(model)
    model(IDS, past_key_values=cache)
    cache.crop(4)
    assert cache.get_seq_length() == 4
    assert_close(model(IDS[:, 4:], past_key_values=cache).logits, model(IDS).logits[:, 4:])


@every_cache
@pytest.mark.parametrize("length", [-1, 13])
@torch.inference_mode()
def test_cache_cannot_be_cropped_to_more_than_it_holds(make: Callable[[Any], Any], length: int) -> None:
    model = ours()
    cache = make(model)
    model(IDS, past_key_values=cache)
    with pytest.raises(InputError, match="the cache holds 12 positions"):
        cache.crop(length)


@every_cache
@torch.inference_mode()
def test_reordered_cache_continues_the_chosen_rows(make: Callable[[Any], Any]) -> None:
    model = ours(add_cross_attention=True)
    chosen = torch.tensor([2, 2, 0])
    cache = make(model)
    model(IDS[:, :7], encoder_hidden_states=STATES, past_key_values=cache)
    cache.reorder(chosen)
    out = model(IDS[:, 7:], encoder_hidden_states=STATES, past_key_values=cache)
    rows = torch.cat((IDS[chosen, :7], IDS[:, 7:]), dim=1)
    assert_close(out.logits, model(rows, encoder_hidden_states=STATES[chosen]).logits[:, 7:])


@torch.inference_mode()
def test_full_static_cache_is_refused_with_the_length_that_is_needed() -> None:
    model = ours()
    cache = StaticCache(model.config, batch_size=3, max_length=8)
    with pytest.raises(InputError, match="holds 8 positions, 12 are needed"):
        model(IDS, past_key_values=cache)


@every_cache
@torch.inference_mode()
def test_another_batch_is_refused(make: Callable[[Any], Any]) -> None:
    model = ours()
    cache = make(model)
    model(IDS[:, :4], past_key_values=cache)
    with pytest.raises(InputError, match="holds 3 rows, the input has 2"):
        model(IDS[:2, 4:], past_key_values=cache)


def test_static_cache_is_refused_where_gradients_are_kept() -> None:
    model = ours()
    with pytest.raises(InputError, match=r"torch\.inference_mode"):
        model(IDS, past_key_values=static(model))


def test_gradients_flow_through_a_dynamic_cache() -> None:
    model = ours()
    cache = model(IDS[:, :5]).past_key_values
    model(IDS[:, 5:], past_key_values=cache).logits.square().sum().backward()
    in_steps = model.transformer.wpe.weight.grad.clone()
    model.zero_grad()
    model(IDS).logits[:, 5:].square().sum().backward()
    assert_close(in_steps, model.transformer.wpe.weight.grad)


@torch.inference_mode()
def test_positions_after_the_cache_are_counted_against_n_positions() -> None:
    model = ours()
    cache = model(random_ids(1, 39)).past_key_values
    with pytest.raises(InputError, match="2 positions after 39 in past_key_values, n_positions is 40"):
        model(random_ids(1, 2), past_key_values=cache)
