"""What puts special tokens around a row: the tokenizers library's post-processor, applied by us after rows are cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from tokenizers import Encoding, processors

Tokens = Sequence[tuple[str, int]]
"""Special tokens, as they are spelled and as ids."""


@dataclass(frozen=True, slots=True)
class Template:
    """A post-processor, and whether rows begin and end with a special token by it."""

    processor: Any
    begins: bool
    ends: bool

    @classmethod
    def found(cls, processor: Any) -> Self:
        """The template that a tokenizer's file brought."""
        pieces = _described(processor).get("single")
        if not isinstance(pieces, list) or not pieces:
            return cls(processor, begins=False, ends=False)
        return cls(processor, begins="SpecialToken" in pieces[0], ends="SpecialToken" in pieces[-1])

    @classmethod
    def made(cls, first: Tokens, last: Tokens) -> Self:
        """A template that begins every text of a row with `first` and ends it with `last`."""
        sides = [
            [*(f"{token}:{side}" for token, _ in first), f"${name}:{side}", *(f"{token}:{side}" for token, _ in last)]
            for side, name in enumerate("AB")
        ]
        processor = processors.TemplateProcessing(
            single=sides[0], pair=sides[0] + sides[1], special_tokens=[*first, *last]
        )
        return cls(processor, begins=bool(first), ends=bool(last))

    def apply(self, first: Encoding, second: Encoding | None, add_special: bool) -> Encoding:
        """One row of one text or two; without `add_special` they are only joined."""
        row: Encoding = self.processor.process(first, second, add_special)
        return row

    def num_added(self, pair: bool) -> int:
        """Tokens that it adds to a row."""
        return int(self.processor.num_special_tokens_to_add(pair))

    def type_ids(self, row: Encoding, overflow: bool) -> list[int]:
        """A template gives a row its types, but not the overflow; there, and without a template, they tell the pair."""
        if overflow or isinstance(self.processor, processors.ByteLevel):
            sides = zip(row.type_ids, row.sequence_ids, strict=True)
            return [of_template if sequence is None else sequence for of_template, sequence in sides]
        return row.type_ids

    def description(self) -> dict[str, Any]:
        """The post-processor as tokenizer.json has it."""
        return _described(self.processor)


def _described(processor: Any) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(processor.__getstate__())  # what the library pickles is that text
    return described
