"""Templates into sentences, with the character spans of the names in them.

A template is plain text with two marks: `[a|b|]` is one of its alternatives (they nest, and may be empty) and
`{slot}` is either a rule (a list of templates, one of which is told), a fixed word, or a referent: a person, place or
organisation of this document, named in full at the first mention and by the short name from then on.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Entity:
    """A name in a text: characters `start` to `end`, and what it names: person, place or organisation."""

    start: int
    end: int
    kind: str

    def moved(self, by: int) -> "Entity":
        return Entity(self.start + by, self.end + by, self.kind)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text and the names in it."""

    text: str
    entities: tuple[Entity, ...] = ()


@dataclass(frozen=True, slots=True)
class Referent:
    """Somebody or something with a name.

    Outside of the span go `article` ("the "), before each mention, and `lead` ("my sister "), before the first.
    """

    kind: str
    name: str
    short: str
    article: str = ""
    lead: str = ""


def join(passages: Sequence[Passage], separator: str) -> Passage:
    """The passages one after another, their spans moved along."""
    text, entities = "", list[Entity]()
    for passage in passages:
        text += separator if text else ""
        entities += [entity.moved(len(text)) for entity in passage.entities]
        text += passage.text
    return Passage(text, tuple(entities))


class Narrator:
    """Tells the templates of one document: same words for the same slots, and it remembers who was introduced."""

    def __init__(
        self,
        rng: random.Random,
        rules: Mapping[str, Sequence[str]],
        words: Mapping[str, str],
        cast: Mapping[str, Referent],
    ) -> None:
        self.rng = rng
        self._rules = rules
        self._words = words
        self._cast = cast
        self._introduced = set[str]()

    def say(self, template: str, **words: str) -> Passage:
        """One sentence (or a few) from a template, with its first letter in upper case.

        `words` are slots of this sentence alone.
        """
        sentence = self._name(self._expand(template, words))
        return Passage(sentence.text[:1].upper() + sentence.text[1:], sentence.entities)

    def say_one_of(self, templates: Sequence[str], **words: str) -> Passage:
        return self.say(self.rng.choice(templates), **words)

    def _expand(self, text: str, words: Mapping[str, str]) -> str:
        """Settles every choice, rule and word, until only referents are left."""
        while True:
            told = CHOICE.sub(lambda match: self.rng.choice(match[1].split("|")), text)
            told = SLOT.sub(lambda match: self._lookup(match[1], words), told)
            if told == text:
                return text
            text = told

    def _lookup(self, slot: str, words: Mapping[str, str]) -> str:
        if slot in words:
            return words[slot]
        if slot in self._words:
            return self._words[slot]
        if slot in self._rules:
            return self.rng.choice(self._rules[slot])
        assert slot in self._cast, slot
        return "{" + slot + "}"

    def _name(self, text: str) -> Passage:
        """Puts the referents' names in."""
        parts, end = list[Passage](), 0
        for match in SLOT.finditer(text):
            parts += [Passage(text[end : match.start()]), *self._mention(match[1])]
            end = match.end()
        return join([*parts, Passage(text[end:])], "")

    def _mention(self, slot: str) -> list[Passage]:
        referent = self._cast[slot]
        first = slot not in self._introduced
        self._introduced.add(slot)
        name = referent.name if first else referent.short
        return [
            Passage(referent.lead * first + referent.article),
            Passage(name, (Entity(0, len(name), referent.kind),)),
        ]
