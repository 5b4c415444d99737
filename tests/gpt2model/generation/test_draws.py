"""Draws against the distributions they are from, and what they are a function of."""

import math

import pytest
import torch
from torch import Tensor

from gpt2model.errors import InputError
from gpt2model.generation.draws import Draws
from tests.gpt2model.generation.chi_square import assert_drawn_from

CPU = torch.device("cpu")
SCORES = torch.tensor([0.5, -1.0, 2.0, 1.0, -math.inf, 0.0])


def widened(scores: Tensor, width: int) -> Tensor:
    """The scores among so many that are -inf that the draw looks at the possible ones alone."""
    wide = torch.full((width,), -math.inf)
    wide[torch.arange(len(scores)) * (width // len(scores))] = scores
    return wide


@pytest.mark.parametrize("width", [6, 60])
def test_one_draw_has_the_softmax_of_the_scores(width: int) -> None:
    scores, rows = widened(SCORES, width), 20000
    drawn = Draws(3, rows, 1, CPU)(scores.expand(rows, -1), position=0, count=1)[:, 0]
    assert_drawn_from(drawn.bincount(minlength=width).double(), scores.softmax(dim=0))


@pytest.mark.parametrize("width", [6, 60])
def test_several_draws_are_without_replacement_in_their_order(width: int) -> None:
    scores, rows = widened(SCORES, width), 20000
    drawn = Draws(4, rows, 1, CPU)(scores.expand(rows, -1), position=5, count=3)
    p = scores.softmax(dim=0).double()
    first, second = p[:, None].expand(-1, width), p / (1 - p[:, None])
    pairs = first * second.fill_diagonal_(0.0)
    observed = torch.zeros(width, width).index_put_((drawn[:, 0], drawn[:, 1]), torch.ones(rows), accumulate=True)
    assert_drawn_from(observed.flatten(), pairs.flatten())
    assert all(len(set(row)) == 3 for row in drawn.tolist())


def test_what_is_impossible_comes_last() -> None:
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0]]).expand(50, -1)
    drawn = Draws(0, 50, 1, CPU)(scores, position=0, count=3)
    assert set(drawn[:, :2].flatten().tolist()) == {1, 3}


@pytest.mark.parametrize("width", [6, 60])
def test_a_row_draws_the_same_in_whatever_batch_and_order(width: int) -> None:
    scores = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    all_rows = Draws(1, 4, 1, CPU)(scores, position=2, count=2)
    few = Draws(1, 2, 1, CPU)(scores[:2], position=2, count=2)
    assert torch.equal(few, all_rows[:2])
    # What others may draw decides how a batch is computed, and nothing else.
    narrow = scores.clone()
    narrow[0, 3:] = -math.inf
    alone = Draws(1, 1, 1, CPU)(narrow[:1], position=2, count=2)
    assert torch.equal(Draws(1, 4, 1, CPU)(narrow, position=2, count=2)[:1], alone)


def test_seed_row_sample_and_position_all_make_another_draw() -> None:
    scores = torch.zeros(1, 10**6)
    rows, samples = Draws(0, 3, 1, CPU), Draws(0, 1, 3, CPU)
    several = scores.expand(3, -1)
    drawn = [
        *rows(several, position=0, count=1).flatten().tolist(),
        *samples(several, position=0, count=1).flatten().tolist()[1:],
        *rows(several, position=1, count=1).flatten().tolist(),
        *Draws(1, 3, 1, CPU)(several, position=0, count=1).flatten().tolist(),
        *Draws(-(2**63), 1, 1, CPU)(scores, position=0, count=1).flatten().tolist(),
    ]
    assert len(set(drawn)) == len(drawn) == 12
    assert drawn[0] == samples(several, position=0, count=1)[0]


def test_torchs_own_state_does_not_matter_and_is_not_touched() -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = Draws(0, 5, 1, CPU)(torch.zeros(5, 1000), position=0, count=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(Draws(0, 5, 1, CPU)(torch.zeros(5, 1000), position=0, count=1), first)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_must_fit_into_64_bits(seed: int) -> None:
    with pytest.raises(InputError, match=f"seed={seed}"):
        Draws(seed, 1, 1, CPU)
