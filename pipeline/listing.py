"""What stands in a folder, in columns: a hundred thousand files take a few megabytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
from pyarrow import fs

NONE = -1
"""In a column, what is not known: the size of a folder, a time that a store does not tell."""


class Names:
    """Distinct names in order, and the place of each."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        """`names` gives them; asked twice, so that they are never all held as objects."""
        width = max((len(_encoded(name)) for name in names()), default=1)
        held = np.fromiter(map(_encoded, names()), f"S{width}")
        self._sorted, self.first = np.unique(held, return_index=True)
        """`first`: where each stood first in what was given."""

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[str]:
        return (bytes(name).decode(errors="surrogateescape") for name in self._sorted)

    def place(self, name: str) -> int:
        """Where `name` stands among the others. Raises KeyError where it doesn't."""
        wanted = _encoded(name)
        place = int(self._sorted.searchsorted(wanted))
        if place == len(self._sorted) or self._sorted[place] != wanted:
            raise KeyError(name)
        return place


class Listing(Mapping[str, fs.FileInfo]):
    """The entries of a folder by their names, in order."""

    def __init__(self, folder: str, found: list[fs.FileInfo]) -> None:
        self._folder = folder.rstrip("/")
        self._names = Names(lambda: (info.base_name for info in found))
        values = chain.from_iterable((int(info.type), _held(info.size), _held(info.mtime_ns)) for info in found)
        self._columns = np.fromiter(values, np.int64).reshape(-1, 3)[self._names.first]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> fs.FileInfo:
        kind, size, modified = self._columns[self._names.place(name)].tolist()
        return fs.FileInfo(f"{self._folder}/{name}", fs.FileType(kind), size=_told(size), mtime_ns=_told(modified))


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _held(value: int | None) -> int:
    return NONE if value is None else value


def _told(value: int) -> int | None:
    return None if value == NONE else value
