"""Token sequences of a group of rows, laid end to end, on their way into packs.

Shapes: T tokens of all sequences, N sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from gpt2model import Packed
    from pipeline.batching import Index

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequence i has the ids [offsets[i], offsets[i + 1]) and belongs to row rows[i]; a row may have several."""

    ids: Ids
    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence, [N]."""
        return np.diff(self.offsets)

    def spans(self, index: Index) -> list[slice]:
        """Where the chosen sequences lie among the T tokens."""
        return [slice(self.offsets[each], self.offsets[each + 1]) for each in index]

    def packed(self, index: Index, device: torch.device) -> Packed:
        """The chosen sequences as one pack on the device."""
        from gpt2model import pack

        return pack([self.ids[span] for span in self.spans(index)]).to(device)

    def rows_of(self, failed: dict[int, str]) -> dict[int, str]:
        """Sequences that could not be computed, as errors of their rows."""
        return {int(self.rows[each]): why for each, why in failed.items()}


def lay_out(ids: Sequence[Ids], rows: Sequence[int]) -> Sequences:
    """Sequences and the rows they belong to."""
    return Sequences(concatenate(ids), offsets_of([len(each) for each in ids]), np.array(rows, np.int64))


def concatenate(arrays: Sequence[Ids]) -> Ids:
    """Arrays of ids, end to end; of none at all, an empty one."""
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def offsets_of(lengths: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where runs of these lengths begin and end: [N + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def places(spans: Sequence[slice]) -> npt.NDArray[np.int64]:
    """The tokens that the spans cover, in their order."""
    return concatenate([np.arange(span.start, span.stop) for span in spans])
