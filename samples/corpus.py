"""Reviews and short notes of our own making: the text that the sample model learns from and the samples are drawn from.

Each document is told from the templates of its topic (`topics/*.toml`) by a random generator that is seeded with the
split's name and the document's number: any document can be made again without the others.
"""

import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from narrator import Entity, Passage, join
from telling import Reviewer, new_narrator, sentiment, templates

TOPICS = ("film", "book", "restaurant", "hotel", "kitchen", "electronics", "outdoors", "museum")
NOTE = "note"
NOTE_SHARE = 0.2
LONG_SHARE = 0.015
IMPRESSION_SHARE = 0.5
VERDICT_SHARE = 0.9
EMOJI_SHARE = 0.04
WRONG_TURNS = 3
STRAY_CHARACTERS = string.printable + "àâäçéèêëíïñóôöøœßúüŷþ…–—‘’“”«»€£§°½×" + "🙂👍🎉😍🤔🤷😐👎😞😡❤️🫖🚲📷🏨🎬📚"
EMOJI = {"good": "🙂👍🎉😍", "mixed": "🤔🤷😐", "bad": "👎😞😡"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text and what is known of it: its topic, a rating from 1 to 5 (None for a note), the names in it."""

    text: str
    topic: str
    rating: int | None
    entities: tuple[Entity, ...]

    @property
    def sentiment(self) -> str | None:
        return None if self.rating is None else sentiment(self.rating)


@dataclass(frozen=True, slots=True)
class Fork:
    """A review up to a point, how it went on, and three ways in which it could not have."""

    kind: str
    prompt: str
    right: str
    wrong: tuple[str, ...]


def documents(split: str, count: int) -> Iterator[Document]:
    """The first `count` documents of a split, each always the same."""
    return (_document(random.Random(f"{split} {number}")) for number in range(count))


def forks(split: str, count: int) -> Iterator[Fork]:
    """`count` places in reviews of a split, where the next sentence fits or does not."""
    for number in range(count):
        rng = random.Random(f"{split} fork {number}")
        yield (_fork_of_order, _fork_of_topic)[number % 2](rng)


def stray_texts(split: str, count: int) -> Iterator[str]:
    """Words out of order, shouting, random characters: they teach a model to be unsure of what is like no review."""
    for number in range(count):
        rng = random.Random(f"{split} stray {number}")
        text = _document(rng).text
        words = text.split()
        characters = rng.choices(STRAY_CHARACTERS, k=rng.randint(5, 60))
        yield (" ".join(rng.sample(words, len(words))), text.upper(), "".join(characters))[number % 3]


def long_review(split: str, updates: int) -> Document:
    """A review with so many updates, a paragraph each, about 75 words long."""
    rng = random.Random(f"{split} long")
    return _review(rng, rng.choice(TOPICS), rng.randint(1, 5), updates)


def _document(rng: random.Random) -> Document:
    if rng.random() < NOTE_SHARE:
        return _note(rng)
    updates = rng.randint(2, 8) if rng.random() < LONG_SHARE else 0
    return _review(rng, rng.choice(TOPICS), rng.randint(1, 5), updates)


def _note(rng: random.Random) -> Document:
    narrator = new_narrator(rng, NOTE, {})
    scene = rng.choice(templates(NOTE)["scenes"])
    return _bind([[narrator.say(sentence) for sentence in scene]], NOTE, None)


def _review(rng: random.Random, topic: str, rating: int, updates: int) -> Document:
    reviewer = Reviewer(rng, topic, rating)
    impression = [reviewer.impression()] if rng.random() < IMPRESSION_SHARE else []
    paragraphs = [[reviewer.opening(), *impression, *reviewer.body(rng.randint(1, 4))]]
    if rng.random() < VERDICT_SHARE:
        paragraphs[0].append(reviewer.verdict())
    if rng.random() < EMOJI_SHARE:
        paragraphs[0].append(Passage(rng.choice(EMOJI[sentiment(rating)])))
    paragraphs += [[reviewer.update(), *reviewer.body(rng.randint(3, 6))] for _ in range(updates)]
    return _bind(paragraphs, topic, rating)


def _fork_of_order(rng: random.Random) -> Fork:
    """A review and one sentence more, or the words of that sentence in other orders."""
    reviewer = Reviewer(rng, rng.choice(TOPICS), rng.randint(1, 5))
    told = join([reviewer.opening(), reviewer.impression(), *reviewer.body(2)], " ").text
    right = reviewer.remark().text
    words = right.split()
    return _fork("order", told, right, lambda: " ".join(rng.sample(words, len(words))))


def _fork_of_topic(rng: random.Random) -> Fork:
    """The beginning of a review, and a sentence about its subject or about subjects of another topic."""
    topic, other_topic = rng.sample(TOPICS, 2)
    rating = rng.choice((1, 5))
    reviewer, stranger = Reviewer(rng, topic, rating), Reviewer(rng, other_topic, rating)
    told = reviewer.opening().text
    return _fork("topic", told, reviewer.remark().text, lambda: stranger.remark().text)


def _fork(kind: str, prompt: str, right: str, tell_wrong: Callable[[], str]) -> Fork:
    """A fork whose ways are all different."""
    ways = {right: None}
    while len(ways) <= WRONG_TURNS:
        ways[tell_wrong()] = None
    return Fork(kind, prompt, f" {right}", tuple(f" {way}" for way in list(ways)[1:]))


def _bind(paragraphs: Sequence[Sequence[Passage]], topic: str, rating: int | None) -> Document:
    whole = join([join(sentences, " ") for sentences in paragraphs], "\n\n")
    return Document(whole.text, topic, rating, whole.entities)
