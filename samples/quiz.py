"""Questions about a document: who or what is named first in it, and what people are called whom the writer knows."""

import random
import re
from dataclasses import dataclass

from corpus import Document
from names import FEMALE_LEADS, LEADS, MALE_LEADS
from narrator import Entity

RELATIONS = tuple(lead.split()[1] for lead in (*FEMALE_LEADS, *MALE_LEADS, *LEADS))
RELATION_BEFORE_NAME = re.compile(r"\b(?:my|our) ([\w-]+) $", re.IGNORECASE)
KNOWN_RELATION_SHARE = 0.8
FIRST_NAMED = {
    "person": ("Who is mentioned first?", "Who is named first?"),
    "place": ("Which place is mentioned first?", "Which place is named first?"),
    "organisation": ("Which organisation is mentioned first?", "Which organisation is named first?"),
}
RELATION = "relation"
KINDS = (*FIRST_NAMED, RELATION)


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the name in the document's text that answers it (None where the text does not say)."""

    text: str
    answer: Entity | None


def ask(document: Document, rng: random.Random) -> Question:
    """A question that the document's text may answer or not."""
    kind = rng.choice(KINDS)
    if kind == RELATION:
        return _who_is(document, rng)
    named = (entity for entity in document.entities if entity.kind == kind)
    return Question(rng.choice(FIRST_NAMED[kind]), next(named, None))


def _who_is(document: Document, rng: random.Random) -> Question:
    known = _relations(document)
    relation = rng.choice(list(known) if known and rng.random() < KNOWN_RELATION_SHARE else RELATIONS)
    return Question(f"Who is the writer's {relation}?", known.get(relation))


def _relations(document: Document) -> dict[str, Entity]:
    """The names that follow "my sister" and the like, by relation."""
    matches = [(RELATION_BEFORE_NAME.search(document.text[: name.start]), name) for name in document.entities]
    return {match[1]: name for match, name in matches if match and match[1] in RELATIONS}
