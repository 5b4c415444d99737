"""A part on its way to being committed: how often it was tried, and what is known of the rows that hinder it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.plan import Part
from pipeline.search import RowSearch


@dataclass(slots=True)
class Assignment:
    """What is to be done of a part next follows from how the last call of a worker with it ended."""

    part: Part
    suspect: bool = False
    """It was in a worker that died, perhaps by another's fault: from then on it gets a worker to itself."""
    given_up: str | None = None
    """Why the part is not tried any more."""
    _attempts: int = 0
    _search: RowSearch | None = None
    _searched: bool = False
    """The last search has found nothing new, so there is no other."""

    @property
    def probing(self) -> bool:
        """Whether rows are looked for, and so nothing of the next call is kept."""
        return self._search is not None

    @property
    def call(self) -> Part:
        """What the next call of a worker is about: the part, or the rows of it that the search wants tried."""
        rows = self._search.next if self._search is not None else None
        return self.part if rows is None else replace(self.part, start=rows.start, stop=rows.stop)

    def passed(self) -> None:
        """The rows that were tried ended well."""
        assert self._search is not None
        self._search.passed()
        self._conclude()

    def raised(self, reason: str) -> None:
        """The call raised an error that is neither the input's fault nor the output's: some row's, then."""
        self.suspect = True
        if self._search is not None:
            self._search.failed(reason)
            self._conclude()
        elif self._searched:
            self.given_up = f"{reason} (and yet each of its rows passes alone)"
        else:
            self._begin_search()

    def died(self, reason: str, alone: bool, attempts: int) -> None:
        """The worker died, with nothing but this in it if `alone`; after so many attempts the rows are searched."""
        self.suspect = True
        if self._search is not None:
            if alone:
                self._search.died(f"this row takes its worker down: {reason}")
                self._conclude()
            return
        self._attempts += alone
        if self._attempts < attempts:
            return
        if self._searched:
            self.given_up = (
                f"took its worker down {attempts} times, and yet each of its rows passes alone; the last time: {reason}"
            )
        else:
            self._begin_search()

    def _begin_search(self) -> None:
        self._search = RowSearch(self.part.start, self.part.stop)
        self._conclude()

    def _conclude(self) -> None:
        if self._search is not None:
            self.given_up = self._search.barren
        if self._search is None or self._search.next is not None:
            return
        found = self._search.found
        self._searched = found.keys() <= self.part.set_aside.keys()
        self.part = replace(self.part, set_aside={**self.part.set_aside, **found})
        self._search, self._attempts = None, 0
