"""A row's texts as they are shown, with what a task found in them. Nothing here is HTML: the template escapes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.values import Text, cut, written

LONGEST = 700
"""Characters of a text that are shown."""
BEFORE = 160
"""Characters shown before what is to be seen in a long text."""
MOST_ITEMS = 12
IN_BLOCKS = {"generated_text", "entities", "answer", "start", "end"}
"""Results that are seen in the texts."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text; `mark` is what was found there, of the kind `kind`."""

    text: str
    mark: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A text of a row under its name."""

    name: str
    segments: Sequence[Segment]
    rest: int = 0
    """Characters that are not shown."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something in a text, from one character to another."""

    start: int
    end: int
    mark: str
    kind: str


Results = Mapping[str, Any]


def _texts(inputs: Results, results: Results) -> list[Block]:
    return [_block(name, value) for name, value in inputs.items()]


def _score(inputs: Results, results: Results) -> list[Block]:
    if "completion" not in inputs:
        return _texts(inputs, results)
    prompt, completion = _string(inputs.get("prompt")), _string(inputs["completion"])
    return [Block("prompt and completion", [*_tail(prompt), Segment(cut(completion, LONGEST), "", "scored")])]


def _generate(inputs: Results, results: Results) -> list[Block]:
    written = results.get("generated_text")
    answers = written if isinstance(written, list) else [written]
    if len(inputs) == 1:
        prompt, before = _tail(_string(next(iter(inputs.values())))), []
    else:
        prompt, before = [], _texts(inputs, results)
    blocks = [
        Block("", [*prompt, Segment(cut(each.start, LONGEST), "", "generated")], max(each.length - LONGEST, 0))
        for each in answers[:MOST_ITEMS]
        if isinstance(each, Text)
    ]
    return [*before, *blocks] or _texts(inputs, results)


def _ner(inputs: Results, results: Results) -> list[Block]:
    given = next(iter(inputs.values()), None)
    if isinstance(given, list):  # of words; the offsets are into the words with a space between
        words = " ".join(_string(word) for word in given)
        given = Text(words, len(words))
    if not isinstance(given, Text):
        return []
    found = [
        Found(each["start"], each["end"], _string(each["entity_group"]), "entity")
        for each in results.get("entities") or []
        if isinstance(each, Mapping) and each.get("start") is not None and each.get("end") is not None
    ]
    return [_marked("text", given, found)]


def _qa(inputs: Results, results: Results) -> list[Block]:
    blocks = [_block("question", inputs["question"])] if "question" in inputs else []
    answer, start, end = (_first(results.get(name)) for name in ("answer", "start", "end"))
    context = inputs.get("context")
    there = isinstance(answer, Text) and answer.start and start is not None and end is not None
    if isinstance(context, Text):
        blocks.append(_marked("context", context, [Found(start, end, "", "answer")] if there else []))
    marked = any(each.kind == "answer" for block in blocks for each in block.segments)
    if isinstance(answer, Text) and not marked:
        blocks.append(_block("answer", answer) if answer.start else Block("answer", [Segment("none", "", "quiet")]))
    return blocks


def _choose(inputs: Results, results: Results) -> list[Block]:
    blocks = [_block("prompt", inputs["prompt"])] if "prompt" in inputs else []
    choices, scores = inputs.get("choices"), results.get("scores") or []
    for number, choice in enumerate(choices[:MOST_ITEMS] if isinstance(choices, list) else []):
        score = f"{number} · {written(scores[number])}" if number < len(scores) else str(number)
        kind = "chosen" if number == results.get("choice") else "choice"
        blocks.append(Block(score, [Segment(cut(_string(choice), LONGEST), "", kind)]))
    return blocks


BLOCKS: Mapping[str, Callable[[Results, Results], list[Block]]] = {
    "score": _score,
    "generate": _generate,
    "ner": _ner,
    "qa": _qa,
    "choose": _choose,
}


def blocks_of(task: str, inputs: Results, results: Results) -> list[Block]:
    """The texts of a row of `task`; both mappings are from short names to short values (values.py)."""
    return [block for block in BLOCKS.get(task, _texts)(inputs, results) if block.segments]


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _string(value: Any) -> str:
    return value.start if isinstance(value, Text) else written(value)


def _tail(prompt: str) -> list[Segment]:
    """The end of what stands before something."""
    return [Segment(prompt if len(prompt) <= LONGEST else f"…{prompt[-LONGEST:]}", "", "prompt")] if prompt else []


def _block(name: str, value: Any) -> Block:
    if isinstance(value, Text):
        return _marked(name, value, [])
    told = written(value)
    return Block(name, [Segment(told)] if told else [])


def _marked(name: str, text: Text, found: Sequence[Found]) -> Block:
    """A text with marks; a long one from a little before the first of them."""
    found = [each for each in found if each.end <= len(text.start)]
    first = min((each.start for each in found), default=0)
    begin = max(first - BEFORE, 0) if first > LONGEST - BEFORE else 0
    end = min(begin + LONGEST, len(text.start))
    segments, at = [Segment("… ", "", "quiet")] if begin else [], begin
    for each in sorted(found, key=lambda each: (each.start, each.end)):
        if at <= each.start < each.end <= end:
            segments += [
                Segment(text.start[at : each.start]),
                Segment(text.start[each.start : each.end], each.mark, each.kind),
            ]
            at = each.end
    segments.append(Segment(text.start[at:end]))
    return Block(name, [each for each in segments if each.text], text.length - (end - begin))
