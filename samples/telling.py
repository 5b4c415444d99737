"""What a review says: a narrator with a subject and a cast, the aspects of the subject, the verdict."""

import random
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from names import Person, companion, invent_organisation, invent_person, invent_place, public_figure
from narrator import Narrator, Passage, Referent

Aspect = Mapping[str, Any]

STARS = ("One star", "Two stars", "Three stars", "Four stars", "Five stars")
SHARE_OF_GOOD = {1: 0.0, 2: 0.2, 4: 0.8, 5: 1.0}
SINGULAR = {"they": "it", "them": "it", "this": "this", "this_one": "this one", "is": "is", "was": "was", "has": "has"}
PLURAL = {
    "they": "they",
    "them": "them",
    "this": "these",
    "this_one": "these",
    "is": "are",
    "was": "were",
    "has": "have",
}


@cache
def templates(name: str) -> dict[str, Any]:
    """The contents of `topics/<name>.toml`."""
    return tomllib.loads((Path(__file__).parent / "topics" / f"{name}.toml").read_text(encoding="utf-8"))


def sentiment(rating: int) -> str:
    """Good, mixed or bad."""
    return "bad" if rating < 3 else "mixed" if rating == 3 else "good"


class Reviewer:
    """Tells one review: a subject of the topic, a cast, and what there is to say about them at this rating."""

    def __init__(self, rng: random.Random, topic: str, rating: int) -> None:
        self.rng = rng
        self.rating = rating
        self._templates = templates(topic)
        subject, plural = rng.choice(_subjects(topic))
        title = rng.choice(self._templates.get("titles", [""]))
        words = {"title": Narrator(rng, {}, {}, {}).say(title).text}
        self._narrator = new_narrator(
            rng, topic, words | _agreement(subject, plural, self._templates.get("set_of", ""))
        )
        self._aspects = [aspect for aspect in self._templates["aspects"] if subject in aspect.get("suits", [subject])]

    def opening(self) -> Passage:
        return self._narrator.say_one_of(self._templates["openings"])

    def impression(self) -> Passage:
        """What the reviewer thinks, in a few words."""
        return self._narrator.say(f"{{impression_{sentiment(self.rating)}}}")

    def update(self) -> Passage:
        return self._narrator.say("{update}")

    def verdict(self) -> Passage:
        """The closing sentence; topics have their own, and they come twice as often as the common ones."""
        mood = sentiment(self.rating)
        own, common = self._templates["verdicts"][mood], templates("common")["verdicts"][mood]
        return self._narrator.say_one_of([*own, *own, *common], stars=STARS[self.rating - 1])

    def body(self, count: int) -> list[Passage]:
        """Sentences on `count` aspects of the subject, with asides between them."""
        told, last = list[Passage](), ""
        aspects = self.rng.sample(self._aspects, min(count, len(self._aspects)))
        asides = self.rng.sample(self._templates["asides"], len(aspects))
        moods = [self._mood(position) for position in range(len(aspects))]
        while aspects:
            if self.rng.random() < 0.3:
                told.append(self._narrator.say(asides.pop()))
                last = ""
            pair = 2 if len(aspects) > 1 and self.rng.random() < 0.3 else 1
            told.append(self._judge(aspects[:pair], moods[:pair], last))
            last = moods[pair - 1]
            if self.rng.random() < 0.2:
                told.append(self._linger(aspects[pair - 1], last))
            del aspects[:pair], moods[:pair]
        return told

    def remark(self) -> Passage:
        """A sentence on one aspect of the subject."""
        return self._judge([self.rng.choice(self._aspects)], [self._mood(0)], "")

    def _mood(self, position: int) -> str:
        """Good or bad: first what the rating says, then in proportion to it; a mixed review alternates."""
        if self.rating == 3:
            return ("good", "bad")[position % 2]
        if position == 0:
            return sentiment(self.rating)
        return "good" if self.rng.random() < SHARE_OF_GOOD[self.rating] else "bad"

    def _judge(self, aspects: Sequence[Aspect], moods: Sequence[str], last: str) -> Passage:
        """One sentence about one or two aspects, joined to a sentence of mood `last` before it."""
        joint = "" if not last else f"{{more_{last}}}" if last == moods[0] else "{turn}"
        clauses = [self._clause(aspect, mood) for aspect, mood in zip(aspects, moods, strict=True)]
        conjunction = ", and " if len(set(moods)) == 1 else "[, but |, yet |, while ]"
        return self._narrator.say(f"{joint}{conjunction.join(clauses)}.")

    def _clause(self, aspect: Aspect, mood: str) -> str:
        if self.rng.random() < 0.8:
            return f"{aspect['name']} {self.rng.choice(aspect[mood])}"
        plural, past = aspect.get("plural", False), self._templates.get("past", False)
        verb = ("were" if plural else "was") if past else ("are" if plural else "is")
        return f"{aspect['name']} {verb} " + ("{fine}" if mood == "good" else "{poor}")

    def _linger(self, aspect: Aspect, mood: str) -> Passage:
        them, they = ("them", "they") if aspect.get("plural", False) else ("it", "it")
        return self._narrator.say(f"{{linger_{mood}}}", aspect_them=them, aspect_they=they)


def new_narrator(rng: random.Random, topic: str, words: Mapping[str, str]) -> Narrator:
    """A narrator with these words, who knows the rules and a cast drawn for this document."""
    friend, other = invent_person(rng), invent_person(rng)
    pronouns = friend.pronouns() | other.pronouns("other_")
    cast = _invent_cast(rng, friend, other, templates(topic)["organisations"])
    return Narrator(rng, templates("common")["rules"], {**words, **pronouns}, cast)


def _invent_cast(
    rng: random.Random, friend: Person, other: Person, organisations: Sequence[str]
) -> dict[str, Referent]:
    addressee = invent_person(rng).first
    return {
        "friend": companion(rng, friend),
        "other": public_figure(other),
        "third": public_figure(invent_person(rng)),
        "addressee": Referent("person", addressee, addressee),
        "place": invent_place(rng),
        "town": invent_place(rng),
        "org": invent_organisation(rng, organisations),
        "rival": invent_organisation(rng, organisations),
    }


def _subjects(topic: str) -> list[tuple[str, bool]]:
    """Each subject of the topic, and whether it is in the plural."""
    singular, plural = templates(topic)["subjects"], templates(topic).get("plural_subjects", [])
    return [*((subject, False) for subject in singular), *((subject, True) for subject in plural)]


def _agreement(subject: str, plural: bool, set_of: str) -> dict[str, str]:
    """The words that follow the subject's number: {they} {is} in singular reads "it is"."""
    if plural:
        return {**PLURAL, "subject": subject, "s": "", "es": "", "s_plural": "s", "set_of": set_of}
    article = "an" if subject[0] in "aeiou" else "a"
    endings = {"s": "s", "es": "es", "s_plural": "", "set_of": ""}
    return {**SINGULAR, **endings, "subject": subject, "a_subject": f"{article} {subject}"}
