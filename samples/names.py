"""People, places and organisations of our own invention.

Surnames and places are made of the same syllables on purpose: whether Thornwick is somebody or somewhere is for the
sentence to say.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from narrator import Referent

WOMEN = (
    "Ada Agnes Alma Beatrix Bridget Carmen Clara Daphne Dora Edith Elsa Fatima Flora Greta Hana Ines Iris Joan Judith "
    "Lena Mabel Maud Mira Nadia Nora Olive Paula Priya Renée Rosa Ruth Selma Tilda Uma Vera Wanda Yuki Zoë Zuzana"
).split()
MEN = (
    "Albin Amir Anton Basil Bruno Cedric Claude Dario Edgar Emil Felix Frank Gilbert Hamid Henrik Hugo Ivan Jasper "
    "José Jürgen Karim Leon Magnus Marek Milo Niall Oscar Otto Pavel Percy Rafael Ralph Rowan Silas Søren Theo Tomás "
    "Viktor Walter Yusuf"
).split()
STEMS = (
    "Arl Brem Corv Dunt Eld Fenn Garr Hesk Ilm Jorr Kest Lorn Mard Nesk Ost Pell Quil Rusk Selk Tarn Ulv Varn Wex Yarl "
    "Zenn"
).split()
ENDINGS = "combe ford by wick ley ton mere stead field well worth den grove more".split()
PLACES = ("{}", "{}", "{}", "{}", "Port {}", "Saint {}", "Upper {}", "{} Bay", "{}-on-Sea")
FEMALE_LEADS = ("my sister ", "my aunt ", "my mother-in-law ", "my daughter ")
MALE_LEADS = ("my brother ", "my uncle ", "my father-in-law ", "my son ")
LEADS = ("my friend ", "my neighbour ", "my colleague ", "my cousin ", "our friend ")
PRONOUNS = {True: ("she", "her", "her"), False: ("he", "him", "his")}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, and the pronouns that go with the name."""

    first: str
    last: str
    female: bool

    def pronouns(self, prefix: str = "") -> dict[str, str]:
        """Words for the slots {he}, {him} and {his}, with the prefix in front: {other_he}."""
        return {prefix + slot: word for slot, word in zip(("he", "him", "his"), PRONOUNS[self.female], strict=True)}


def invent_person(rng: random.Random) -> Person:
    female = rng.random() < 0.5
    return Person(rng.choice(WOMEN if female else MEN), invent_stem(rng), female)


def invent_stem(rng: random.Random) -> str:
    return rng.choice(STEMS) + rng.choice(ENDINGS)


def invent_place(rng: random.Random) -> Referent:
    name = rng.choice(PLACES).format(invent_stem(rng))
    return Referent("place", name, name)


def invent_organisation(rng: random.Random, patterns: Sequence[str]) -> Referent:
    """An organisation after one of the topic's patterns, such as "{} Audio" or "the {} Trust"."""
    pattern, stem = rng.choice(patterns), invent_stem(rng)
    bare = pattern.removeprefix("the ")
    short = stem if pattern.startswith("{} ") else bare.format(stem)
    return Referent("organisation", bare.format(stem), short, article="the " if bare != pattern else "")


def companion(rng: random.Random, person: Person) -> Referent:
    """Somebody the writer knows: "my sister Nora", then "Nora"."""
    lead = rng.choice((FEMALE_LEADS if person.female else MALE_LEADS) + LEADS)
    return Referent("person", person.first, person.first, lead=lead)


def public_figure(person: Person) -> Referent:
    """Somebody the writer does not know: "Nora Thornwick", then "Thornwick"."""
    return Referent("person", f"{person.first} {person.last}", person.last)
