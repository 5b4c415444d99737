"""Random numbers that are a function of (seed, row, sample, position, token) and of nothing else.

SplitMix64 (Steele, Lea and Flood, 2014, figure 10) counts: its n-th number is a hash of seed + n * GAMMA, so any of
them is had without those before it, for a whole batch at once. A row therefore draws the same tokens in whatever batch,
order or process.

Shapes: B rows, C tokens of each. Keys and tokens are int64, whose products wrap around as the algorithm wants.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
_SECOND_FACTOR = 0x94D049BB133111EB - 2**64
# Numbers hashed at once on a CPU: all passes but the first find them in the second-level cache.
_CPU_CACHED = 2**16


def stream_keys(seeds: Tensor, rows: Tensor, samples: Tensor) -> Tensor:
    """One key [B] for each sample of a row; all three are [B], and a seed is any int64."""
    return _folded(_folded(_hashed(seeds), rows), samples)


def step_keys(streams: Tensor, positions: Tensor) -> Tensor:
    """The keys [B] for the positions [B] of the streams [B]; a position counts from a continuation's first token."""
    return _folded(streams, positions)


def gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise of each token under its row's key: float32 [B, C]; tokens are [C] or [B, C].

    The greatest of log p + noise is a draw from p, the k greatest are k draws without replacement (Kool, van Hoof and
    Welling, 2019, section 2).
    """
    if keys.device.type != "cpu":
        return _gumbel(keys, tokens)
    noise = torch.empty(len(keys), tokens.shape[-1])
    few = max(1, _CPU_CACHED // max(1, tokens.shape[-1]))
    for start in range(0, len(keys), few):
        rows = slice(start, start + few)
        noise[rows] = _gumbel(keys[rows], tokens if tokens.ndim == 1 else tokens[rows])
    return noise


def _gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    bits = _hashed(keys[:, None] + _GAMMA * (tokens + 1))
    # The wait for a Poisson event. The shortest wait wins, so that small ones want the full precision of a float.
    # Rounded to 1, the wait would be for ever, and a token without rivals would lose.
    uniform = _shifted(bits, 11).float().mul_(2.0**-53).clamp_(min=2.0**-54, max=1 - 2.0**-24)
    noise: Tensor = uniform.neg_().log1p_().neg_().log_().neg_()
    return noise


def _folded(keys: Tensor, values: Tensor) -> Tensor:
    return _hashed(keys ^ _hashed(_GAMMA * (values + 1)))


def _hashed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST_FACTOR
    x = (x ^ _shifted(x, 27)) * _SECOND_FACTOR
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, places: int) -> Tensor:
    """x >> places with zeros from the left: torch's own shift copies the sign."""
    shifted: Tensor = (x >> places) & (2 ** (64 - places) - 1)
    return shifted
