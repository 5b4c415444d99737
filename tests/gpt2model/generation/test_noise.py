"""The noise is SplitMix64's, uniform, and a function of what it is said to be a function of."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2model.generation.noise import gumbel, step_keys, stream_keys

INT64 = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1


def split_mix(state: int) -> int:
    """The n-th number of SplitMix64 is this of seed + n * gamma; in Python's own integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def keys(seed: int = 0, row: int = 0, sample: int = 0, position: int = 0) -> torch.Tensor:
    one = [torch.tensor([value]) for value in (seed, row, sample)]
    return step_keys(stream_keys(*one), torch.tensor([position]))


@given(INT64, st.lists(st.integers(0, 60_000), min_size=1, max_size=20))
def test_the_noise_is_that_of_split_mix_64(key: int, tokens: list[int]) -> None:
    found = gumbel(torch.tensor([key]), torch.tensor(tokens))[0]
    for token, noise in zip(tokens, found.tolist(), strict=True):
        number = split_mix((key + (token + 1) * 0x9E3779B97F4A7C15) & MASK)
        uniform = torch.tensor(max((number >> 11) * 2.0**-53, 2.0**-54), dtype=torch.float64)
        assert noise == pytest.approx(float(-torch.log(-torch.log1p(-uniform))), rel=1e-5, abs=1e-5)


def test_split_mix_64_is_the_published_one() -> None:
    # The first number after seed 1234567 in the reference implementation's test vector.
    assert split_mix(1234567 + 0x9E3779B97F4A7C15) == 6457827717110365317


def test_each_of_seed_row_sample_and_position_changes_the_noise() -> None:
    tokens = torch.arange(5)
    drawn = {
        tuple(gumbel(keys(*where), tokens)[0].tolist()) for where in itertools.product([-1, 0, 1, 2**40], repeat=4)
    }
    assert len(drawn) == 4**4


def test_noise_is_the_same_alone_and_among_others() -> None:
    many = torch.arange(500) * 7919
    tokens = torch.arange(301)
    together = gumbel(many, tokens)
    chosen = tokens.flip(0)[:40]
    assert torch.equal(gumbel(many[123:124], tokens)[0], together[123])
    assert torch.equal(gumbel(many[123:125], chosen.expand(2, -1))[0], together[123, chosen])


def test_noise_follows_the_gumbel_distribution() -> None:
    streams = stream_keys(torch.zeros(400, dtype=torch.int64), torch.arange(400), torch.zeros(400, dtype=torch.int64))
    noise = gumbel(streams, torch.arange(500)).double().flatten()
    uniform = (-(-noise).exp()).exp()
    counts = torch.histc(uniform, bins=50, min=0, max=1)
    expected = len(noise) / 50
    # 49 degrees of freedom: beyond 100 lies a probability of 1e-5, and the seed is fixed.
    assert float(((counts - expected) ** 2 / expected).sum()) < 100
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(noise.var()) == pytest.approx(1.64493, abs=0.03)


@pytest.mark.parametrize("which", ["rows", "samples", "positions", "seeds"])
def test_neighbours_are_independent(which: str) -> None:
    count = 2000
    zeros, counted = torch.zeros(count, dtype=torch.int64), torch.arange(count)
    parts = {name: counted if name == which else zeros for name in ("seeds", "rows", "samples", "positions")}
    found = step_keys(stream_keys(parts["seeds"], parts["rows"], parts["samples"]), parts["positions"])
    noise = gumbel(found, torch.arange(4)).double()
    first, second = noise[:-1].flatten(), noise[1:].flatten()
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    assert abs(correlation) < 5 / len(first) ** 0.5


def unmixed(number: int) -> int:
    """What split_mix makes `number` of."""
    number ^= number >> 31 ^ number >> 62
    number = number * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    number ^= number >> 27 ^ number >> 54
    number = number * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return number ^ number >> 30 ^ number >> 60


@pytest.mark.parametrize("number", [0, 1, MASK, MASK - 2**39, 2**63])
def test_noise_is_finite_whatever_number_is_drawn(number: int) -> None:
    assert split_mix(unmixed(number)) == number
    key = (unmixed(number) - 8 * 0x9E3779B97F4A7C15) & MASK
    noise = gumbel(torch.tensor([key - 2**64 if key >= 2**63 else key]), torch.tensor([7]))
    assert noise.isfinite().all()
