"""Whether counts are those of draws from a distribution: Pearson's test, for draws whose seed is fixed."""

import torch
from torch import Tensor

# Expected counts below this are put together: the statistic is not chi-square distributed with them.
_LEAST_EXPECTED = 5.0
# Standard deviations above the mean. True draws pass it but once in thousands of seeds.
_BOUND = 4.0


def drawn_from(observed: Tensor, probabilities: Tensor) -> bool:
    """Whether counts [C] look like draws from probabilities [C]; what has none must not have been drawn."""
    expected = probabilities.double() * observed.sum()
    if bool(((expected == 0) & (observed > 0)).any()):
        return False
    rare = expected < _LEAST_EXPECTED
    cells = torch.stack([torch.cat((each[~rare], each[rare].sum()[None])) for each in (observed.double(), expected)])
    seen, hoped = cells[:, cells[1] > 0]
    statistic, freedom = float(((seen - hoped) ** 2 / hoped).sum()), len(hoped) - 1
    return freedom > 0 and statistic < freedom + _BOUND * (2 * freedom) ** 0.5


def assert_drawn_from(observed: Tensor, probabilities: Tensor) -> None:
    """The counts have the probabilities; with half as much again for either of the likeliest two they have not."""
    assert abs(float(probabilities.sum()) - 1) < 1e-4
    assert drawn_from(observed, probabilities)
    for place in probabilities.topk(2).indices:
        other = probabilities.double().clone()
        other[place] *= 1.5
        assert not drawn_from(observed, other / other.sum())
