"""Prompts made of columns: `"{title}\\n\\n{text}\\nTL;DR:"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter


@dataclass(frozen=True, slots=True)
class Template:
    """Text with fields in it: pieces[0], field[0], pieces[1], and so on.

    A field is a plain name: attributes, items, conversions and formats are refused, so that a template shows what
    columns hold and nothing else.
    """

    pieces: Sequence[str]
    fields: Sequence[str]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template. Raises ValueError for what is no plain field, and where there is none at all."""
        pieces, fields = [""], []
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}; a brace that is meant as one is doubled: {{{{ or }}}}") from error
        for literal, field, form, conversion in parsed:
            pieces[-1] += literal
            if field is None:
                continue
            if not field.isidentifier() or form or conversion:
                raise ValueError(
                    f"{text!r}: {{{field}}} is no plain name of a column; other columns are given a name by "
                    "input.columns, and a brace that is meant as one is doubled: {{ or }}"
                )
            fields.append(field)
            pieces.append("")
        if not fields:
            raise ValueError(f"{text!r} names no column, so that every row would be the same: put one in, as {{text}}")
        return cls(tuple(pieces), tuple(fields))

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with the fields' values in it; what they hold is not read as a template again."""
        between = [values[field] for field in self.fields]
        return "".join(part for pair in zip(self.pieces, [*between, ""], strict=True) for part in pair)
