"""`${now:…}` of job files: one moment for a whole job, which `--as-of` sets where a missed run is made up for."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from pipeline.errors import JobError

DIRECTIVES = "aAbBcdfFGHIjmMpSTuUVwWxXyYzZ%"
"""Of strftime, those that mean the same on every system."""
LONGEST_FORMAT = 100
"""Characters; so that no format grows to more than a few lines."""
_DIRECTIVE = re.compile("%(.?)", re.DOTALL)
_SPELT_OUT = {"%F": "%Y-%m-%d", "%T": "%H:%M:%S"}


def moment(as_of: str | None = None) -> datetime:
    """What `now` is: the present, or the ISO date or date and time `as_of`; local unless it says its offset from UTC.

    Raises JobError for what is no such date.
    """
    if as_of is None:
        return datetime.now().astimezone()
    try:
        given = datetime.fromisoformat(as_of)
        return given if given.tzinfo is not None else given.astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise JobError(
            f"--as-of {as_of!r} is no date ({error}): give it as 2026-11-24, 2026-11-24T02:00 or 2026-11-24T02:00+01:00"
        ) from error


def now_resolver(moment: datetime) -> Callable[..., str]:
    """The resolver of `${now:FORMAT}`: `moment` by strftime, as an ISO date where no format is given.

    It raises ValueError for a format that it does not take, with what to do about it.
    """

    def now(*formats: object) -> str:
        if len(formats) > 1:
            raise ValueError(f"now takes one format, and a comma ends it: quote it, as ${{now:'{_joined(formats)}'}}")
        return _formatted(moment, str(formats[0]) if formats else "%F")

    return now


def _formatted(moment: datetime, form: str) -> str:
    if len(form) > LONGEST_FORMAT:
        raise ValueError(f"a date format has {LONGEST_FORMAT} characters at most, and this one has {len(form)}")
    found = _DIRECTIVE.findall(form)
    if not found:
        raise ValueError(f"the date format {form!r} holds no part of a date: write it as %Y-%m-%d")
    for letter in found:
        if not letter or letter not in DIRECTIVES:
            raise ValueError(f"the date format {form!r} holds %{letter}, which is no part of a date: see strftime")
    return moment.strftime(_DIRECTIVE.sub(lambda match: _SPELT_OUT.get(match[0], match[0]), form))


def _joined(formats: tuple[object, ...]) -> str:
    return ", ".join(map(str, formats))
