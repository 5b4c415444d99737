"""What a checkpoint's labels say: the kind of entity, and whether one begins or ends there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

OUTSIDE = "O"
BEGINNINGS = ("B", "U", "S", "W")
INSIDES = ("I", "M")
ENDS = ("L", "E", "U", "S", "W")


@dataclass(frozen=True, slots=True)
class Labels:
    """The K labels of a checkpoint, in the order of its logits."""

    names: Sequence[str]
    groups: Sequence[str]
    """The names without what places them in an entity: PER for B-PER."""
    group_ids: npt.NDArray[np.int64]
    """[K]: equal where `groups` are."""
    begins: npt.NDArray[np.bool_]
    """[K]: an entity begins here, whatever stands before."""
    ends: npt.NDArray[np.bool_]
    """[K]: an entity ends here, whatever follows."""
    outside: npt.NDArray[np.bool_]
    """[K]: no entity at all."""


def read_labels(id2label: Mapping[int, str]) -> Labels:
    """The scheme that the labels are written in, found by their prefixes.

    Where every label but O is one of B I L U, B I E S or B M E S (W for S) and a name, all of these prefixes count.
    Else B- and I- alone do and any other label is a name in itself, as in transformers' `get_tag`. IOB1 and IOB2 need
    no telling apart: B- always begins an entity, I- continues one of its own kind and begins one after anything else.
    """
    names = [id2label[index] for index in range(len(id2label))]
    prefixes = {"B", "I"}
    placed = [_split(name, {*BEGINNINGS, *INSIDES, *ENDS}) for name in names if name != OUTSIDE]
    if all(prefix for prefix, _ in placed) and any(prefix == "B" for prefix, _ in placed):
        prefixes = {*BEGINNINGS, *INSIDES, *ENDS}
    parts = [_split(name, prefixes) for name in names]
    groups = [group for _, group in parts]
    known = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    return Labels(
        names=names,
        groups=groups,
        group_ids=np.array([known[group] for group in groups], np.int64),
        begins=np.array([prefix in BEGINNINGS for prefix, _ in parts]),
        ends=np.array([prefix in ENDS for prefix, _ in parts]),
        outside=np.array([name == OUTSIDE for name in names]),
    )


def _split(name: str, prefixes: set[str]) -> tuple[str, str]:
    """Prefix and group of a label; without one of the prefixes, nothing and all of it."""
    prefix, hyphen, group = name.partition("-")
    return (prefix, group) if hyphen and prefix in prefixes else ("", name)
